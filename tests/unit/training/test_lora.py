"""LoRA begins at the base, trains its pairs alone, and is the dense formula W + scaling · A·B."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from minigpt import GPT2, GPT2Config
from minigpt.linear import Linear
from minigpt.training.adapters import load_adapter, save_adapter
from minigpt.training.lora import LoraLinear, attach, lora_linears, merge

TOKENS = torch.arange(24).view(2, 12) % 61
LAYERS = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")


def base(**config: Any) -> GPT2:
    """A small model whose biases are random too, without dropout."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 61, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    none = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
    model = GPT2(GPT2Config(**{**sizes, **none, "initializer_range": 0.2, **config})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def loss(model: GPT2) -> Tensor:
    return F.cross_entropy(model(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())


def train(model: GPT2, steps: int = 5) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(model).backward()
        optimiser.step()


def adapted(rank: int = 4, **how: Any) -> GPT2:
    model = base()
    attach(model, rank, **how)
    train(model)
    return model


def state(model: GPT2) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def distance(one: GPT2, other: GPT2) -> float:
    return float((one(TOKENS) - other(TOKENS)).abs().max())


# ------------------------------------------------------------------------------ attaching


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attaching_changes_no_bit_of_the_logits(dtype: torch.dtype, autocast: bool) -> None:
    model = base().to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before = model(TOKENS)
        attach(model, 4)
        assert torch.equal(model(TOKENS), before)


def test_an_adapted_layer_shows_its_shape_and_rank() -> None:
    assert "(up): LoraLinear(in=32, out=128, rank=4)" in repr(adapted())


def test_every_linear_layer_of_the_blocks_has_a_pair_and_nothing_else_trains() -> None:
    model = base()
    names = list(model.state_dict())
    attach(model, 4)
    pairs = [f"blocks.{i}.{layer}.lora_{x}" for i in range(2) for layer in LAYERS for x in "ab"]
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == pairs
    assert [name for name in model.state_dict() if name not in pairs] == names
    assert not any(isinstance(module, Linear) for module in model.modules())


def test_layers_can_be_chosen() -> None:
    model = base()
    attach(model, 4, layers=["blocks.1.mlp.up"])
    assert list(lora_linears(model)) == ["blocks.1.mlp.up"]
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2


def test_a_is_uniform_within_one_over_the_root_of_its_width_and_b_is_zero() -> None:
    layer = LoraLinear(base().blocks[0].mlp.down, rank=64, alpha=1, dropout=0)
    bound = 128**-0.5
    assert layer.lora_a.shape == (128, 64)
    assert 0.99 * bound < layer.lora_a.abs().max() <= bound
    assert float(layer.lora_a.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(layer.lora_b, torch.zeros(64, 32))


def test_the_callers_seed_decides() -> None:
    def first(seed: int) -> Tensor:
        model = base()
        torch.manual_seed(seed)
        attach(model, 4)
        return model.blocks[0].attn.qkv.lora_a

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_pairs_are_float32_beside_half_precision_weights() -> None:
    model = base().to(torch.bfloat16)
    attach(model, 4)
    train(model, steps=1)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in merge(model).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rank": 0}, "the rank of LoRA must be at least 1, got 0"),
        ({"rank": 1, "alpha": 0.0}, r"LoRA's alpha must be above 0, got 0\.0"),
        ({"rank": 1, "alpha": float("inf")}, "LoRA's alpha must be above 0, got inf"),
        ({"rank": 1, "dropout": 1.0}, r"LoRA's dropout must be from 0 to below 1, got 1\.0"),
        ({"rank": 1, "dropout": -0.1}, r"LoRA's dropout must be from 0 to below 1, got -0\.1"),
        (
            {"rank": 1, "layers": ["blocks.0.mlp"]},
            r"has no linear layer 'blocks\.0\.mlp'; it has blocks\.0\.attn\.qkv, ",
        ),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_changes(how: dict[str, Any], message: str) -> None:
    model = base()
    with pytest.raises(ValueError, match=message):
        attach(model, **how)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_second_adapter_is_refused_and_so_is_doing_without_one(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(model, tmp_path, "base")
    for second in (partial(attach, model, 4), partial(load_adapter, model, tmp_path)):
        with pytest.raises(ValueError, match="has LoRA adapters already; merge them first"):
            second()
    for without in (partial(merge, base()), partial(save_adapter, base(), tmp_path, "base")):
        with pytest.raises(ValueError, match="has no LoRA adapters; attach or load some first"):
            without()


# ------------------------------------------------------------------------------ training


def test_training_leaves_every_bit_of_the_base() -> None:
    before = state(base())
    model = adapted()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert distance(model, base()) > 0.1


def test_gradients_are_those_of_the_dense_formula() -> None:
    model = base().double()
    attach(model, 4, alpha=6)
    train(model, steps=2)  # at B = 0 the gradient of A is zero
    model.zero_grad()
    loss(model).backward()

    plain = base().double()
    pairs = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    weights = {
        f"blocks.{i}.{layer}.weight": plain.get_submodule(f"blocks.{i}.{layer}").weight.detach()
        + 6 / 4 * pairs[f"blocks.{i}.{layer}.lora_a"] @ pairs[f"blocks.{i}.{layer}.lora_b"]
        for i in range(2)
        for layer in LAYERS
    }
    logits = functional_call(plain, weights, TOKENS[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    for name, pair in pairs.items():
        assert pair.grad.abs().max() > 1e-6
        torch.testing.assert_close(model.get_parameter(name).grad, pair.grad)


def test_dropout_is_in_training_only_and_on_the_way_into_a_only() -> None:
    model = base()
    attach(model, 4, dropout=0.9)
    assert distance(model.train(), base()) == 0  # B is zero, and what the base reads is not dropped
    train(model)
    assert distance(model, model) > 0.1
    assert distance(model.eval(), model) == 0
    fresh = base()
    attach(fresh, 4, dropout=0.9)
    assert not any(module.training for module in fresh.modules())  # as the model was


def test_it_trains_under_autocast() -> None:
    model = base()
    attach(model, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        start = loss(model).item()
        train(model, steps=20)
        end = loss(model).item()
    assert end < start - 1
    # All is rounded to 8 bits, W + scaling · A·B as one number and the parts apart.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        apart, together = loss(model).item(), loss(merge(model)).item()
    assert apart == pytest.approx(together, abs=0.05)


def test_merging_under_autocast_rounds_no_weight_of_the_base() -> None:
    model = base()
    attach(model, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = merge(model)
    assert distance(merged, base()) == 0


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    def gradients(model: GPT2) -> list[Tensor]:
        loss(model).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    model = adapted()
    model.zero_grad()
    recomputing = copy.deepcopy(model)
    for block in recomputing.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    expected = gradients(model)
    assert len(expected) == 16
    assert all(map(torch.equal, gradients(recomputing), expected))


def test_a_deep_copy_is_another_model() -> None:
    model = adapted()
    twin = copy.deepcopy(model)
    assert distance(twin, model) == 0
    train(twin)
    assert distance(twin, model) > 0


# ------------------------------------------------------------------------------ merging


@pytest.mark.parametrize("tied", [True, False])
def test_the_merged_model_is_a_plain_one_with_the_same_logits(tied: bool) -> None:
    model = base(tie_word_embeddings=tied)
    names = list(model.state_dict())
    attach(model, 4)
    train(model.train())
    merged = merge(model)
    assert list(merged.state_dict()) == names
    assert [type(module) for module in merged.modules()] == [
        type(m) for m in base(tie_word_embeddings=tied).modules()
    ]
    assert all(tensor.is_contiguous() for tensor in merged.state_dict().values())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not merged.training
    assert distance(merged, model) <= 1e-5


def test_merging_disturbs_no_training() -> None:
    model = adapted().train()
    before, chance = state(model), torch.get_rng_state()
    merged = merge(model)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(module.training for module in model.modules())


def test_at_full_rank_any_update_is_within_reach() -> None:
    wanted = base(initializer_range=0.1)
    model = base()
    attach(model, 32, alpha=7)
    with torch.no_grad():
        for name, layer in lora_linears(model).items():
            u, s, v = torch.linalg.svd(wanted.get_submodule(name).weight - layer.weight, full_matrices=False)
            layer.lora_a.copy_(u * s)
            layer.lora_b.copy_(v / layer.scaling)
    for name in lora_linears(model):
        weight = merge(model).get_submodule(name).weight
        torch.testing.assert_close(weight, wanted.get_submodule(name).weight, rtol=0, atol=1e-5)


def test_an_adapted_model_is_not_saved_as_if_it_were_plain(tmp_path: Path) -> None:
    model = base()
    attach(model, rank=2)
    with pytest.raises(ValueError, match=r"no place for .*lora_a: merge an adapter before saving"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
