"""`python -m minigpt.merge_lora` as a user meets it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from command import run, save, tiny

from minigpt import GPT2, Tokenizer, merge_lora
from minigpt.training.adapters import load_adapter, save_adapter
from minigpt.training.lora import attach

TOKENS = torch.arange(8)[None]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", tiny())


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    model = GPT2.from_pretrained(base)
    attach(model, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    save_adapter(model, tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


@torch.no_grad()
def test_the_merged_model_is_the_base_with_its_adapter(base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ("--model", base, "--adapter", adapter, "--out", out)
    result = run(*flags, python=("-m", "minigpt.merge_lora"))
    assert (result.code, result.out) == (0, "")
    assert result.err == f"minigpt.merge_lora: {out} holds the merged model: --model {out}\n"
    model, merged = GPT2.from_pretrained(base), GPT2.from_pretrained(out)
    assert (model(TOKENS) - merged(TOKENS)).abs().max() > 0.01
    load_adapter(model, adapter)
    torch.testing.assert_close(merged(TOKENS), model(TOKENS), rtol=0, atol=1e-5)
    assert Tokenizer.from_pretrained(out).encode("né") == Tokenizer.from_pretrained(base).encode("né")


def test_the_precision_is_that_of_the_loaded_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    flags = ["--model", base, "--adapter", adapter, "--out", tmp_path / "out", "--dtype", "bfloat16"]
    assert merge_lora.main([str(flag) for flag in flags]) == 0
    model = GPT2.from_pretrained(tmp_path / "out", dtype=None, device="cpu")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--adapter {adapter}", 2, ["--out", "--help"]),
        ("--out {out}", 2, ["--adapter", "--help"]),
        ("--adapter {adapter} --out {base}", 2, ["--out {base} holds a model already", "remove it"]),
        ("--adapter {adapter} --out ''", 2, ["--out needs the name of a folder, got ''"]),
        ("--adapter '' --out {out}", 2, ["--adapter needs the name of a folder, got ''"]),
        ("--adapter {adapter} --out {adapter}", 2, ["--out {adapter} holds an adapter already", "another folder"]),
        ("--adapter {adapter} --out {base}/config.json/new", 2, ["{base}/config.json is no folder that can be"]),
        ("--adapter {adapter} --out {out} --threads 0", 2, ["--threads", "from 1"]),
        ("--adapter no/such --out {out}", 3, ["--adapter no/such: there is no such folder"]),
        ("--adapter {adapter} --out {out} --quantize int8", 2, ["--quantize is for after the merge"]),
        ("--adapter {run} --out {out}", 3, ["{run} holds no adapter: it lacks adapter_config.json; {adapter} has one"]),
        ("--adapter {base} --out {out}", 3, ["{base} holds no adapter: it lacks adapter_config.json"]),
        ("--adapter {dora} --out {out}", 3, ["use_dora=True is not supported", "merge_and_unload"]),
        ("--adapter {adapter} --out {out} --model no/such/model", 3, ["'no/such/model' does not exist"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    code: int,
    words: list[str],
) -> None:
    dora = tmp_path / "dora"
    dora.mkdir()
    for file in adapter.iterdir():
        (dora / file.name).write_bytes(file.read_bytes().replace(b'"use_dora": false', b'"use_dora": true'))
    places = {"base": base, "adapter": adapter, "dora": dora, "run": tmp_path, "out": tmp_path / "out"}
    assert merge_lora.main(["--model", str(base), *shlex.split(flags.format(**places))]) == code
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("minigpt.merge_lora: ")
    assert not [word for word in words if word.format(**places) not in line]
    assert not (tmp_path / "out").exists()


def test_help_teaches_and_does_not_wait_for_torch() -> None:
    result = run("--help", python=("-X", "importtime", "-m", "minigpt.merge_lora"))
    assert result.code == 0
    assert all(
        word in result.out for word in ("--adapter DIR", "--out DIR", "PEFT", "examples:", "exit codes:")
    )
    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines()}
    assert "argparse" in imported
    assert "torch" not in imported
