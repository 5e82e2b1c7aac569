"""`minigpt quantize` and --quantize as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import call, run, save, tiny

from minigpt import GPT2, Tokenizer, quantize, train

KINDS = pytest.mark.parametrize("kind", ["int8", "float16"])


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save(tmp_path / "plain", tiny())


@KINDS
def test_the_result_is_read_by_other_commands(kind: str, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    result = run(plain, "--to", kind, "-o", out, python=("-m", "minigpt.quantize"))
    assert (result.code, result.out) == (0, "")
    size = (out / "model.safetensors").stat().st_size / 1e6
    assert result.err == f"minigpt.quantize: {out} holds the model, {size:.1f} MB of weights: --model {out}\n"
    assert GPT2.from_pretrained(out).quantization == kind
    assert Tokenizer.from_pretrained(out).encode("né") == Tokenizer.from_pretrained(plain).encode("né")
    flags = ("ab", "--max-new-tokens", 8, "--quiet")
    assert call(*flags, "--model", out).text == call(*flags, "--model", plain, "--quantize", kind).text


def test_the_model_may_be_named_as_in_other_commands(plain: Path, tmp_path: Path) -> None:
    flags = ("--to", "int8", "-o", tmp_path / "small", "--model", plain)
    twice = call(tmp_path, *flags, main=quantize.main)
    assert (twice.code, "the model is named twice" in twice.mistake) == (2, True)
    assert call(*flags, main=quantize.main).code == 0
    assert GPT2.from_pretrained(tmp_path / "small").quantization == "int8"


@KINDS
@torch.no_grad()
def test_a_flag_does_the_same_while_loading(kind: str, plain: Path) -> None:
    expected = GPT2.from_pretrained(plain).quantize(kind)(torch.arange(5)[None])
    assert torch.equal(GPT2.from_pretrained(plain, quantize=kind)(torch.arange(5)[None]), expected)
    assert call("ab", "--model", plain, "--quantize", kind, "--max-new-tokens", 3).code == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("{plain}", "--to", "int4", "-o", "{new}"), 2, ["--to", "int8", "float16"]),
        (("{plain}", "--to", "int8", "-o", "{plain}"), 2, ["holds a model already"]),
        (("{plain}", "--to", "int8", "-o", ""), 2, ["--out needs the name of a folder, got ''"]),
        (("", "--to", "int8", "-o", "{new}"), 3, ["a model is a directory", "got ''"]),
        (
            ("{plain}", "--to", "int8", "-o", "{plain}/config.json/new"),
            2,
            ["config.json is no folder that can be"],
        ),
        (("{plain}/none", "--to", "int8", "-o", "{new}"), 3, ["none"]),
        (("{plain}", "-o", "{new}"), 2, ["--to"]),
    ],
)
def test_mistakes_have_their_line(
    flags: tuple[str, ...], code: int, words: list[str], plain: Path, tmp_path: Path
) -> None:
    given = [flag.format(plain=plain, new=tmp_path / "new") for flag in flags]
    result = call(*given, main=quantize.main)
    assert result.code == code
    assert all(word in result.mistake for word in words)


def test_a_quantized_model_is_not_quantized_otherwise(plain: Path, tmp_path: Path) -> None:
    assert call(plain, "--to", "int8", "-o", tmp_path / "small", main=quantize.main).code == 0
    result = call(tmp_path / "small", "--to", "float16", "-o", tmp_path / "other", main=quantize.main)
    assert (result.code, result.mistake) == (
        3, "the weights are int8 already, and cannot be made float16: quantize the original",
    )  # fmt: skip


@pytest.mark.parametrize("flags", [("--device", "cuda"), ("--dtype", "bfloat16")])
def test_small_weights_are_for_the_cpu_and_float32(flags: tuple[str, str], plain: Path) -> None:
    result = call("ab", "--model", plain, "--quantize", "int8", *flags)
    assert (result.code, result.mistake) == (
        2, "--quantize int8 is for the CPU with float32 activations: leave out --device and --dtype",
    )  # fmt: skip


def test_training_does_not_begin_from_small_weights(plain: Path, tmp_path: Path) -> None:
    assert call(plain, "--to", "int8", "-o", tmp_path / "small", main=quantize.main).code == 0
    (tmp_path / "text.txt").write_text("abc " * 200)
    flags = (
        "--data",
        tmp_path / "text.txt",
        "--out",
        tmp_path / "out",
        "--init",
        tmp_path / "small",
        "--steps",
        1,
    )
    result = call(*flags, main=train.main)
    assert result.code == 2
    assert "has int8 weights, which cannot be trained: use the original" in result.err
