"""Several files at once: all of them, or the folder as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minigpt import InvalidRequest
from minigpt.atomic import all_or_none


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(folder: Path) -> None:
    with all_or_none(folder) as aside:
        for name in "abc":
            (aside / name).write_text("new")


@pytest.mark.parametrize("failing", ["a", "b", "c"])
@pytest.mark.parametrize("older", ["", "a", "ab", "abc", "bz"])
def test_a_file_that_cannot_be_moved_takes_the_others_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, older: str
) -> None:
    for name in older:
        (tmp_path / name).write_text("old")
    before, replace = contents(tmp_path), os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == failing and Path(source).read_text() == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path)
    assert contents(tmp_path) == before
    monkeypatch.undo()
    write(tmp_path)
    assert contents(tmp_path) == before | dict.fromkeys("abc", "new")


def test_a_disk_without_links_still_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path)
    assert contents(tmp_path) == dict.fromkeys("abc", "new")


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match="saving needs the name of a folder, got ''"), all_or_none(""):
        pass
    assert contents(tmp_path) == {}
