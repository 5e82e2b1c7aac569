"""`generate --prompts PATH --out DIR`: every prompt once, the same text whatever the shards, and no matter how often killed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import Result, call, rows_in, save, start, tiny, wait

SAMPLING = ("--top-p", 0.95, "--seed", 7, "--max-new-tokens", 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny(initializer_range=0.5))


def generate(*flags: object) -> Result:
    return call(*flags, "--threads", 1)


def write_prompts(folder: Path, n: int = 12) -> Path:
    """Prompts in a file of each kind, some with an id, a length, a seed or columns of their own."""
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {"prompt": f"The cat {i}", "topic": i % 3, "text": "mine"} for i in range(n)
    ]
    rows[1] |= {"id": "second", "max_new_tokens": 2}
    rows[2] |= {"id": 7, "seed": 99}
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "b.txt").write_text("Once\nThere was\n")
    return folder


def without_logprobs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that does not depend on what was beside a row in its batch, up to rounding."""
    return [{name: value for name, value in row.items() if name not in ("logprobs", "score")} for row in rows]


def test_a_shard_has_what_json_prints(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "in")
    result = generate(
        "--prompts",
        prompts,
        "--out",
        tmp_path / "out",
        "--model",
        model,
        *SAMPLING,
        "--json",
        "--logprobs",
        2,
    )
    assert (result.code, result.out) == (0, ""), result.err
    assert "14 prompts read, 14 written, 0 rejected" in result.err
    assert "seed 7" in result.err
    assert not (tmp_path / "out" / "rejected.jsonl").exists()
    found = rows_in(tmp_path / "out")
    assert [row["id"] for row in found[:4]] == ["a.jsonl:1", "second", "7", "a.jsonl:4"]
    assert [row["id"] for row in found[12:]] == ["b.txt:1", "b.txt:2"]
    assert [row["prompt_index"] for row in found] == [*range(14)]
    assert (
        len(found[1]["tokens"]),
        found[1]["max_new_tokens"],
        found[2]["seed"],
        found[2]["input_seed"],
    ) == (2, 2, 99, 99)
    alone = generate("--prompts", prompts / "a.jsonl", "--json", "--model", model, *SAMPLING, "--logprobs", 2)
    printed = {row["id"]: row for row in map(json.loads, alone.out.splitlines())}
    for row in found[:12]:
        same = printed[row["id"]]
        for name in (
            "prompt",
            "text",
            "tokens",
            "token_strings",
            "prompt_tokens",
            "finish_reason",
            "topic",
            "input_text",
        ):
            assert row[name] == same[name], name
        assert row["logprobs"] == pytest.approx(same["logprobs"], abs=1e-4)
        assert [len(step) for step in row["top_logprobs"]] == [2] * len(row["tokens"])


def test_shards_of_any_size_and_both_formats_have_the_same_texts(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "in")
    flags = ("--prompts", prompts, "--model", model, *SAMPLING, "--num-return-sequences", 2)
    for rows in (1, 5, 100):
        assert generate(*flags, "--out", tmp_path / str(rows), "--shard-rows", rows).code == 0
    found = rows_in(tmp_path / "1")
    assert len(found) == 28
    assert (
        without_logprobs(found)
        == without_logprobs(rows_in(tmp_path / "5"))
        == without_logprobs(rows_in(tmp_path / "100"))
    )
    assert generate(*flags, "--out", tmp_path / "p", "--format", "parquet").code == 0
    files = sorted((tmp_path / "p").glob("part-*.parquet"))
    table = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["tokens"] for row in table] == [row["tokens"] for row in found]
    assert [row["topic"] for row in table] == [row.get("topic") for row in found]


def test_bad_rows_are_rejected_with_their_reasons_and_the_rest_is_written(
    model: Path, tmp_path: Path
) -> None:
    bad = [b'{"prompt": ""}', b'{"text": "x"}', b"{", b"\xff", b'{"prompt": "x", "max_new_tokens": 0}',
           json.dumps({"prompt": "long " * 20}).encode(), b'{"prompt": [1]}',
           b'{"prompt": "x", "seed": 9223372036854775808}']  # fmt: skip
    (tmp_path / "p.jsonl").write_bytes(b"\n".join([b'{"prompt": "Once"}', *bad, b'{"prompt": "End"}']))
    result = generate(
        "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out", "--model", model, "--shard-rows", 4
    )
    assert result.code == 1
    assert "10 prompts read, 2 written, 8 rejected" in result.err
    assert [row["id"] for row in rows_in(tmp_path / "out")] == ["p.jsonl:1", "p.jsonl:10"]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected] == [f"p.jsonl:{number}" for number in range(2, 10)]
    for row, reason in zip(rejected, ("empty", "lacks the field prompt", "not JSON", "not UTF-8", "at least 1", "the model's context length is 32", "must be a text", "its seed exceeds"), strict=True):  # fmt: skip
        assert reason in row["reason"]


