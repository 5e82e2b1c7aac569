"""Cutting the input of a job into blocks: one pass over it, which keeps nothing but the places."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from minigpt.data.lines import lines_of
from minigpt.jobs.blocks import Block, Source, buffered, suffix
from minigpt.jobs.columns import Kinds, note_kinds
from minigpt.jobs.parquet import schema_of, schema_of_kinds, united, without
from minigpt.jobs.rows import Piece

AT_ONCE = 1 << 20  # bytes


@dataclass(frozen=True)
class Plan:
    """How an input is cut into blocks, and what it was when it was cut."""

    blocks: tuple[Block, ...]
    sha256: str  # of all names and contents
    schema: Any  # of the columns that a Parquet output keeps, a pyarrow.Schema; None for another output

    @property
    def n_rows(self) -> int:
        return sum(block.n_rows for block in self.blocks)


class _Place(NamedTuple):
    """Where a block is in its file; see `Block`."""

    begin: int
    before: int
    n_rows: int


@dataclass
class _Columns:
    """What is known of the columns that the output keeps."""

    kinds: Kinds = field(default_factory=dict)
    schemas: list[Any] = field(default_factory=list)


def plan(source: Source, rows_per_block: int, to_parquet: bool) -> Plan:
    """Cuts an input into blocks of so many rows, the last of a file with fewer.

    Raises:
        OSError: a file cannot be read.
        ValueError: a Parquet file is damaged or lacks the column of the texts, or columns of one name differ.
    """
    blocks: list[Block] = []
    digest, columns, n_rows = hashlib.sha256(), _Columns(), 0
    for name in source.files:
        of_file = hashlib.sha256()
        with source.folder.open(name) as file:
            cut = _parquet_places if suffix(name) == ".parquet" else _text_places
            for place in cut(source, name, file, rows_per_block, of_file, columns if to_parquet else None):
                blocks.append(Block(len(blocks), name, *place, n_rows))
                n_rows += place.n_rows
        digest.update(f"{of_file.hexdigest()} {name}\n".encode(errors="surrogatepass"))
    schema = united([*columns.schemas, schema_of_kinds(columns.kinds)]) if to_parquet else None
    return Plan(tuple(blocks), digest.hexdigest(), schema)


def _parquet_places(
    source: Source, name: str, file: BinaryIO, n: int, digest: Any, columns: _Columns | None
) -> Iterator[_Place]:
    schema, n_rows = schema_of(file, f"{source.folder}/{name}", source.text)
    if columns is not None:
        columns.schemas.append(without(schema, source.drops))
    file.seek(0)
    while part := file.read(AT_ONCE):
        digest.update(part)
    return (_Place(begin, begin, min(n, n_rows - begin)) for begin in range(0, n_rows, n))


def _text_places(
    source: Source, name: str, file: BinaryIO, n: int, digest: Any, columns: _Columns | None
) -> Iterator[_Place]:
    pieces = source.split(name)(lines_of(buffered(file), digest.update), 0)
    if columns is not None and suffix(name) == ".jsonl":
        pieces = _noting(pieces, source, name, columns.kinds)
    begin = before = n_rows = 0
    for piece in pieces:
        n_rows += 1
        if n_rows == n:
            yield _Place(begin, before, n_rows)
            begin, before, n_rows = piece.end, piece.number, 0
    if n_rows:
        yield _Place(begin, before, n_rows)


def _noting(pieces: Iterable[Piece], source: Source, name: str, kinds: Kinds) -> Iterator[Piece]:
    """The pieces; what columns they have is noted."""
    for piece in pieces:
        with suppress(ValueError):  # of a row that will be rejected
            note_kinds(kinds, source.kept(source.values(name, piece)))
        yield piece
