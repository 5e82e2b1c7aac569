"""Lines of files of rows: one at a time, as text or as JSON objects; what is wrong with one concerns it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from minigpt.data.text import BYTE_ORDER_MARK
from minigpt.json_files import expect, parse

LONGEST_LINE = 1 << 24  # bytes; what is longer is no prompt, and would fill the memory


def lines_of(
    file: BinaryIO, seen: Callable[[bytes], object] = lambda data: None
) -> Iterator[tuple[bytes, int]]:
    r"""A file's lines with their ends, and their lengths; of one that is too long the beginning, which shows that it is.

    Args:
        file: open for reading.
        seen: is called with all that is read.

    >>> import io
    >>> list(lines_of(io.BytesIO(b"Once\n\nThe king")))
    [(b'Once\n', 5), (b'\n', 1), (b'The king', 8)]
    """
    while line := file.readline(LONGEST_LINE + 1):
        seen(line)
        length, rest = len(line), line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
            seen(rest)
            length += len(rest)
        yield line, length


def text_of(line: bytes, first: bool) -> str:
    """A line's text, without its end; the first one's without a byte-order mark.

    Raises:
        ValueError: it is too long, or not UTF-8.
    """
    if len(line) > LONGEST_LINE:
        raise ValueError(f"the line is longer than {LONGEST_LINE:,} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start:,} of the line)") from None
    text = text.removesuffix("\n").removesuffix("\r")
    return text.removeprefix(BYTE_ORDER_MARK) if first else text


def object_of(text: str) -> dict[str, Any]:
    """The fields of a line that holds one JSON object.

    Raises:
        ValueError: it holds something else.
    """
    return expect(dict, parse(text, "the line"), "the line")
