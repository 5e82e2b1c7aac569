"""Writing whole files or none: aside first, then moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from minigpt.errors import InvalidRequest

UNFINISHED = ".unfinished-"  # what a process that was killed leaves behind begins with this


@contextmanager
def all_or_none(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into; when the block ends well, its files move into `directory`, over older ones.

    If the block fails, or is interrupted, `directory` stays as it was.

    >>> with tempfile.TemporaryDirectory() as target:
    ...     with all_or_none(target) as aside:
    ...         _ = (aside / "a.txt").write_text("whole")
    ...     os.listdir(target)
    ['a.txt']
    """
    directory = named_folder("saving", directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the target, because moving is only a rename within one file system.
    with _aside(directory) as aside:
        yield aside
        _move_all(sorted(aside.iterdir()), directory)


def _move_all(files: Sequence[Path], directory: Path) -> None:
    """Moves files into a folder, over older ones; if one cannot be moved, those before it are taken back."""
    with _aside(directory) as before, ExitStack() as undo:
        for file in files:
            target, old = directory / file.name, before / file.name
            if target.exists():
                with suppress(OSError):  # of a disk that has no links, where the newer file stays
                    os.link(target, old)  # a second name for the older file, so that it is never missing
                    undo.callback(os.replace, old, target)
            else:
                undo.callback(target.unlink, missing_ok=True)
            os.replace(file, target)
        undo.pop_all()


@contextmanager
def whole_folder(directory: Path) -> Iterator[Path]:
    """A folder to write into that becomes `directory`, which must not exist yet, when the block ends well.

    Its files are on the disk before it gets its name, so that not even a power cut leaves half of it.

    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with whole_folder(Path(parent, "new")) as aside:
    ...         _ = (aside / "a.txt").write_text("whole")
    ...     os.listdir(parent)
    ['new']
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _aside(directory.parent) as aside:
        yield aside
        for file in aside.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        os.rename(aside, directory)


def named_folder(what: str, name: str | os.PathLike[str]) -> Path:
    """The folder of that name, which an empty text is not: `Path("")` would be the current folder.

    Args:
        what: needs the folder, in errors.
        name: the folder's.

    Raises:
        InvalidRequest: the name is empty.

    >>> named_folder("--out", "")
    Traceback (most recent call last):
    minigpt.errors.InvalidRequest: --out needs the name of a folder, got ''
    """
    if name == "":
        raise InvalidRequest(f"{what} needs the name of a folder, got ''")
    return Path(name)


def check_writable(directory: Path) -> None:
    """Checks that a folder can be written into, or can be made.

    Raises:
        ValueError: it is a link that leads nowhere, a file is in its way, or writing there is not allowed.

    >>> check_writable(Path("/dev/null/new"))
    Traceback (most recent call last):
    ValueError: /dev/null/new: /dev/null is no folder that can be written into
    """
    if directory.is_symlink() and not directory.exists():
        raise ValueError(f"{directory} is a link that leads nowhere: name a folder")
    there = next(part for part in (directory, *directory.absolute().parents) if os.path.exists(part))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{directory}: {there} is no folder that can be written into")


def replace_text(path: Path, text: str) -> None:
    """Writes a text file atomically, over an older one."""
    with all_or_none(path.parent) as aside:
        (aside / path.name).write_text(text, encoding="utf-8", newline="\n")


def remove_unfinished(directory: Path) -> None:
    """Removes what a process that was killed has left half written in a folder."""
    for left in directory.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _aside(parent: Path) -> Iterator[Path]:
    aside = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    aside.chmod(0o755)  # mkdtemp lets the owner alone read it
    try:
        yield aside
    finally:
        if aside.exists():
            shutil.rmtree(aside)
