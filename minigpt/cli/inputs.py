"""Text that a command is given: files of any origin, and stdin."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.data.text import decode_text

STDIN = "-"  # stands for stdin where a file or a text is named


def decoded(data: bytes, name: str) -> str:
    r"""The text of a file or of stdin; a newline at its very end, which editors and `generate` put there, is left out.

    >>> decoded(b"\xef\xbb\xbfOnce\r\nupon\r\n", "story.txt")
    'Once\nupon'
    """
    try:
        return decode_text(data, name).removesuffix("\n")
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error


def read_text(name: str, flag: str = "") -> str:
    """The text of a file, or of stdin where `name` is "-"; `flag` names it in errors.

    Raises:
        Failure: it cannot be read, or is not UTF-8.
    """
    return decoded(read_bytes(name, flag), "stdin" if name == STDIN else name)


def read_bytes(name: str, flag: str = "") -> bytes:
    """All of a file, or of stdin where `name` is "-".

    Raises:
        Failure: it cannot be read.
    """
    if name == STDIN:
        return _stdin()
    try:
        path = Path(name)
        if stat.S_ISCHR(path.stat().st_mode) and not _is_terminal(path):
            raise OSError(0, "it is a device, which may never end")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        shown, reason = f"{flag} {name}".strip(), getattr(error, "strerror", None) or error
        raise Failure(
            BAD_FLAGS, f"{shown} cannot be read: {reason}; name a text file, or - for stdin"
        ) from error


def _is_terminal(path: Path) -> bool:
    with path.open("rb") as file:
        return file.isatty()


def _stdin() -> bytes:
    if sys.stdin is None:
        raise Failure(BAD_FLAGS, "stdin is closed: name a file, or give the text as an argument")
    if hasattr(sys.stdin, "buffer"):
        return sys.stdin.buffer.read()
    return sys.stdin.read().encode(errors="replace")  # a notebook, or io.StringIO


def stdin_is_piped() -> bool:
    """Whether stdin is a pipe or a file, so that it can be read without waiting for a person to type."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # no stdin, or one that is no file
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def check_stdin_once(names: Sequence[str | None]) -> None:
    """Refuses to read stdin for two purposes."""
    if names.count(STDIN) > 1:
        raise Failure(BAD_FLAGS, "stdin can be read once only, but - stands for it several times")
