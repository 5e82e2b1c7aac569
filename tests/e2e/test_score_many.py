"""`score PATH --out DIR`: the losses of every document into shards, as `score` gives them one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Result, call, save, tiny

from minigpt.score.__main__ import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny(initializer_range=0.5))


def score(*flags: object) -> Result:
    return call(*flags, "--threads", 1, main=main)


def test_each_document_has_the_loss_that_it_has_alone(model: Path, tmp_path: Path) -> None:
    texts = [
        "Once there was a cat.\nIt ran.",
        "A mouse, which was longer than the context of this model, saw it.",
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(f"{texts[0]}\n<|endoftext|>\n\n<|endoftext|>\n{texts[1]}\n")
    rows: list[dict[str, Any]] = [
        {"text": texts[0], "id": "x", "loss": "old"},
        {"text": ""},
        {"no": 1},
        {"text": [1]},
    ]
    (tmp_path / "in" / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score(tmp_path / "in", "--out", tmp_path / "out", "--model", model, "--shard-rows", 2)
    assert result.code == 1
    assert result.out == ""
    assert "6 documents read, 3 written, 3 rejected" in result.err
    found = [
        row
        for file in sorted((tmp_path / "out").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    assert [row["id"] for row in found] == ["a.txt:1", "a.txt:2", "x"]
    assert found[2]["input_loss"] == "old"
    for row, text in zip(found, [*texts, texts[0]], strict=True):
        (alone,) = map(json.loads, score("--text", text, "--json", "--model", model).out.splitlines())
        for name in ("loss", "perplexity", "bits_per_byte"):
            assert row[name] == pytest.approx(alone[name], rel=1e-5)
        assert (row["tokens"], row["bytes"], row["words"]) == (
            alone["tokens"],
            alone["bytes"],
            alone["words"],
        )
    assert [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()] == [
        {"id": "b.jsonl:2", "reason": "the text is empty: there is nothing to predict"},
        {"id": "b.jsonl:3", "reason": "it lacks the field text"},
        {"id": "b.jsonl:4", "reason": "text must be a text, got [1]"},
    ]


def test_parquet_goes_in_by_its_column(model: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"tale": ["Once", "There was"], "year": [1812, 1815]}), tmp_path / "t.parquet")
    flags = (tmp_path / "*.parquet", "--out", tmp_path / "out", "--text-field", "tale", "--model", model)
    assert score(*flags, "--format", "jsonl").code == 0
    (file,) = (tmp_path / "out").glob("part-*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["id"], row["year"]) for row in found] == [("t.parquet:1", 1812), ("t.parquet:2", 1815)]
    again = score(*flags, "--format", "jsonl")
    assert (again.code, "2 documents read (2 of them before)" in again.err) == (0, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json"], "--json cannot be used with --out: leave one of them out"),
        (["b.txt"], "--out needs one FILE"),
        (["--workers", 2], "--workers has no effect without --ray: add it"),
        (["--shard-rows", 0], "--shard-rows must be at least 1, got 0"),
        (["--stride", 99], "--stride must be from 1 to the context length of 32, got 99"),
    ],
)
def test_mistakes_are_one_line(model: Path, tmp_path: Path, flags: list[object], message: str) -> None:
    (tmp_path / "a.txt").write_text("Once")
    result = score(tmp_path / "a.txt", *flags, "--out", tmp_path / "out", "--model", model)
    assert result.code == 2
    assert message in result.mistake
    # nothing stays behind
    assert score(tmp_path / "a.txt", "--out", tmp_path / "out", "--model", model).code == 0


def test_flags_of_jobs_need_one(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once")
    for flag in (["--ray"], ["--format", "jsonl"], ["--shard-rows", 3]):
        assert (
            f"{flag[0]} has no effect without --out DIR: add it" in score(tmp_path / "a.txt", *flag).mistake
        )
