"""The output of a job: shards, what is known of each, and a manifest, so that a job that was killed goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from minigpt.jobs.blocks import Batch, Block
from minigpt.jobs.columns import renamed
from minigpt.jobs.parquet import objects_of, table_of, table_of_objects, write_table
from minigpt.jobs.storage import Folder
from minigpt.json_files import expect, field, parse

FOLDER = "_job"  # readers of data sets leave names with an underscore out
MANIFEST = f"{FOLDER}/manifest.json"
REJECTED = "rejected.jsonl"


class Outcome(NamedTuple):
    """What became of one row: its records, or the reason why it has none."""

    position: int  # in its block
    id: str
    records: Sequence[Mapping[str, Any]] = ()
    reason: str = ""
    tokens: int = 0  # generated or scored


class Done(NamedTuple):
    """How a block ended: how many rows it has, and how many of them have records or were rejected."""

    number: int
    read: int
    written: int
    rejected: int
    tokens: int


@dataclass(frozen=True)
class Output:
    """A folder of shards, one for each block."""

    folder: Folder
    format: str  # "parquet" or "jsonl"
    kinds: Mapping[str, Any]  # of the records' fields; see `parquet.arrow_type`
    reserved: frozenset[str] = frozenset()  # other names that a column of the input does not keep
    schema: Any = None  # of the columns that are kept, if they are written as Parquet

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Begins a job with these facts, or goes on with it; one that has done nothing yet may become another.

        Raises:
            OSError: the folder cannot be read or written.
            ValueError: it holds the output of another job.
        """
        facts = json.loads(json.dumps(dict(facts)))
        for name in ("", FOLDER):
            self.folder.tidy(name)
        manifest, shards = self.manifest(), self.folder.find("part-*")
        if manifest is None and shards:
            raise ValueError(
                f"{self.folder} holds {shards[0]}, but not the manifest of a job: name another folder"
            )
        if manifest is None or not self.all_done():
            for shard in shards:
                self.folder.delete(shard)
            content = json.dumps(facts, indent=2).encode()
            self.folder.write(MANIFEST, lambda file: file.write(content))
            return
        for name in sorted({*manifest, *facts}):
            if manifest.get(name) != facts.get(name):
                raise ValueError(_difference(self.folder, name, manifest.get(name), facts.get(name)))

    def manifest(self) -> dict[str, Any] | None:
        """The facts of the job that was begun here, if one was."""
        if not self.folder.exists(MANIFEST):
            return None
        return expect(
            dict, parse(self._bytes(MANIFEST), f"{self.folder}/{MANIFEST}"), f"{self.folder}/{MANIFEST}"
        )

    def shard(self, number: int) -> str:
        """The name of a block's shard."""
        return f"part-{number:05}.{self.format}"

    def done(self, number: int) -> Done | None:
        """How a block ended, if it has."""
        if not self.folder.exists(_record(number)):
            return None
        return self._read_record(number)[0]

    def all_done(self) -> dict[int, Done]:
        """How all blocks ended that have, by their numbers."""
        names = self.folder.find(f"{FOLDER}/block-*.json")
        numbers = (int(found[1]) for name in names if (found := re.search(r"block-(\d+)\.json$", name)))
        return {number: self._read_record(number)[0] for number in numbers}

    def write(self, block: Block, batch: Batch, outcomes: Sequence[Outcome]) -> Done:
        """Writes a block's shard and then that it is done; if it is done twice, the second shard is as the first.

        Raises:
            OSError: it cannot be written.
        """
        outcomes = sorted(outcomes, key=lambda one: one.position)
        rejected = [{"id": one.id, "reason": one.reason} for one in outcomes if one.reason]
        records = [(one.position, record) for one in outcomes for record in one.records]
        if records:
            fill = self._parquet if self.format == "parquet" else self._jsonl
            self.folder.write(self.shard(block.number), lambda file: fill(file, batch, records))
        n = len(batch.rows)
        n_tokens = sum(one.tokens for one in outcomes)
        done = Done(block.number, n, n - len(rejected), len(rejected), n_tokens)
        content = json.dumps({"done": done, "rejected": rejected}, ensure_ascii=False)
        self.folder.write(_record(block.number), lambda file: file.write(content.encode(errors="replace")))
        return done

    def write_rejected(self, numbers: Sequence[int]) -> None:
        """Writes the rejected rows of these blocks, one object a line."""

        def fill(file: BinaryIO) -> None:
            for number in numbers:
                for row in self._read_record(number)[1]:
                    file.write(_line(row))

        self.folder.write(REJECTED, fill)

    def _parquet(
        self, file: BinaryIO, batch: Batch, records: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> None:
        positions = [position for position, _ in records]
        if isinstance(batch.kept, list):
            kept = table_of_objects([batch.kept[position] for position in positions], self.schema)
        else:
            kept = batch.kept.take(positions)
        own, names = [record for _, record in records], self._names(self.schema.names)
        write_table(table_of(own, self.kinds, kept, self.schema, names), file)

    def _jsonl(self, file: BinaryIO, batch: Batch, records: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        kept = batch.kept if isinstance(batch.kept, list) else objects_of(batch.kept)
        for position, record in records:
            names = self._names(list(kept[position]))
            file.write(_line({**record, **{names[name]: value for name, value in kept[position].items()}}))

    def _names(self, columns: Sequence[str]) -> dict[str, str]:
        """What the columns of the input are called in the output."""
        return renamed(columns, {*self.kinds, *self.reserved})

    def _read_record(self, number: int) -> tuple[Done, list[dict[str, str]]]:
        """How a block ended, and the rows of it that were rejected.

        Raises:
            ValueError: its record is damaged.
        """
        name = _record(number)
        where = f"{self.folder}/{name}"
        try:
            record = expect(dict, parse(self._bytes(name), where), where)
            done = [expect(int, value, where, "done") for value in field(list, record, "done", where)]
            return Done(*done), field(list, record, "rejected", where)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{error}: remove {where}, and its block is done again") from None

    def _bytes(self, name: str) -> bytes:
        with self.folder.open(name) as file:
            return file.read()


def _record(number: int) -> str:
    return f"{FOLDER}/block-{number:05}.json"


def _line(fields: Mapping[str, Any]) -> bytes:
    """One object on one line; what JSON has no word for, such as a date in Parquet, as text."""
    return json.dumps(fields, ensure_ascii=False, default=str).encode(errors="replace") + b"\n"


def _difference(folder: Folder, name: str, there: object, asked: object) -> str:
    before, now = ("not given" if value is None else f"{value!r:.60}" for value in (there, asked))
    what = (
        f"the {name} has changed since" if name in ("input", "model") else f"{name} was {before}, now {now}"
    )
    return f"{folder} holds the output of another job: {what}; give the same again, or another --out"
