"""A job without a model: every row once, whatever the blocks, however often it is interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minigpt.jobs.blocks import Source
from minigpt.jobs.job import Job, run_here
from minigpt.jobs.output import Done, Outcome, Output
from minigpt.jobs.plan import Plan, plan
from minigpt.jobs.rows import Row
from minigpt.jobs.storage import folder

KINDS = {"id": str, "prompt": str, "text": str, "tokens": [int]}


def shouting() -> Callable[[Sequence[Row], int], Iterator[Outcome]]:
    """Work that needs no model: the prompt in capitals; the rows come out in another order than they went in."""

    def work(rows: Sequence[Row], before: int) -> Iterator[Outcome]:
        for position, row in reversed(list(enumerate(rows))):
            prompt = row.values.get("prompt")
            name = str(row.values.get("id") or row.id)
            if not prompt:
                yield Outcome(position, name, reason=row.reason or "its prompt is empty")
            else:
                record = {"id": name, "prompt": prompt, "text": prompt.upper(), "tokens": [*prompt.encode()]}
                yield Outcome(position, name, [record])

    return work


def job(source: Path | str, out: Path | str, format: str, rows: int) -> tuple[Job, Plan]:
    read = Source.of(str(source), text="prompt", reads=("id", "prompt"), drops=frozenset({"id", "prompt"}))
    cut = plan(read, rows, format == "parquet")
    output = Output(folder(str(out)), format, KINDS, schema=cut.schema)
    output.begin({"input": cut.sha256, "rows": rows})
    return Job(read, output, shouting), cut


def run(source: Path | str, out: Path | str, format: str = "jsonl", rows: int = 3) -> list[Done]:
    one, cut = job(source, out, format, rows)
    done = list(run_here(one, cut.blocks, lambda n: None))
    one.output.write_rejected([each.number for each in done])
    return done


def lines(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted(out.glob("part-*"))
        for line in file.read_text("utf-8").splitlines()
    ]


def tables(out: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(out.glob("part-*.parquet")))


def rejected(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    root = tmp_path / "prompts"
    (root / "more").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"\xef\xbb\xbfOnce\r\n\nThe king\n\xff\nEnd")
    rows: list[dict[str, Any]] = [
        {"prompt": f"Number {i}", "text": f"given {i}", "year": 1800 + i, "tags": ["witch", i]}
        for i in range(7)
    ]
    rows[2]["id"] = "two"
    written = "\n\n".join(json.dumps(row) for row in rows)
    (root / "more" / "b.JSONL").write_text(written + "\n{broken\n[1]\n" + json.dumps({"text": "no prompt"}))
    (root / "notes.md").write_text("not a prompt")
    return root


EXPECTED = [
    "a.txt:1", "a.txt:3", "a.txt:5", "more/b.JSONL:1", "more/b.JSONL:3", "two", "more/b.JSONL:7", "more/b.JSONL:9",
    "more/b.JSONL:11", "more/b.JSONL:13",
]  # fmt: skip
REASONS = {
    "a.txt:2": "its prompt is empty",
    "a.txt:4": "it is not UTF-8 (byte 0 of the line)",
    "more/b.JSONL:14": "the line is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    "more/b.JSONL:15": "the line must hold an object, got [1]",
    "more/b.JSONL:16": "its prompt is empty",
}


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_every_row_is_there_once_in_order_whatever_the_blocks(
    prompts: Path, tmp_path: Path, rows: int
) -> None:
    done = run(prompts, tmp_path / "out", rows=rows)
    written = lines(tmp_path / "out")
    assert [row["id"] for row in written] == EXPECTED
    assert {row["id"]: row["reason"] for row in rejected(tmp_path / "out")} == REASONS
    assert (sum(one.read for one in done), sum(one.written for one in done)) == (15, 10)
    assert written[5] == {
        "id": "two", "prompt": "Number 2", "text": "NUMBER 2", "tokens": [*b"Number 2"], "input_text": "given 2",
        "year": 1802, "tags": ["witch", 2],
    }  # fmt: skip
    assert [row["text"] for row in written[:3]] == ["ONCE", "THE KING", "END"]


def test_json_becomes_parquet_with_the_same_columns_in_every_shard(prompts: Path, tmp_path: Path) -> None:
    run(prompts, tmp_path / "out", "parquet", rows=2)
    table = tables(tmp_path / "out")
    assert table.column("id").to_pylist() == EXPECTED
    assert table.column("year").to_pylist() == [None] * 3 + [*range(1800, 1807)]
    assert table.schema.field("year").type == pa.int64()
    assert table.column("tags").to_pylist()[3] == '["witch", 0]'
    assert table.column("input_text").to_pylist()[4] == "given 1"
    assert table.column("tokens").to_pylist()[0] == [*b"Once"]


def parquet(file: Path, n: int, group: int) -> pa.Table:
    table = pa.table(
        {
            "prompt": [f"Number {i}" if i % 5 else "" for i in range(n)],
            "when": pa.array(range(n), pa.timestamp("ns")),
            "seen": pa.array([i % 2 == 0 for i in range(n)]),
        }
    )
    pq.write_table(table, file, row_group_size=group)
    return table


@pytest.mark.parametrize(("rows", "group"), [(1, 4), (3, 4), (5, 100), (100, 3)])
def test_parquet_keeps_its_columns_to_the_bit(tmp_path: Path, rows: int, group: int) -> None:
    given = parquet(tmp_path / "p.parquet", 13, group)
    run(tmp_path / "p.parquet", tmp_path / "out", "parquet", rows)
    table = tables(tmp_path / "out")
    kept = [i for i in range(13) if i % 5]
    assert table.column("id").to_pylist() == [f"p.parquet:{i + 1}" for i in kept]
    assert table.select(["prompt", "when", "seen"]) == given.take(kept)
    run(tmp_path / "p.parquet", tmp_path / "as lines", "jsonl", rows)
    first = lines(tmp_path / "as lines")[0]
    assert (first["id"], first["when"], first["seen"]) == ("p.parquet:2", "1970-01-01 00:00:00", False)
    assert [row["id"] for row in rejected(tmp_path / "out")] == ["p.parquet:1", "p.parquet:6", "p.parquet:11"]


def test_a_job_goes_on_where_it_stood(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = tmp_path / "whole"
    run(prompts, whole, rows=2)
    one, cut = job(prompts, out, "jsonl", 2)
    first = run_here(one, cut.blocks, lambda n: None)
    next(first), next(first)
    before = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    # This block was not reached: none is done by its shard alone.
    (out / "part-00002.jsonl").write_text('{"id": "half a sh')
    assert [one.number for one in one.output.all_done().values()] == [0, 1]
    run(prompts, out, rows=2)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} == {
        f.name: f.read_bytes() for f in whole.iterdir() if f.is_file()
    }


def test_another_job_is_not_mixed_in(prompts: Path, tmp_path: Path) -> None:
    run(prompts, tmp_path / "out", rows=2)
    with pytest.raises(ValueError, match="holds the output of another job: rows was 2, now 3"):
        run(prompts, tmp_path / "out", rows=3)
    (prompts / "a.txt").write_text("Twice\n")
    with pytest.raises(ValueError, match="another job: the input has changed since; give the same again"):
        run(prompts, tmp_path / "out", rows=2)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "part-00007.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"holds part-00007.jsonl, but not the manifest of a job"):
        run(prompts, tmp_path / "strange", rows=2)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist: name a file, a folder or a glob"):
        run(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"has no file that can be read: name a \.jsonl, \.parquet or \.txt file"
    ):
        run(tmp_path / "*.csv", tmp_path / "out")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(ValueError, match=r"bad\.parquet is no Parquet file, or damaged"):
        run(tmp_path / "bad.parquet", tmp_path / "out")
    pq.write_table(pa.table({"question": ["Who?"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="has no column 'prompt'; it has question"):
        run(tmp_path / "other.parquet", tmp_path / "out")
    (tmp_path / "two").mkdir()
    pq.write_table(pa.table({"prompt": ["a"], "n": [1]}), tmp_path / "two" / "1.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "n": [["x"]]}), tmp_path / "two" / "2.parquet")
    with pytest.raises(ValueError, match=r"columns of the Parquet files differ: .*; use --format jsonl"):
        run(tmp_path / "two", tmp_path / "out", "parquet")


def test_a_damaged_record_names_itself(prompts: Path, tmp_path: Path) -> None:
    run(prompts, tmp_path / "out", rows=2)
    record = tmp_path / "out" / "_job" / "block-00001.json"
    for content in ("", "{}", '{"done": [1], "rejected": []}', '{"done": ["x", 1, 2, 3, 4], "rejected": []}'):
        record.write_text(content)
        with pytest.raises(ValueError, match=r"remove .*block-00001\.json, and its block is done again"):
            run(prompts, tmp_path / "out", rows=2)
