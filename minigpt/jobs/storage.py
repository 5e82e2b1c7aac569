"""Folders that a job reads from and writes to: of this machine, or of any filesystem that fsspec or pyarrow opens."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, cast
from uuid import uuid4

from minigpt.atomic import UNFINISHED, all_or_none, remove_unfinished
from minigpt.jobs.extras import require
from minigpt.lazy import arrow_fs, fsspec, fsspec_arrow

MAGIC = "*?["  # what makes a name a glob


class Folder(Protocol):
    """What a job asks of a folder, wherever it is; names are relative to it, with slashes."""

    def find(self, pattern: str = "**") -> list[str]:
        """The files whose names fit a glob, sorted; hidden ones do not count."""

    def exists(self, name: str) -> bool: ...
    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading."""

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        """Writes a file atomically, over an older one."""

    def delete(self, name: str) -> None: ...
    def tidy(self, name: str) -> None:
        """Removes what killed processes have left half written in a folder of this folder."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine, or one that is mounted."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def find(self, pattern: str = "**") -> list[str]:
        names = glob.glob(pattern, root_dir=self.path, recursive=True)
        return sorted(name.replace(os.sep, "/") for name in names if (self.path / name).is_file())

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        target = self.path / name
        with all_or_none(target.parent) as aside, (aside / target.name).open("wb") as file:
            fill(file)
            file.flush()
            # On the disk before it has its name, so that a power cut leaves no half of it.
            os.fsync(file.fileno())

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def tidy(self, name: str) -> None:
        remove_unfinished(self.path / name)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of another filesystem, by its URL, such as s3://bucket/prompts."""

    url: str

    def __str__(self) -> str:
        return self.url

    def find(self, pattern: str = "**") -> list[str]:
        with self._opened() as (fs, root):
            found = fs.find(root) if pattern == "**" else fs.glob(f"{root}/{pattern}")
            names = [name.removeprefix(root).lstrip("/") for name in found if not fs.isdir(name)]
        return sorted(name for name in names if not _is_hidden(name))

    def exists(self, name: str) -> bool:
        with self._opened() as (fs, root):
            return bool(fs.exists(f"{root}/{name}".rstrip("/")))

    def open(self, name: str) -> BinaryIO:
        with self._opened() as (fs, root):
            return cast(BinaryIO, fs.open(f"{root}/{name}", "rb"))

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        with self._opened() as (fs, root):
            target = f"{root}/{name}"
            parent = target.rpartition("/")[0]
            # Beside it, for only object stores show a file no sooner than it is whole.
            aside = f"{parent}/{UNFINISHED}{uuid4().hex}"
            fs.makedirs(parent, exist_ok=True)
            try:
                with fs.open(aside, "wb") as file:
                    fill(file)
                fs.mv(aside, target)
            finally:
                with suppress(OSError):
                    fs.rm_file(aside)

    def delete(self, name: str) -> None:
        with self._opened() as (fs, root), suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")

    def tidy(self, name: str) -> None:
        with self._opened() as (fs, root):
            for left in fs.glob("/".join(filter(None, (root, name, f"{UNFINISHED}*")))):
                fs.rm_file(left)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """The filesystem, and the folder's path there; what goes wrong there is an OSError with the URL."""
        fs, root = filesystem(self.url)
        try:
            fs.invalidate_cache()  # others write there, too
            yield fs, root
        except OSError as error:
            raise OSError(f"{self.url}: {error}") from error
        except Exception as error:  # each filesystem has errors of its own: no credentials, no such host
            raise OSError(f"{self.url}: {type(error).__name__}: {error}") from error


def filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of a URL by fsspec, or where that lacks a package for it, by pyarrow; and the path there.

    Raises:
        ValueError: neither knows such URLs, or fsspec is not installed.
    """
    require("fsspec", "data", url)
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        try:
            of_pyarrow, root = arrow_fs.FileSystem.from_uri(url)
        except (ImportError, ValueError, OSError):
            raise ValueError(f"{url} cannot be opened: {error}") from None
        fs = fsspec_arrow.ArrowFSWrapper(of_pyarrow)
    return fs, root.rstrip("/")


def is_remote(path: str) -> bool:
    """Whether a path is a URL.

    >>> is_remote("s3://bucket/prompts.jsonl"), is_remote("prompts.jsonl")
    (True, False)
    """
    return "://" in path


def folder(path: str) -> Folder:
    """The folder of that path or URL, which need not exist."""
    if is_remote(path):
        return RemoteFolder(path.rstrip("/"))
    return LocalFolder(Path(os.path.abspath(Path(path).expanduser())))


def locate(path: str) -> tuple[Folder, list[str]]:
    """What a path stands for: a folder, and the names there of the file, of all files below, or those of a glob.

    A glob's folder is that before the first part with a wildcard.

    Raises:
        OSError: it cannot be reached.
        ValueError: there is no such file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     _ = Path(root, "a.txt").write_text("Once")
    ...     found = [locate(f"{root}{name}")[1] for name in ("", "/a.txt", "/*.txt")]
    >>> found
    [['a.txt'], ['a.txt'], ['a.txt']]
    """
    whole = PurePosixPath(path.partition("://")[2]) if is_remote(path) else Path(path).expanduser()
    parent = folder(path.rstrip("/").rpartition("/")[0] or ("/" if path.startswith("/") else "."))
    if whole.name and whole.name in parent.find(glob.escape(whole.name)):
        return parent, [whole.name]
    if not any(c in path for c in MAGIC):
        names = folder(path).find()
        if not names and not folder(path).exists(""):
            raise ValueError(f"{path} does not exist: name a file, a folder or a glob")
        return folder(path), names
    parts = path.split("/")
    n = next(i for i, part in enumerate(parts) if any(c in part for c in MAGIC))
    root = folder("/".join(parts[:n]) or ("/" if path.startswith("/") else "."))
    return root, root.find("/".join(parts[n:]))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
