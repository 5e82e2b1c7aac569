"""Text files as documents, and fingerprints of them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from minigpt.data.text import is_jsonl, read_lines
from minigpt.json_files import counted, parse
from minigpt.tokenizer.files import END_OF_TEXT

SUFFIXES = (".txt", ".jsonl")


def text_files(path: Path) -> list[Path]:
    """The file itself, or all .txt and .jsonl files of a folder and its subfolders, sorted by name.

    Raises:
        ValueError: there is no such file, or none in the folder, or it is a device.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not found:
            raise ValueError(f"{path} is a folder without {' or '.join(SUFFIXES)} files: name one with text")
        return found
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a text file, a .jsonl file, or a folder of them")
    if path.is_char_device():
        raise ValueError(f"{path} is a device, which may never end: name a text file, or a folder of them")
    return [path]


def documents(paths: Sequence[Path], text_field: str = "text", separator: str | None = None) -> Iterator[str]:
    r"""Every document of some files or folders, one after the other.

    A text file holds documents separated by lines `<|endoftext|>`, or by `separator` wherever it stands; line
    ends around them do not count, and neither do empty ones. A .jsonl file holds one object a line, whose
    `text_field` is the document. `<|endoftext|>` inside a line is plain text; a warning says how often, for it
    is rarely meant.

    Raises:
        ValueError: a file is missing, empty, not UTF-8 or not JSONL; the message says which, and where.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "two.txt")
    ...     _ = file.write_text("One.\n<|endoftext|>\nTwo.\n")
    ...     list(documents([file]))
    ['One.', 'Two.']
    """
    inside = 0  # end-of-text tokens that do not have a line of their own
    for file in (file for path in paths for file in text_files(path)):
        empty = True
        for document in _of_file(file, text_field, separator):
            if document and not document.isspace():
                empty = False
                inside += document.count(END_OF_TEXT)
                yield document.strip("\r\n")
        if empty:
            raise ValueError(f"{file} holds no text: leave it out, or put text into it")
    if inside:
        warnings.warn(
            f"{END_OF_TEXT} occurs {counted(inside, 'times')} inside documents, where it is plain text: to separate "
            f"documents, give it a line of its own, or use --separator '{END_OF_TEXT}'",
            stacklevel=2,
        )


def fingerprint(paths: Sequence[Path]) -> str:
    """A sha256 of the files' contents and kinds, in their order; their names do not count.

    Raises:
        ValueError: a file is missing, or is a pipe, of which nothing would be left to read.
    """
    digests = [_sha256(file) for path in paths for file in text_files(path)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _sha256(file: Path) -> str:
    if file.is_fifo():
        raise ValueError(
            f"{file} is a pipe, which can be read only once; its text is needed twice: write it into a file"
        )
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if is_jsonl(file):  # the same bytes would be read otherwise in a .txt
        return hashlib.sha256(f"jsonl {digest}".encode()).hexdigest()
    return digest


def _of_file(file: Path, text_field: str, separator: str | None) -> Iterator[str]:
    if is_jsonl(file):
        return _objects(file, text_field)
    return _sections(file) if separator is None else _parts(file, separator)


def _parts(file: Path, separator: str) -> Iterator[str]:
    """What stands between separators, which may lie within a line or over several."""
    if not separator:
        raise ValueError("the separator of documents (--separator) needs at least one character")
    text, occurs = "", False
    for line in read_lines(file):
        start, unsearched = 0, max(0, len(text) - len(separator) + 1)
        text += line
        while (end := text.find(separator, unsearched)) >= 0:
            yield text[start:end]
            start = unsearched = end + len(separator)
            occurs = True
        text = text[start:]  # once a line: all documents may stand in one
    yield text
    if not occurs:
        newline = "; for a newline write $'\\n' in bash" if "\\n" in separator else ""
        warnings.warn(
            f"{file} is one document: the separator {separator!r} does not occur in it{newline}", stacklevel=3
        )


def _sections(file: Path) -> Iterator[str]:
    """The parts between lines `<|endoftext|>`, read line by line, so that a file of any size will do."""
    lines: list[str] = []
    for line in read_lines(file):
        if line.rstrip() == END_OF_TEXT:
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def _objects(file: Path, text_field: str) -> Iterator[str]:
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        entry = parse(line, f"{file}, line {number}")
        if not isinstance(entry, dict) or not isinstance(entry.get(text_field), str):
            there = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(
                f"{file}, line {number}: no text in field {text_field!r} (there is: {there}); give --text-field"
            )
        yield entry[text_field]
