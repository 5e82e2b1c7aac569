"""`python -m minigpt.verify` as a user meets it."""

from __future__ import annotations

import hashlib
import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Result, call, run, save, tiny
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from minigpt import GPT2, Tokenizer
from minigpt.lazy import hub_tqdm
from minigpt.verify import files
from minigpt.verify.files import check_files
from minigpt.verify.text import check_tokenizer

verify = import_module("minigpt.verify.__main__")
NEEDS_FORMULA = "with the formula in float64"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model", tiny(initializer_range=0.5))


def tell(*flags: object) -> Result:
    """The command, in this process."""
    return call(*flags, main=verify.main)


def checks(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.out)["checks"]}


def test_the_bundled_model_is_right() -> None:
    result = run(python=("-m", "minigpt.verify"))
    assert result.code == 0
    heading, *lines = result.out.splitlines()
    assert heading.split() == ["what", "was", "compared", "largest", "difference", "bound", "verdict"]
    assert len(lines) == 18
    assert all(line.endswith((" ok", " not checked")) for line in lines)
    assert "not checked: published values: there are none for weights with this hash" in result.err
    n = sum(line.endswith(" ok") for line in lines)
    says = f"minigpt.verify: bundled computes what its files say: {n} ok, {18 - n} not checked"
    assert result.err.splitlines()[-1] == says


def test_json_has_every_check_with_its_figures(model: Path) -> None:
    result = tell(model, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["ok"] is True
    for kind in ("one pass", "a cache in three parts", "a padded batch"):
        check = checks(result)[f"logits, {kind}, {NEEDS_FORMULA}"]
        assert check["verdict"] == "ok"
        assert 0 < check["difference"] <= check["bound"] < 1e-4


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_quantized_models_have_bounds_of_their_own(model: Path, tmp_path: Path, kind: str) -> None:
    plain, small = tell(model, "--json"), tell(model, "--quantize", kind, "--json")
    assert small.code == 0
    name = f"logits, one pass, {NEEDS_FORMULA}"
    times = checks(small)[name]["bound"] / checks(plain)[name]["bound"]
    assert times > 100 if kind == "int8" else 0.1 < times < 10  # float16 is multiplied by inputs of float32
    loaded = GPT2.from_pretrained(model, quantize=kind)
    loaded.save_pretrained(tmp_path / "small")
    Tokenizer.load(model).save_pretrained(tmp_path / "small")
    result = tell(tmp_path / "small")
    assert result.code == 0, result.err
    assert "transformers does not know minigpt's quantized weights" in result.err


def test_transformers_agrees(model: Path) -> None:
    found = checks(tell(model, "--json"))
    assert found["logits, one pass, with transformers"]["verdict"] == "ok"
    assert found["tokenizer: ids, with those of transformers"]["verdict"] == "ok"
    assert found["tokenizer: ids, with those of tokenizers"]["verdict"] == "ok"


def test_comparing_leaves_the_progress_bars_of_other_work_alone(model: Path) -> None:
    assert tell(model, "--json").code == 0
    assert not hub_tqdm.are_progress_bars_disabled()


def test_what_is_not_installed_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("transformers", "tokenizers"):
        monkeypatch.setitem(__import__("sys").modules, library, None)
    result = tell(model)
    assert result.code == 0
    assert "not checked: logits, one pass, with transformers: transformers is not installed" in result.err
    assert "not checked: tokenizer: ids, with those of tokenizers: tokenizers is not installed" in result.err


def test_wrong_code_ends_with_1_and_the_point_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = GPT2.from_pretrained.__func__  # type: ignore[attr-defined]

    def with_exact_gelu(cls: type[GPT2], *args: Any, **how: Any) -> GPT2:
        loaded: GPT2 = load(cls, *args, **how)
        for block in loaded.blocks:
            block.mlp.activation = F.gelu
        return loaded

    monkeypatch.setattr(GPT2, "from_pretrained", classmethod(with_exact_gelu))
    result = tell(model)
    assert result.code == 1
    assert (
        f"failed: logits, one pass, {NEEDS_FORMULA}: the first to depart is layer 0: activation" in result.err
    )
    assert "its numbers are those of the activation gelu in place of gelu_new" in result.err
    assert json.loads(tell(model, "--json").out)["ok"] is False


def test_a_file_of_infinite_numbers_is_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.bias"][0] = math.inf
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    result = tell(model)
    assert result.code == 1
    assert "failed: tensors: every number finite: not finite: h.0.mlp.c_fc.bias" in result.err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["no/such/model"], 3, "'no/such/model' does not exist"),
        (["a", "--model", "b"], 2, "the model is named twice, 'a' and 'b': leave one out"),
        (["--compile"], 2, "--compile hides what the layers compute inside, which is compared: leave it out"),
    ],
)
def test_mistakes(flags: list[str], code: int, message: str) -> None:
    result = tell(*flags)
    assert result.code == code
    assert message in result.mistake


