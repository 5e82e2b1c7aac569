"""LoRA adapters as files, in the layout that PEFT writes and reads."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt.atomic import all_or_none
from minigpt.json_files import expect, field, read_object, shown
from minigpt.model import GPT2
from minigpt.training.lora import (
    LoraLinear,
    attach,
    linears,
    lora_linears,
    refuse_adapted,
    refuse_plain,
    refuse_quantized,
)
from minigpt.weights import damaged, full_tensor, to_theirs

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Of an adapter's config: what is read, what has no effect here, or follows from the tensors' names.
# Everything else, options that PEFT will have one day too, must be off.
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights"}
WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "task_type",
}  # fmt: skip
FROM_NAMES = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
# Other ways to begin (pissa, olora, corda, ...) change the base's own weights.
BEGINNINGS = (True, False, "gaussian", "orthogonal")


def save_adapter(model: GPT2, directory: str | os.PathLike[str], base: str) -> None:
    """Writes the adapters alone, as PEFT does: adapter_config.json and adapter_model.safetensors.

    `PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), directory)` gives the logits of
    this model. `base` is where the base is found: a directory or a name on the hub. The files are
    written aside and moved into place when both are whole.

    Raises:
        ValueError: the model has no adapters.

    >>> from minigpt import GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=1, n_head=4))
    >>> attach(model, rank=4)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save_adapter(model, directory, base="some/base")
    ...     other = GPT2(model.config)
    ...     load_adapter(other, directory)
    >>> torch.equal(other.blocks[0].mlp.up.lora_a, model.blocks[0].mlp.up.lora_a)
    True
    """
    write(model, tensors_of(model), directory, base)


def tensors_of(model: GPT2) -> dict[str, Tensor]:
    """The adapters' tensors, whole, by the names that PEFT gives them; of a sharded model, all processes call it together.

    Raises:
        ValueError: the model has no adapters.
    """
    refuse_plain(model)
    tensors = {}
    for name, linear in lora_linears(model).items():
        for key, pair in zip(_keys(name), (linear.lora_a, linear.lora_b), strict=True):
            tensors[key] = full_tensor(pair.detach()).cpu().T.contiguous()
    return tensors


def write(model: GPT2, tensors: Mapping[str, Tensor], directory: str | os.PathLike[str], base: str) -> None:
    """Writes the adapters of a model, whose `tensors_of` are these."""
    config = _config(model, next(iter(lora_linears(model).values())), base)  # all are alike
    with all_or_none(directory) as aside:
        (aside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        save_file(dict(tensors), aside / WEIGHTS, metadata={"format": "pt"})
        (aside / WEIGHTS).chmod(0o644)  # safetensors lets the owner alone read it


def _config(model: GPT2, linear: LoraLinear, base: str) -> dict[str, Any]:
    """The contents of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": linear.rank,
        "lora_alpha": int(linear.alpha) if float(linear.alpha).is_integer() else linear.alpha,
        "lora_dropout": linear.dropout,
        "target_modules": _targets(model),
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def load_adapter(model: GPT2, directory: str | os.PathLike[str]) -> None:
    """Attaches the adapters that a directory holds, written by `save_adapter` or by PEFT; they can be trained on.

    Which layers have one is read from the tensors' names. Options of PEFT that make something else of it
    than LoRA raise an error that names them. If anything is wrong, the model stays as it was.

    Raises:
        OSError: there is no adapter.
        ValueError: it is no LoRA for this model, is damaged, or the model has adapters already.
    """
    refuse_adapted(model)
    refuse_quantized(model)
    directory = Path(directory)
    for file in (CONFIG, WEIGHTS):
        if not (directory / file).is_file():
            own = directory / "adapter"  # a run's folder holds its adapter there
            hint = f"; {own} has one" if (own / file).is_file() else ""
            raise FileNotFoundError(f"{directory} holds no adapter: it lacks {file}{hint}")
    rank, alpha, dropout = _read_config(directory)
    pairs = _read_pairs(directory, model, rank)
    attach(model, rank, alpha, dropout, layers=pairs)
    with torch.no_grad():
        for name, linear in lora_linears(model).items():
            a, b = pairs[name]
            linear.lora_a.copy_(a.T)
            linear.lora_b.copy_(b.T)


def _read_config(directory: Path) -> tuple[int, float, float]:
    """Rank, alpha and dropout."""
    path = directory / CONFIG
    config = read_object(path)
    _refuse_more_than_lora(path, config)
    rank, alpha = field(int, config, "r", path), field(float, config, "lora_alpha", path)
    dropout = expect(float, config.get("lora_dropout", 0.0), path, "lora_dropout")
    if config.get("use_rslora"):  # Kalajdzievski 2023: alpha / sqrt(rank), which is another alpha over rank
        alpha *= math.sqrt(rank)
    return rank, alpha, dropout


def _refuse_more_than_lora(path: Path, config: Mapping[str, Any]) -> None:
    given = {"peft_type": None, "init_lora_weights": True, **config}
    must_be_off = sorted(given.keys() - READ - WITHOUT_EFFECT - FROM_NAMES)
    wrong = [option for option in must_be_off if given[option] and given[option] != "none"]
    if given["init_lora_weights"] not in BEGINNINGS:
        wrong.insert(0, "init_lora_weights")
    if given["peft_type"] != "LORA":
        wrong.insert(0, "peft_type")
    if wrong:
        option = wrong[0]
        raise ValueError(
            f"{path}: {option}={shown(given[option])} is not supported; merge the adapter with PEFT's"
            " merge_and_unload and use the merged model"
        )


def _read_pairs(directory: Path, model: GPT2, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The A (r, in) and B (out, r) of each adapted layer, by the layer's name."""
    path = directory / WEIGHTS
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise damaged(path, error) from None
    pairs = {}
    for name, linear in linears(model).items():
        keys = _keys(name)
        missing = [key for key in keys if key not in tensors]
        if len(missing) == 1:
            raise ValueError(f"{path} lacks {missing[0]}")
        if missing:
            continue
        n_in, n_out = linear.weight.shape
        a, b = (tensors.pop(key) for key in keys)
        for key, pair, shape in zip(keys, (a, b), ((rank, n_in), (n_out, rank)), strict=True):
            if pair.shape != shape:
                raise ValueError(
                    f"{path}: {key} is {tuple(pair.shape)}, but {shape} fits r={rank} and this model"
                )
        pairs[name] = a, b
    if tensors:
        raise ValueError(f"{path}: this model has no linear layer for {min(tensors)}")
    if not pairs:
        raise ValueError(f"{path} holds no tensors")
    return pairs


def _their_module(name: str) -> str:
    """What transformers calls one of our linear layers.

    >>> _their_module("blocks.7.attn.out")
    'transformer.h.7.attn.c_proj'
    """
    return to_theirs(f"{name}.weight").removesuffix(".weight")


def _keys(name: str) -> tuple[str, str]:
    """What PEFT calls the A and the B of one of our linear layers."""
    prefix = f"base_model.model.{_their_module(name)}"
    return f"{prefix}.lora_A.weight", f"{prefix}.lora_B.weight"


def _targets(model: GPT2) -> list[str]:
    """The adapted layers as PEFT names them: by their last word where that says it, else in full."""
    adapted = {_their_module(name) for name in lora_linears(model)}
    others = {_their_module(name) for name in linears(model)}
    words = {name.rpartition(".")[2] for name in adapted}
    said = words.isdisjoint(name.rpartition(".")[2] for name in others)
    return sorted(words if said else adapted)
