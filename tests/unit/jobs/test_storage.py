"""Folders of this machine and of another filesystem do the same: here one that fsspec keeps in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from uuid import uuid4

import fsspec
import pytest

from minigpt.atomic import UNFINISHED
from minigpt.jobs.storage import Folder, LocalFolder, folder, locate


@pytest.fixture(params=["local", "memory", "by pyarrow"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path)
    if request.param == "memory":
        return f"memory://{uuid4().hex}"

    def has_no_package(url: str) -> NoReturn:
        raise ImportError(url)

    monkeypatch.setattr(fsspec.core, "url_to_fs", has_no_package)
    return f"file://{tmp_path}"


def put(place: str, *names: str) -> Folder:
    there = folder(place)
    for name in names:
        there.write(name, lambda file: file.write(b"Once"))
    return there


def test_what_was_written_is_found(place: str) -> None:
    there = put(place, "b.txt", "sub/a.jsonl")
    assert there.find() == ["b.txt", "sub/a.jsonl"]
    assert there.find("sub/*") == ["sub/a.jsonl"]
    with there.open("b.txt") as file:
        assert file.read() == b"Once"
    assert (there.exists("b.txt"), there.exists("c.txt"), there.exists("")) == (True, False, True)
    there.delete("b.txt")
    there.delete("b.txt")
    assert there.find() == ["sub/a.jsonl"]


def test_paths_are_files_folders_and_globs(place: str) -> None:
    put(place, "b.txt", "sub/a.txt", "sub/[1].txt")
    assert locate(place) == (folder(place), ["b.txt", "sub/[1].txt", "sub/a.txt"])
    assert locate(f"{place}/") == locate(place)
    assert locate(f"{place}/sub/a.txt") == (folder(f"{place}/sub"), ["a.txt"])
    assert locate(f"{place}/s*/a.*") == (folder(place), ["sub/a.txt"])
    assert locate(f"{place}/sub/[1].txt") == (folder(f"{place}/sub"), ["[1].txt"])
    with pytest.raises(ValueError, match="does not exist: name a file, a folder or a glob"):
        locate(f"{place}/nothing")


def test_a_failure_leaves_the_older_file(place: str) -> None:
    there = put(place, "a.txt")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        there.write("a.txt", fail)
    assert there.find() == ["a.txt"]
    with there.open("a.txt") as file:
        assert file.read() == b"Once"


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "sub" / f"{UNFINISHED}x").mkdir(parents=True)
    LocalFolder(tmp_path).tidy("sub")
    assert [*(tmp_path / "sub").iterdir()] == []
    url = f"memory://{uuid4().hex}"
    there: Any = put(url, f"{UNFINISHED}x", "a.txt")
    there.tidy("")
    assert fsspec.filesystem("memory").find(url) == [f"/{url.removeprefix('memory://')}/a.txt"]


def test_unknown_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="nosuch://host cannot be opened: Protocol not known: nosuch"):
        locate("nosuch://host/in")
