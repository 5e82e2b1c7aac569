"""Text files of any origin: with or without a byte-order mark, lines ended as on Unix or on Windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minigpt.json_files import read_whole

BYTE_ORDER_MARK = "\ufeff"  # what Windows editors put first, to say that a file is UTF-8


def decode_text(data: bytes, name: str) -> str:
    r"""The text of a whole file: without a byte-order mark, with "\n" at the end of each line.

    Args:
        data: the file's bytes.
        name: what to call it in an error: its path, or "stdin".

    Raises:
        ValueError: it is not UTF-8; the message says at which byte.

    >>> decode_text(b"\xef\xbb\xbfOnce\r\nupon\n", "a.txt")
    'Once\nupon\n'
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error.start) from None
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n")


def read_text(path: Path) -> str:
    """The whole text of a file, as `decode_text` reads it.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    try:
        return decode_text(read_whole(path), str(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; name a text file") from None


def read_lines(path: Path) -> Iterator[str]:
    """The same text line by line, each with its end, so that a file of any size will do.

    Raises:
        ValueError: as for `read_text`.
    """
    read = 0
    try:
        # As bytes, so that an error knows its place in the file. Universal newlines would take "\r", "\v" and
        # others for line ends, too, which are part of the text.
        with path.open("rb") as opened:
            for line in opened:
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(str(path), read + error.start) from None
                if not read:
                    text = text.removeprefix(BYTE_ORDER_MARK)
                yield text[:-2] + "\n" if text.endswith("\r\n") else text
                read += len(line)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; name a text file") from None


def is_jsonl(path: Path) -> bool:
    """Whether a file's name says that it holds one JSON object a line; upper and lower case are the same.

    >>> is_jsonl(Path("tales.JSONL")), is_jsonl(Path("tales.txt"))
    (True, False)
    """
    return path.suffix.lower() == ".jsonl"


def _not_utf8(name: str, byte: int) -> ValueError:
    return ValueError(f"{name} is not UTF-8 (byte {byte:,}): convert it, as by `iconv -t UTF-8`")
