"""Results of many prompts in a file that grows: a killed run is gone on from, and nothing is lost or there twice."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.outputs import real
from minigpt.json_files import parse

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENTRY = re.compile(rb"(\d{1,15}) ([01]) (\d{1,18})\n")  # a line of FILE.part.rows: index, failed, size
DONE, FAILED = 1, 2  # what a row can be, if it is not still to come


class GrowingFile:
    """FILE.part, which becomes FILE when all rows are in it, and beside it FILE.part.rows.

    FILE.part.rows has the job in its first line, then a line for each row whose results are in FILE.part: the
    row's index, whether it failed, and the size of FILE.part with it. A row is written to FILE.part first, so what
    that holds beyond the last size was being written when the process was killed, and is cut off.

    Args:
        file: FILE.
        n_rows: no row has this index, or a larger one.
        job: what the results depend on; see `begun`.

    Raises:
        OSError: a file cannot be read or written.
        Failure: another process writes to it.
    """

    def __init__(self, file: str, n_rows: int, job: dict[str, Any]) -> None:
        self.file, (self.part, rows) = real(file), _paths(file)
        self.status = bytearray(n_rows)  # a byte a row, for there may be millions
        self._size = 0  # of FILE.part
        self._rows = rows.open("a+b", buffering=0)
        _lock(self._rows, file)
        with ExitStack() as opened:
            opened.enter_context(self._rows)
            if begun(file) is None:
                self._rows.truncate(0)
                _write_whole(self._rows, json.dumps(job).encode() + b"\n")  # before there is a FILE.part
            else:
                self._rows.truncate(self._take_up())
            self._part = opened.enter_context(self.part.open("ab", buffering=0))
            self._part.truncate(self._size)
            opened.pop_all()

    def _take_up(self) -> int:
        """Marks the rows that are in FILE.part; how much of FILE.part.rows is about them."""
        there = self.part.stat().st_size
        self._rows.seek(0)
        first, *lines = self._rows.readall().splitlines(keepends=True)
        known = len(first)
        for line in lines:
            entry = ENTRY.fullmatch(line)
            if entry is None:
                break
            index, failed, end = map(int, entry.groups())
            if index >= len(self.status) or not self._size < end <= there:
                break
            self.status[index] = FAILED if failed else DONE
            self._size = end
            known += len(line)
        return known

    def add(self, index: int, text: bytes, failed: bool) -> None:
        """Adds the results of a row."""
        _write_whole(self._part, text)
        self._size += len(text)
        self._rows.write(b"%d %d %d\n" % (index, failed, self._size))
        self.status[index] = FAILED if failed else DONE

    def finish(self) -> None:
        """Gives FILE its name, for all rows are in it."""
        os.fsync(self._part.fileno())
        os.replace(self.part, self.file)
        _paths(str(self.file))[1].unlink(missing_ok=True)
        self.close()  # and so unlocks it: only now may another process begin

    def close(self) -> None:
        self._part.close()
        self._rows.close()

    def count(self, status: int) -> int:
        return self.status.count(status)


def begun(file: str) -> dict[str, Any] | None:
    """The job of which FILE.part holds results already; None where there is no such file.

    Raises:
        Failure: FILE.part is there, but nothing says what it holds.
        OSError: it cannot be read.
    """
    part, rows = _paths(file)
    if not part.exists():
        return None
    try:
        with rows.open("rb") as opened:
            job = parse(opened.readline(), rows)
    except (FileNotFoundError, ValueError):
        job = None
    if not isinstance(job, dict):
        raise Failure(
            BAD_FLAGS,
            f"--output {file}: {part} is there, but {rows.name}, which says what it holds, is missing or damaged:"
            " remove them, or name another file",
        )
    return job


def _write_whole(file: FileIO, text: bytes) -> None:
    """Writes all of a text; of a disk that is full, `write` takes a part, and says so only at the next call."""
    left = memoryview(text)
    while left:
        left = left[file.write(left) :]


def _lock(rows: FileIO, file: str) -> None:
    """Keeps other processes out as long as this one lives, where the file system can do that."""
    if fcntl is None:
        return
    try:
        fcntl.flock(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        rows.close()
        raise Failure(
            BAD_FLAGS,
            f"--output {file}: another process writes to {file}.part: wait for it, or name another file",
        ) from None
    except OSError:  # a network's disk without locks
        return


def _paths(file: str) -> tuple[Path, Path]:
    path = real(file)
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.rows")
