"""Our LoRA is PEFT's: what we write, it reads with the same logits, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from reference import apart, pair
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from minigpt import GPT2
from minigpt.training.adapters import load_adapter, save_adapter
from minigpt.training.lora import attach, merge

# PEFT asks transformers whether gradients are checkpointed by a name that transformers calls old.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOKENS = torch.arange(24).view(2, 12)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base on disk, as transformers writes it, without dropout."""
    directory = tmp_path_factory.mktemp("base")
    pair(directory, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    return directory


@torch.no_grad()
def ours(model: GPT2) -> torch.Tensor:
    return model.eval()(TOKENS)


@torch.no_grad()
def theirs(model: Any) -> torch.Tensor:
    return model.eval()(TOKENS).logits


def reference(base: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(base, attn_implementation="eager")


def read_by_peft(base: Path, adapter: Path) -> peft.PeftModel:
    return peft.PeftModel.from_pretrained(reference(base), adapter)


def made_by_peft(base: Path, directory: Path, **config: Any) -> torch.Tensor:
    """Saves an adapter with random A and B; its logits."""
    torch.manual_seed(0)
    given = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj", "c_fc"], **config}
    model = peft.get_peft_model(
        reference(base), peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **given)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(directory)
    return theirs(model)


def test_trained_unmerged_merged_and_read_by_peft_are_the_same(base: Path, tmp_path: Path) -> None:
    model = GPT2.from_pretrained(base).train()
    before = ours(model)
    torch.manual_seed(1)
    attach(model, 4, alpha=6, dropout=0.1)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(5):
        tokens = torch.randint(61, (2, 12))
        F.cross_entropy(model.train()(tokens[:, :-1]).mT, tokens[:, 1:]).backward()
        optimiser.step()
        optimiser.zero_grad()
    save_adapter(model, tmp_path / "adapter", str(base))
    merge(model).save_pretrained(tmp_path / "merged")

    logits = ours(model)
    assert apart(logits, before) > 0.1
    assert apart(logits, theirs(read_by_peft(base, tmp_path / "adapter"))) <= 1e-4
    assert apart(logits, ours(merge(model))) <= 1e-5 * float(logits.abs().max())
    assert apart(logits, theirs(reference(tmp_path / "merged"))) <= 1e-4


def test_what_we_write_is_what_peft_writes_of_it(base: Path, tmp_path: Path) -> None:
    model = GPT2.from_pretrained(base)
    attach(model, 4, alpha=6, dropout=0.1)
    save_adapter(model, tmp_path / "ours", str(base))
    read_by_peft(base, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    mine, stored = (load_file(tmp_path / where / WEIGHTS) for where in ("ours", "theirs"))
    assert mine.keys() == stored.keys()
    assert all(torch.equal(mine[name], stored[name]) for name in stored)
    config, full = (json.loads((tmp_path / where / CONFIG).read_text()) for where in ("ours", "theirs"))
    full["target_modules"].sort()  # a set, which PEFT writes in any order
    assert config == {name: full[name] for name in config}
    assert config["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert type(config["lora_alpha"]) is int
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"target_modules": ["c_attn"], "r": 2, "lora_alpha": 5},
        {"target_modules": ["attn.c_proj", "c_fc"]},
        {"target_modules": r".*h\.[02]\.attn\.c_(attn|proj)"},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1], "layers_pattern": "h"},
        {"exclude_modules": ["c_fc"]},
        {"use_rslora": True},
        {"lora_dropout": 0.5},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
    ],
    ids=str,
)
def test_what_peft_writes_we_read_and_write_again(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    logits = made_by_peft(base, tmp_path / "theirs", **config)
    model = GPT2.from_pretrained(base)
    assert apart(ours(model), logits) > 0.1
    load_adapter(model, tmp_path / "theirs")
    assert apart(ours(model), logits) <= 1e-4
    assert apart(ours(merge(model)), logits) <= 1e-4
    save_adapter(model, tmp_path / "ours", str(base))
    assert apart(theirs(read_by_peft(base, tmp_path / "ours")), logits) <= 1e-4
    mine, stored = (load_file(tmp_path / where / WEIGHTS) for where in ("ours", "theirs"))
    assert mine.keys() == stored.keys()
    assert all(torch.equal(mine[name], stored[name]) for name in stored)


def test_merged_weights_are_those_that_peft_merges(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path)
    model = GPT2.from_pretrained(base)
    load_adapter(model, tmp_path)
    merge(model).save_pretrained(tmp_path / "ours")
    read_by_peft(base, tmp_path).merge_and_unload().save_pretrained(tmp_path / "theirs")
    mine, stored = (load_file(tmp_path / where / "model.safetensors") for where in ("ours", "theirs"))
    torch.testing.assert_close(mine, stored, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["ln_f"]}, r"modules_to_save=\['ln_f'\]"),
        ({"rank_pattern": {"c_fc": 2}}, "rank_pattern={'c_fc': 2}"),
        ({"alpha_pattern": {"c_fc": 2}}, "alpha_pattern={'c_fc': 2}"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
    ids=str,
)
def test_options_that_are_more_than_lora_are_refused_by_name(
    base: Path, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    made_by_peft(base, tmp_path, **config)
    with pytest.raises(
        ValueError, match=rf"adapter_config\.json: {named} is not supported; merge the adapter"
    ):
        load_adapter(GPT2.from_pretrained(base), tmp_path)


def test_other_methods_and_adapters_elsewhere_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    ia3 = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True
    )
    peft.get_peft_model(reference(base), ia3).save_pretrained(tmp_path / "ia3")
    with pytest.raises(ValueError, match="peft_type='IA3' is not supported"):
        load_adapter(GPT2.from_pretrained(base), tmp_path / "ia3")
    made_by_peft(base, tmp_path / "positions", target_modules=["c_attn", "wpe"])
    with pytest.raises(
        ValueError, match=r"no linear layer for base_model\.model\.transformer\.wpe\.lora_emb"
    ):
        load_adapter(GPT2.from_pretrained(base), tmp_path / "positions")
