"""Text that a command is given: files of any origin, and stdin."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from minigpt.cli import Failure
from minigpt.cli.inputs import check_stdin_once, read_bytes, read_text, stdin_is_piped


@pytest.mark.parametrize(
    "data", [b"Once\nupon\n", b"Once\r\nupon\r\n", b"\xef\xbb\xbfOnce\r\nupon", b"\xef\xbb\xbfOnce\nupon\n"]
)
def test_where_a_file_was_written_makes_no_difference(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(data)
    assert read_text(str(tmp_path / "text.txt")) == "Once\nupon"


def test_one_newline_at_the_end_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(b"Once\n\n")
    assert read_text(str(tmp_path / "text.txt")) == "Once\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/none", "cannot be read: No such file or directory; name a text file, or - for stdin"),
        ("{folder}", "cannot be read: Is a directory"),
        ("a\0b", "cannot be read: .*null"),
        ("/dev/zero", "cannot be read: it is a device, which may never end"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=message) as raised:
        read_bytes(name.format(folder=tmp_path), "--file")
    assert str(raised.value).startswith("--file ")
    assert raised.value.code == 2


def test_a_pipe_can_be_named_as_a_file(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"Once\n")
    os.close(writer)
    assert read_text(f"/dev/fd/{reader}") == "Once"
    os.close(reader)


def test_stdin_without_bytes_and_without_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once é\n"))
    assert read_text("-") == "Once é"
    assert not stdin_is_piped()
    monkeypatch.setattr(sys, "stdin", None)
    assert not stdin_is_piped()
    with pytest.raises(Failure, match="stdin is closed: name a file, or give the text as an argument"):
        read_text("-")


def test_pipes_and_files_are_read_without_being_named_and_devices_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("Once")
    reader, writer = os.pipe()
    for opened, piped in ((tmp_path / "text", True), (reader, True), (Path(os.devnull), False)):
        with open(opened) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            assert stdin_is_piped() is piped
    os.close(writer)


def test_stdin_is_read_once() -> None:
    check_stdin_once(["-", "a", None])
    with pytest.raises(Failure, match="stdin can be read once only"):
        check_stdin_once(["-", "-"])
