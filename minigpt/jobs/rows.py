"""Rows of text files: where each begins and ends, so that a part of a file can be read without what is before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from minigpt.data.text import BYTE_ORDER_MARK
from minigpt.json_files import expect, parse
from minigpt.tokenizer.files import END_OF_TEXT

LONGEST_LINE = 1 << 24  # bytes; what is longer is no prompt, and would fill the memory

Lines = Iterable[tuple[bytes, int]]  # each with its end, and how many bytes of the file it is


class Piece(NamedTuple):
    """The bytes of one row."""

    number: int  # in its file, from 1; what the row's id ends with
    data: bytes
    end: int  # how many bytes of the file have been read with it


Split = Callable[[Lines, int], Iterator[Piece]]  # lines, and the number of the last row before them


class Row(NamedTuple):
    """One row of the input: the fields that a job reads of it, or why it cannot be read."""

    id: str  # the file's name, a colon, and the row's number
    values: dict[str, Any]
    reason: str = ""


def lines_of(file: BinaryIO, seen: Callable[[bytes], object] = lambda data: None) -> Lines:
    """The lines of a file, with their ends; of one that is too long the beginning, as much as shows that it is.

    Args:
        file: open for reading.
        seen: is called with all that is read.
    """
    while line := file.readline(LONGEST_LINE + 1):
        seen(line)
        length, rest = len(line), line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE + 1)
            seen(rest)
            length += len(rest)
        yield line, length


def each_line(lines: Lines, before: int = 0) -> Iterator[Piece]:
    r"""Every line is a row, an empty one, too.

    >>> [(piece.number, piece.data) for piece in each_line([(b"Once\n", 5), (b"\n", 1)], before=7)]
    [(8, b'Once\n'), (9, b'\n')]
    """
    end = 0
    for number, (line, length) in enumerate(lines, before + 1):
        end += length
        yield Piece(number, line, end)


def each_object(lines: Lines, before: int = 0) -> Iterator[Piece]:
    """Every line of a .jsonl file is a row but for blank ones, which count as lines all the same."""
    return (piece for piece in each_line(lines, before) if piece.data.strip())


def each_document(lines: Lines, before: int = 0) -> Iterator[Piece]:
    r"""What stands between lines <|endoftext|> is a row, if it is not blank.

    >>> text = [(b"One.\n", 5), (b"<|endoftext|>\n", 14), (b"Two.\n", 5)]
    >>> [(piece.number, piece.data, piece.end) for piece in each_document(text)]
    [(1, b'One.\n', 19), (2, b'Two.\n', 24)]
    """
    number, end, document = before, 0, b""
    for line, length in lines:
        end += length
        if line.rstrip() != END_OF_TEXT.encode():
            document += line
        elif document.strip():
            number += 1
            yield Piece(number, document, end)
            document = b""
    if document.strip():
        yield Piece(number + 1, document, end)


def text_of(piece: Piece) -> str:
    """A row's text, without the line end at its end; the first one's without a byte-order mark.

    Raises:
        ValueError: it is not UTF-8, or too long.
    """
    if len(piece.data) > LONGEST_LINE:
        raise ValueError(f"it is longer than {LONGEST_LINE:,} bytes")
    try:
        text = piece.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start:,} of the row)") from None
    text = text.removesuffix("\n").removesuffix("\r")
    return text.removeprefix(BYTE_ORDER_MARK) if piece.number == 1 else text


def object_of(piece: Piece) -> dict[str, Any]:
    """The fields of a row of a .jsonl file.

    Raises:
        ValueError: as for `text_of`, or it is not one JSON object.
    """
    return expect(dict, parse(text_of(piece), "the line"), "the line")
