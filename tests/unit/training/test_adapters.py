"""An adapter's files: whole, the same again when loaded and saved, and refused by name if they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt import GPT2, GPT2Config
from minigpt.training import adapters
from minigpt.training.adapters import load_adapter, save_adapter
from minigpt.training.lora import attach, lora_linears


def base() -> GPT2:
    torch.manual_seed(0)
    return GPT2(GPT2Config(vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()


@torch.no_grad()
def adapted(**how: Any) -> GPT2:
    """A model with an adapter that is not at its beginning."""
    model = base()
    attach(model, 4, **how)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.normal_()
    return model


def same(one: GPT2, other: GPT2) -> bool:
    ours, others = one.state_dict(), other.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def test_saved_loaded_saved_is_the_same_to_the_byte(tmp_path: Path) -> None:
    model = adapted(alpha=2.5, dropout=0.25)
    save_adapter(model, tmp_path / "one", "some/base")
    again = base()
    load_adapter(again, tmp_path / "one")
    save_adapter(again, tmp_path / "two", "some/base")
    assert same(again, model)
    assert {(layer.alpha, layer.dropout) for layer in lora_linears(again).values()} == {(2.5, 0.25)}
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n in again.state_dict() if "lora" in n
    }
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert (tmp_path / "one" / file).stat().st_mode & 0o777 == 0o644
    assert not any(module.training for module in again.modules())


def test_an_adapter_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(adapters, "save_file", full)
    with pytest.raises(OSError, match="the disk is full"):
        save_adapter(adapted(), tmp_path, "base")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_adapter(adapted(), tmp_path, "base")
    return tmp_path


def refused(directory: Path, message: str, kind: type[Exception] = ValueError) -> None:
    model = base()
    with pytest.raises(kind, match=message) as error:
        load_adapter(model, directory)
    assert "\n" not in str(error.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert same(model, base())


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_or_damaged_file_is_named(saved: Path, file: str) -> None:
    half = (saved / file).read_bytes()[:100]
    (saved / file).write_bytes(half)
    refused(saved, f"{file} (is damaged|is not JSON)")
    (saved / file).unlink()
    refused(saved, f"holds no adapter: it lacks {file}", FileNotFoundError)


def test_a_config_without_its_numbers_is_refused(saved: Path) -> None:
    path = saved / "adapter_config.json"
    config = json.loads(path.read_text())
    for option, value in (("r", None), ("lora_alpha", "many"), ("lora_dropout", [])):
        path.write_text(json.dumps({**config, option: value}))
        refused(saved, rf"adapter_config\.json: {option} must be a (whole )?number, got")
    path.write_text(json.dumps({"r": 4, "lora_alpha": 4}))
    refused(saved, "peft_type=None is not supported")
    path.write_text("[]")
    refused(saved, r"adapter_config\.json must hold an object, got \[\]")


def test_an_option_that_nobody_knows_yet_is_refused_only_if_it_is_on(saved: Path) -> None:
    path = saved / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_tomorrow": {"as": 1}}))
    refused(saved, "use_tomorrow={'as': 1} is not supported; merge the adapter with PEFT's merge_and_unload")
    for off in (None, False, {}, [], "none"):
        path.write_text(json.dumps({**config, "use_tomorrow": off}))
        load_adapter(base(), saved)


def test_tensors_that_do_not_fit_are_named(saved: Path) -> None:
    path, prefix = saved / "adapter_model.safetensors", "base_model.model.transformer.h"
    tensors = load_file(path)
    alone = {name: t for name, t in tensors.items() if "h.1.mlp.c_fc.lora_B" not in name}
    save_file(alone, path)
    refused(saved, r"lacks base_model\.model\.transformer\.h\.1\.mlp\.c_fc\.lora_B\.weight")
    save_file({**tensors, f"{prefix}.2.mlp.c_fc.lora_A.weight": torch.ones(4, 32)}, path)
    refused(saved, r"this model has no linear layer for base_model.*h\.2\.mlp\.c_fc\.lora_A\.weight")
    for letter, shape, fitting in (("A", (3, 32), r"\(4, 32\)"), ("B", (4, 96), r"\(96, 4\)")):
        save_file({**tensors, f"{prefix}.0.attn.c_attn.lora_{letter}.weight": torch.ones(shape)}, path)
        refused(saved, rf"lora_{letter}\.weight is \({shape[0]}, {shape[1]}\), but {fitting} fits r=4")
    save_file({}, path)
    refused(saved, r"adapter_model\.safetensors holds no tensors")
