"""Files that a command writes: tried before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minigpt.cli import Failure, outputs
from minigpt.cli.outputs import check_file, save, write_file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}/none/x", "--output .*/none/x: there is no such folder to write into"),
        ("{folder}", "--output '.*' is a folder or a device; name a file"),
        ("/dev/null", "--output '/dev/null' is a folder or a device; name a file"),
        ("{folder}/loop", "--output '.*/loop' is a link that leads back to itself; name a file"),
        ("a\0b", "--output 'a\\\\x00b' cannot be written"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop2")
    (tmp_path / "loop2").symlink_to(tmp_path / "loop")
    with pytest.raises(Failure, match=message) as raised:
        check_file("--output", name.format(folder=tmp_path), {})
    assert raised.value.code == 2


def test_a_folder_without_permission_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    check_file("--output", str(tmp_path / "text"), {})
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", denied)
    with pytest.raises(Failure, match=r"--output '.*text' cannot be written: Permission denied"):
        check_file("--output", str(tmp_path / "text"), {})


def test_text_that_cannot_be_written_at_the_end_goes_to_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    def full(file: str, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_file", full)
    with pytest.raises(
        Failure, match="--output x: No space left on device; its text went to stdout"
    ) as raised:
        save("--output", "x", "Once é\n")
    assert raised.value.code == 1
    assert capsysbinary.readouterr().out == "Once é\n".encode()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_file(str(tmp_path / "link"), "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("output", ["p.txt", "./p.txt", "{folder}/p.txt", "link", "hard"])
def test_an_output_is_none_of_the_files_that_are_read(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("The king\n")
    Path("link").symlink_to("p.txt")
    os.link("p.txt", "hard")
    name = output.format(folder=tmp_path)
    with pytest.raises(Failure) as raised:
        check_file("--output", name, {"--file": None, "--prompts": "p.txt"})
    assert str(raised.value) == f"--output {name} is the file of --prompts: name another file"
    check_file("--output", "other", {"--file": "-", "--prompts": "p.txt", "--lattice": "a\0b"})


def test_two_outputs_are_two_files(tmp_path: Path) -> None:
    file = str(tmp_path / "new.md")  # which does not exist yet
    with pytest.raises(Failure, match="is the file of --markdown: name another file"):
        check_file("--json", file, {"--markdown": file})