def test_half_a_surrogate_pair_is_no_text(model: Path, tmp_path: Path) -> None:
    """JSON can have it, UTF-8 cannot: in an id it is refused, elsewhere it becomes a question mark."""
    row = b'{"prompt": "x\\ud800", "topic": "\\ud800", "\\ud800": 1}\n{"prompt": "x", "id": "\\ud800"}'
    (tmp_path / "p.jsonl").write_bytes(row)
    for form in ("jsonl", "parquet"):
        out = tmp_path / form
        assert (
            generate("--prompts", tmp_path / "p.jsonl", "--out", out, "--model", model, "--format", form).code
            == 1
        )
        (written,) = (
            rows_in(out) if form == "jsonl" else pq.read_table(out / "part-00000.parquet").to_pylist()
        )
        assert (written["prompt"], written["topic"], written["?"]) == ("x?", "?", 1)


def test_the_seed_of_a_job_is_its_own(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "in")
    flags = ("--prompts", prompts, "--model", model, "--top-p", 0.9, "--max-new-tokens", 4, "--shard-rows", 4)
    assert generate(*flags, "--out", tmp_path / "out").code == 0
    seed = rows_in(tmp_path / "out")[0]["seed"]
    for file in ("part-00001.jsonl", "_job/block-00001.json"):
        (tmp_path / "out" / file).unlink()
    assert generate(*flags, "--out", tmp_path / "out").code == 0
    assert generate(*flags, "--out", tmp_path / "again", "--seed", seed).code == 0
    assert without_logprobs(rows_in(tmp_path / "out")) == without_logprobs(rows_in(tmp_path / "again"))
    other = generate(*flags, "--out", tmp_path / "out", "--seed", seed + 1)
    assert f"holds the output of another job: seed was {seed}, now {seed + 1}" in other.mistake
    other = generate(*flags, "--out", tmp_path / "out", "--temperature", 0.5)
    assert (
        "another job: --temperature was not given, now '0.5'; give the same again, or another --out"
        in other.mistake
    )


def test_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "in")
    other = save(tmp_path / "other", tiny(initializer_range=0.4))
    assert generate("--prompts", prompts, "--out", tmp_path / "out", "--model", model).code == 0
    result = generate("--prompts", prompts, "--out", tmp_path / "out", "--model", other)
    assert "another job: the model has changed since" in result.mistake


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_killed_job_goes_on(model: Path, tmp_path: Path, blocks: int) -> None:
    """Killed by SIGKILL, in a process of its own, once so many blocks are done."""
    prompts, whole = write_prompts(tmp_path / "in", 60), tmp_path / "whole"
    flags = ("--prompts", prompts, "--model", model, *SAMPLING, "--shard-rows", 8, "--threads", 1)
    assert call(*flags, "--out", whole).code == 0
    process = start(*flags, "--out", tmp_path / "out")
    while process.poll() is None and len([*(tmp_path / "out" / "_job").glob("block-*")]) < blocks:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert wait(process).code in (-signal.SIGKILL, 0)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "_job").glob("block-*")}
    assert call(*flags, "--out", tmp_path / "out").code == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert without_logprobs(rows_in(tmp_path / "out")) == without_logprobs(rows_in(whole))


def test_ctrl_c_keeps_the_blocks_that_are_done(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "in", 2000)
    flags = ("--prompts", prompts, "--out", tmp_path / "out", "--model", model, *SAMPLING, "--shard-rows", 8)
    process = start(*flags, "--threads", 1)
    while process.poll() is None and not [*(tmp_path / "out" / "_job").glob("block-*")]:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    result = wait(process)
    n = len(rows_in(tmp_path / "out"))
    assert (result.code, 8 <= n < 2002) == (130, True)
    assert f"interrupted: {n:,} of 2,002 prompts are done; the same command goes on from there" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--output", "x.jsonl"],
            "--out writes a folder of shards, --output one file: leave one of them out",
        ),
        (["--echo"], "--echo has no effect with --out"),
        (["--explain"], "--explain is for a few prompts, --prompts for many"),
        (["--seed", 2**63], "--seed must be at most 9223372036854775807 with --out"),
        (["--workers", 2], "--workers has no effect without --ray"),
    ],
)
def test_mistakes_are_one_line(model: Path, tmp_path: Path, flags: list[object], message: str) -> None:
    prompts = write_prompts(tmp_path / "in")
    result = generate("--prompts", prompts, "--out", tmp_path / "out", "--model", model, *flags)
    assert (result.code, message in result.mistake) == (2, True)


def test_the_output_is_no_part_of_the_input(model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "in")
    for out in (prompts, prompts / "out"):
        result = generate("--prompts", prompts, "--out", out, "--model", model)
        assert f"--out {out} lies in {prompts}, whose files are the input" in result.mistake
    assert generate("--prompts", prompts / "b.txt", "--out", prompts, "--model", model).code == 0


def test_out_needs_prompts(tmp_path: Path) -> None:
    assert "--out needs --prompts PATH" in generate("Once", "--out", tmp_path / "out").mistake


def test_without_an_extra_one_line_names_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"prompt": ["Once"]}), tmp_path / "p.parquet")
    monkeypatch.setattr("minigpt.jobs.extras.find_spec", lambda name: None)
    for flags, extra in ((["--ray"], "ray"), (["--format", "parquet"], "data"), ([], "data")):
        result = generate(
            "--prompts", tmp_path / "p.parquet", "--out", tmp_path / "out", "--model", model, *flags
        )
        assert (result.code, f"pip install 'minigpt[{extra}]'" in result.mistake) == (2, True)