@pytest.mark.parametrize("vocab_size", [258, 300])
def test_half_precision_and_a_padded_vocabulary(tmp_path: Path, vocab_size: int) -> None:
    directory = save(tmp_path, tiny(initializer_range=0.5, vocab_size=vocab_size))
    for dtype in ("bfloat16", "float16"):
        assert tell(directory, "--dtype", dtype).code == 0


def test_a_tokenizer_that_gives_other_ids_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(model)
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: encode(text.replace("  ", " ")))
    found = {check.name: check for check in check_tokenizer(tokenizer, model)}
    assert found["tokenizer: a text with every kind of character, there and back"].verdict == "failed"
    assert "became" in found["tokenizer: a text with every kind of character, there and back"].detail
    assert "theirs [32" in found["tokenizer: ids, with those of tokenizers"].detail


def in_the_hub_s_cache(folder: Path, content: bytes, name: str) -> Path:
    """A file as the hub's client keeps it: a link to a blob that is named by its hash."""
    folder.mkdir()
    (folder / name).write_bytes(b"changed")
    (folder / "model.safetensors").symlink_to(name)
    (folder / name).write_bytes(content)
    return folder


def test_files_are_held_against_the_hub_s_hashes(tmp_path: Path) -> None:
    sha256, sha1 = hashlib.sha256(b"content").hexdigest(), hashlib.sha1(b"blob 7\0content").hexdigest()
    for i, name in enumerate((sha256, sha1)):
        folder = in_the_hub_s_cache(tmp_path / f"right{i}", b"content", name)
        assert check_files(folder, [folder / "model.safetensors"]).verdict == "ok"
        folder = in_the_hub_s_cache(tmp_path / f"wrong{i}", b"damaged", name)
        check = check_files(folder, [folder / "model.safetensors"])
        assert (check.verdict, check.detail[:29]) == ("failed", "model.safetensors: another co")


def test_published_values_belong_to_weights_with_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tmp_path, tiny(n_positions=128, initializer_range=0.5))
    own = files.sha256(model / "model.safetensors")
    monkeypatch.setitem(files.KNOWN_WEIGHTS, own, "another model, taken for the 124M one")
    result = tell(model, "--json")
    assert result.code == 1  # for its text is not what was published
    found = checks(result)
    assert found["files, with the hub's hashes"]["verdict"] == "ok"
    assert (
        "published [262, 1110, 618, 356, 460]"
        in found['published log-probabilities after "Today is"']["detail"]
    )
    assert found['published greedy text after "Alan Turing theorized ..."']["verdict"] == "failed"


def test_weights_in_memory_are_compared_bit_for_bit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = GPT2.from_pretrained.__func__  # type: ignore[attr-defined]

    @torch.no_grad()
    def one_bit_off(cls: type[GPT2], *args: Any, **how: Any) -> GPT2:
        loaded: GPT2 = load(cls, *args, **how)
        loaded.final_norm.bias[3] += 1e-7
        return loaded

    monkeypatch.setattr(GPT2, "from_pretrained", classmethod(one_bit_off))
    assert (
        "weights in memory, with the file's: ln_f.bias holds other numbers, off by up to 1.0e-07"
        in tell(model).err
    )
