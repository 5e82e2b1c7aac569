"""Rows of text files: where each begins and ends, so that a part of a file can be read without what is before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from minigpt.tokenizer.files import END_OF_TEXT

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
