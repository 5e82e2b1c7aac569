"""Writing to stdout and stderr, wherever they lead: a terminal, a file, a notebook, or nowhere."""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from typing import TextIO

# Characters that reorder what stands around them: bidirectional embeddings, overrides and isolates.
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def terminal_text(text: str) -> str:
    r"""The text without what a terminal would obey: control characters other than \n and \t become "·".

    Text that comes from a model, a vocabulary or a file must not clear the screen, set the window's title or
    reorder a line.

    >>> terminal_text("red: \x1b[31m\r\n\tend")
    'red: ·[31m\n\tend'
    """
    return "".join("·" if _is_obeyed(c) else c for c in text.replace("\r\n", "\n"))


def _is_obeyed(c: str) -> bool:
    return c in BIDIRECTIONAL or (c not in "\n\t" and unicodedata.category(c) == "Cc")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sees what is written to the stream."""
    return stream is not None and stream.isatty()


def write_out(text: str) -> None:
    """Writes to stdout at once: as UTF-8, byte for byte, but for what a terminal would obey.

    Raises:
        OSError: it cannot be written; what is left of it is dropped.
    """
    stdout: TextIO | None = sys.stdout
    if stdout is None:  # closed before the command was started
        raise OSError(errno.EBADF, "stdout is closed")
    if stdout.isatty():
        text = terminal_text(text)
    data = utf8(text)
    try:
        if hasattr(stdout, "buffer"):
            stdout.buffer.write(data)
        else:  # a notebook, or io.StringIO
            stdout.write(data.decode())
        stdout.flush()
    except OSError:
        _drop(stdout)  # Python would try again at its end
        raise


def write_err(text: str) -> None:
    """Writes to stderr at once, without what a terminal would obey; nowhere if stderr is closed."""
    if sys.stderr is not None:
        sys.stderr.write(terminal_text(utf8(text).decode()))
        sys.stderr.flush()


def utf8(text: str) -> bytes:
    """The text's bytes; half a surrogate pair, as from an argument that is not UTF-8, becomes "?"."""
    return text.encode(errors="replace")


def _drop(stream: TextIO) -> None:
    """Lets whatever the stream still holds go nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        return  # a stream without a file, which keeps nothing
