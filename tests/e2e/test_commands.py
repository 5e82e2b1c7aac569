"""What all commands have in common: `minigpt COMMAND`, fast help, and streams that may be anything or closed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
from command import ONE_THREAD, Result, run, wait

import minigpt
from minigpt import __main__ as dispatcher
from minigpt.__main__ import COMMANDS
from minigpt.detect_watermark import main as detect_watermark
from minigpt.generate.__main__ import main as generate
from minigpt.info import main as info
from minigpt.score.__main__ import main as score

ONCE = ("Once upon a time", "--max-new-tokens", "3")


def closed(*argv: str, closing: str) -> Result:
    """A command in a shell that closes some of its streams, as `>&-` and `<&-` do."""
    command = [sys.executable, "-m", "minigpt", *argv]
    script = 'exec "$@" ' + closing
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command], env=os.environ | ONE_THREAD,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    return wait(process)


# ------------------------------------------------------------------------------ minigpt COMMAND


def test_without_a_command_all_are_listed(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert dispatcher.main([]) == dispatcher.main(["--help"]) == 0
    out = capsysbinary.readouterr().out.decode()
    assert out.count("usage: minigpt COMMAND") == 2
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_the_version(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert dispatcher.main(["--version"]) == 0
    assert capsysbinary.readouterr().out == f"minigpt {minigpt.__version__}\n".encode()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("Once upon a time", 'a text is continued by: minigpt generate "Once upon a time"'),  # as 0.1 had it
        ("generat", "there is no command 'generat'"),
        ("scores", "did you mean minigpt score"),
        ("--top-p", "a text is continued by: minigpt generate --top-p ...)"),
        ("--verison", "did you mean minigpt --version?"),
        ("version", "did you mean minigpt --version?"),
        ("sample", "(use minigpt generate)"),
        ("finetune", "(use minigpt train)"),
        ("fine_tune", "(use minigpt train)"),
        ("eval", "(use minigpt score)"),
        ("chat", "(use minigpt generate -i)"),
    ],
)
def test_what_is_no_command_is_answered(asked: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatcher.main([asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert answer in line


@pytest.mark.parametrize("name", ["detect-watermark", "detect_watermark"])
def test_hyphens_and_underscores_are_the_same(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        dispatcher.main([name, "--help"])
    assert "usage: minigpt detect-watermark" in capsys.readouterr().out


def test_help_of_a_command_may_be_asked_for_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        dispatcher.main(["help", "info"])
    assert "usage: minigpt info" in capsys.readouterr().out
    assert dispatcher.main(["help", "nothing"]) == 2


def test_a_command_gets_its_arguments_and_gives_its_exit_code() -> None:
    result = run("generate", *ONCE, "--json", "--top-p", 2, python=("-m", "minigpt"))
    assert (result.code, result.out) == (2, "")
    assert "--top-p" in result.mistake


def test_ctrl_c_while_a_command_is_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dispatcher, "import_module", interrupted)
    assert dispatcher.main(["info"]) == 130


# ------------------------------------------------------------------------------ help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_complete_and_does_not_wait_for_torch(name: str) -> None:
    result = run(name, "--help", python=("-X", "importtime", "-m", "minigpt"))
    assert result.code == 0
    assert result.out.startswith(f"usage: minigpt {name} ")
    assert "\nexamples:\n  " in result.out
    assert "\nexit codes: 0 done, 1 " in result.out
    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines()}
    assert not imported & {"torch", "numpy", "httpx"}


def test_the_version_needs_no_torch() -> None:
    result = run("--version", python=("-X", "importtime", "-m", "minigpt"))
    assert result.code == 0
    assert not [line for line in result.err.splitlines() if line.endswith(("| torch", "| numpy"))]


# ------------------------------------------------------------------------------ streams of any kind


def test_in_a_notebook_stdout_has_no_bytes() -> None:
    """And neither has what `redirect_stdout` puts in its place."""
    for main, argv in (
        (generate, ["Once", "--max-new-tokens", "2"]),
        (generate, ["Once", "--max-new-tokens", "2", "--stream"]),
        (score, ["--text", "Once upon a time"]),
        (info, ["--json"]),
        (
            import_module("minigpt.compare.__main__").main,
            ["Once", "--max-new-tokens", "2", "--method", "greedy"],
        ),
    ):
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
            assert main(argv) == 0
        assert out.getvalue().strip()


def test_stdin_without_bytes_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time there was"))
    with redirect_stdout(io.StringIO()) as out:
        assert detect_watermark(["-", "--json"]) == 0
    assert '"path": "-"' in out.getvalue()


def test_a_closed_stdout_is_said_before_anything_is_computed(tmp_path: Path) -> None:
    result = closed("generate", *ONCE, closing=">&-")
    assert (result.code, result.out) == (2, "")
    assert result.err == "minigpt.generate: stdout is closed: give --output FILE\n"
    file = tmp_path / "text"
    assert closed("generate", *ONCE, "--output", str(file), closing=">&-").code == 0
    assert file.read_text().strip()


@pytest.mark.parametrize("argv", [("info",), ("score", "--text", "Once upon a time"), ("verify", "--quiet")])
def test_a_closed_stdout_is_one_line(argv: tuple[str, ...]) -> None:
    result = closed(*argv, closing=">&-")
    assert "Traceback" not in result.err
    assert result.err.count("\n") <= 2


def test_a_closed_stdin_is_an_empty_one() -> None:
    result = closed("generate", *ONCE, closing="<&-")
    assert result.code == 0
    assert closed("generate", "--max-new-tokens", "3", closing="<&-").code == 0
    nothing = closed("generate", "-", closing="<&-")
    assert nothing.code == 2
    assert nothing.err == "minigpt.generate: stdin is closed: name a file, or give the text as an argument\n"
    assert closed("generate", "-i", "--quiet", closing="<&-") == (0, "", "")


def test_a_closed_stderr_is_nowhere() -> None:
    result = closed("generate", *ONCE, "--explain", closing="2>&-")
    assert (result.code, result.err) == (0, "")
    assert "prompt 4 tokens" not in result.out
