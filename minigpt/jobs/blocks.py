"""The input of a job, cut into blocks: what one worker does at a time, and what becomes one shard of the output."""

from __future__ import annotations

from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from minigpt.data.lines import lines_of, object_of, text_of
from minigpt.jobs.columns import utf8
from minigpt.jobs.extras import require
from minigpt.jobs.parquet import read_table
from minigpt.jobs.rows import Piece, Row, Split, each_document, each_line, each_object
from minigpt.jobs.storage import Folder, folder, locate

SUFFIXES = (".jsonl", ".parquet", ".txt")


class Block(NamedTuple):
    """Some rows of one file, one after the other."""

    number: int
    file: str  # its name in the folder of the input
    begin: int  # bytes before it; of a Parquet file, rows
    before: int  # the number of the last row before it in its file
    n_rows: int
    rows_before: int  # of the whole input


class Batch(NamedTuple):
    """A block's rows, and all columns of the input that the output keeps, row by row."""

    rows: list[Row]
    kept: Any  # a list of dictionaries; of a Parquet file, a pyarrow.Table


@dataclass(frozen=True)
class Source:
    """The files of the input, and what of them is read and kept."""

    path: str  # as it was given
    folder: Folder
    files: tuple[str, ...]
    text: str  # the field that holds the text; a row of a .txt file has no other
    reads: tuple[str, ...]  # the fields that are read
    drops: frozenset[str]  # those that the output does not keep, for it has them itself
    documents: bool = False  # between lines <|endoftext|> of .txt files; else each line is a text

    @classmethod
    def of(cls, path: str, **what: Any) -> Source:
        """The .jsonl, .parquet and .txt files that a path stands for.

        Raises:
            OSError: they cannot be reached.
            ValueError: there are none.
        """
        place, names = locate(path)
        files = tuple(name for name in names if suffix(name) in SUFFIXES)
        if not files:
            raise ValueError(
                f"{path} has no file that can be read: name a .jsonl, .parquet or .txt file, a folder of them or a glob"
            )
        if any(suffix(name) == ".parquet" for name in files):
            require("pyarrow", "data", f"{path}, Parquet,")
        return cls(path, place, files, **what)

    @property
    def is_parquet(self) -> bool:
        """Whether all files are."""
        return all(suffix(name) == ".parquet" for name in self.files)

    def holds(self, path: str) -> bool:
        """Whether a folder lies in the input, so that what is written there would be read by the next run."""
        return f"{folder(path)}/".startswith(f"{folder(self.path)}/")

    def read(self, block: Block) -> Batch:
        """The rows of a block."""
        with self.folder.open(block.file) as file:
            if suffix(block.file) == ".parquet":
                return self._read_parquet(file, block)
            file.seek(block.begin)
            pieces = self.split(block.file)(lines_of(buffered(file)), block.before)
            rows = [self._row(block.file, piece) for piece in islice(pieces, block.n_rows)]
        return Batch(rows, [self.kept(row.values) for row in rows])

    def split(self, file: str) -> Split:
        """What cuts a text file into rows."""
        if suffix(file) == ".jsonl":
            return each_object
        return each_document if self.documents else each_line

    def values(self, file: str, piece: Piece) -> dict[str, Any]:
        """The fields of a row of a text file.

        Raises:
            ValueError: it is too long, not UTF-8, or in a .jsonl file no JSON object.
        """
        text = text_of(piece.data, first=piece.number == 1)
        return object_of(text) if suffix(file) == ".jsonl" else {self.text: text}

    def kept(self, values: dict[str, Any]) -> dict[str, Any]:
        return {utf8(name): value for name, value in values.items() if name not in self.drops}

    def _row(self, file: str, piece: Piece) -> Row:
        try:
            return Row(f"{file}:{piece.number}", self.values(file, piece))
        except ValueError as error:
            return Row(f"{file}:{piece.number}", {}, str(error))

    def _read_parquet(self, file: BinaryIO, block: Block) -> Batch:
        table = read_table(file, block.begin, block.n_rows)
        known = [name for name in self.reads if name in table.column_names]
        numbered = enumerate(table.select(known).to_pylist(), block.before + 1)
        rows = [Row(f"{block.file}:{number}", values) for number, values in numbered]
        return Batch(rows, table.select([name for name in table.column_names if name not in self.drops]))


def suffix(name: str) -> str:
    """What a file's name says that it holds; upper and lower case are the same."""
    return PurePosixPath(name).suffix.lower()


def buffered(file: BinaryIO) -> BinaryIO:
    """The file with a buffer of C: those of fsspec read a line in Python."""
    if isinstance(file, BufferedReader):
        return file
    return cast(BinaryIO, BufferedReader(cast(RawIOBase, file), 1 << 20))
