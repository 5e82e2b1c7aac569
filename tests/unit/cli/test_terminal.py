"""Writing to stdout and stderr, wherever they lead."""

from __future__ import annotations

import io
import sys

import pytest

from minigpt.cli.terminal import terminal_text, write_err, write_out

# A window's title, a cleared screen, a colour, an 8-bit control sequence, DEL, and an override of the direction.
HOSTILE = "a\x1b]0;title\x07\x1b[2J\x1b[31m\x9b31m\x7f\u202eb\u2066\r"


class Stream(io.TextIOWrapper):
    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def written(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined, no-any-return]


def test_a_terminal_gets_nothing_that_it_would_obey() -> None:
    shown = terminal_text(HOSTILE + "\n\té 山 שלום")
    assert not set("\x1b\x07\x9b\x7f\r\u202e\u2066") & set(shown)
    assert shown.endswith("·\n\té 山 שלום")


def test_families_of_emoji_stay_together() -> None:
    assert terminal_text("👨\u200d👩\u200d👧") == "👨\u200d👩\u200d👧"


@pytest.mark.parametrize("terminal", [False, True])
def test_stdout_is_exact_unless_it_is_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    write_out(HOSTILE)
    assert stream.written() == (terminal_text(HOSTILE) if terminal else HOSTILE)


def test_stdout_may_be_without_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    write_out("é\ud800")
    assert sys.stdout.getvalue() == "é?"  # type: ignore[attr-defined]


def test_a_closed_stdout_is_an_error_and_a_closed_stderr_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(OSError, match="stdout is closed"):
        write_out("text")
    write_err("never seen")


def test_stderr_is_never_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    write_err(f"no tensor {HOSTILE!s}\n")
    assert "\x1b" not in capsys.readouterr().err
