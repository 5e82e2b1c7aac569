"""Recorded = transformers: patterns, stream, queries, keys, values and the parts of every layer, eager there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from reference import pair
from torch import Tensor
from transformers import GPT2LMHeadModel

from minigpt.interp import Recording, ablate, record_text


def theirs_at_every_point(model: GPT2LMHeadModel, tokens: Tensor) -> dict[str, Tensor]:
    """What transformers computes, under our names, by its own outputs and by hooks on its modules."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: object, args: object, output: object) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment]

        return hook

    handles = []
    for layer, block in enumerate(model.transformer.h):
        at = f"blocks.{layer}."
        for name, module in [
            ("qkv", block.attn.c_attn), ("attn.out", block.attn), ("mlp.pre", block.mlp.c_fc),
            ("mlp.post", block.mlp.act), ("mlp.out", block.mlp), ("resid_post", block),
        ]:  # fmt: skip
            handles.append(module.register_forward_hook(keep(at + name)))
        handles.append(block.ln_2.register_forward_hook(keep_input(seen, at + "resid_mid")))
        handles.append(block.attn.c_proj.register_forward_hook(keep_input(seen, at + "z")))
    with torch.no_grad():
        output = model(tokens, output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    seen["embed"], seen["final_norm"], seen["logits"] = (
        output.hidden_states[0], output.hidden_states[-1], output.logits,
    )  # fmt: skip
    for layer, pattern in enumerate(output.attentions):
        at = f"blocks.{layer}."
        heads = (*tokens.shape, model.config.n_head, -1)
        for name, part in zip("qkv", seen.pop(at + "qkv").chunk(3, -1), strict=True):
            seen[f"{at}attn.{name}"] = part.view(heads).transpose(1, 2)
        seen[at + "attn.z"] = seen.pop(at + "z").view(heads).transpose(1, 2)
        seen[at + "attn.pattern"], seen[at + "resid_pre"] = pattern, output.hidden_states[layer]
    return seen


def keep_input(seen: dict[str, Tensor], name: str) -> object:
    return lambda module, args, output: seen.__setitem__(name, args[0])


def assert_same(ours: Recording, theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name in ours:
        bound = 1e-5 * float(theirs[name].abs().max())
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=bound, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"activation_function": "gelu", "tie_word_embeddings": False, "n_inner": 50},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        {"scale_attn_weights": False, "n_head": 1},
    ],
)
def test_every_point_is_the_reference_s(tmp_path: Path, config: dict[str, object]) -> None:
    ours, theirs = pair(tmp_path, spread=0.1, **config)
    tokens = torch.randint(61, (2, 20), generator=torch.Generator().manual_seed(1))
    assert_same(record_text(ours, tokens), theirs_at_every_point(theirs, tokens))


def test_an_ablated_head_is_the_reference_with_its_output_rows_set_to_zero(tmp_path: Path) -> None:
    ours, theirs = pair(tmp_path, spread=0.1)
    tokens = torch.randint(61, (1, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs.transformer.h[1].attn.c_proj.weight[8:16] = 0.0  # head 1 of width 8
        expected = theirs(tokens).logits
    with ablate(ours, "blocks.1.attn.z", heads=[1]):
        got = record_text(ours, tokens, "logits")["logits"]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
