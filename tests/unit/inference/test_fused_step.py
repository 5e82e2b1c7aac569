"""The kernels for a GPU, run by Triton's interpreter where it is installed; tests/gpu runs them on a GPU."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from minigpt import GPT2, GPT2Config

os.environ.setdefault("TRITON_INTERPRET", "1")  # which it reads when it is imported
fused_step = pytest.importorskip(
    "minigpt.inference.fused_step", reason="needs triton, which torch brings for a GPU", exc_type=ImportError
)

CONFIG = GPT2Config(vocab_size=61, n_positions=160, n_embd=48, n_layer=2, n_head=2)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, n_embd=64, n_inner=70, activation_function="gelu"),
        replace(CONFIG, tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True),
    ],
    ids=["plain", "exact GELU", "untied"],
)
@pytest.mark.parametrize(("length", "pads"), [(0, [0]), (1, [0]), (140, [0]), (140, [3, 139])])
@torch.no_grad()
def test_it_is_the_models_own_step(config: GPT2Config, length: int, pads: list[int]) -> None:
    torch.manual_seed(0)
    model = GPT2(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pad = torch.tensor(pads)
    caches = [model.new_cache(150, len(pads), pad if pad.any() else None) for _ in range(2)]
    read = torch.randint(config.vocab_size, (len(pads), length))
    for cache in caches:
        cache.slots.fill_(float("nan"))  # as memory may be that nothing was written to
        if length:
            model.next_logits(read, cache)
    weights = fused_step.Weights.of(model)
    tokens = torch.arange(len(pads))[:, None]
    found = fused_step.next_logits(weights, caches[0].slots, tokens, torch.tensor([length]), pad)
    torch.testing.assert_close(found, model.next_logits(tokens, caches[1]), rtol=0, atol=2e-5)
    ours, theirs = (cache.slots[..., length, :] for cache in caches)  # the new keys and values
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_an_id_that_is_none_becomes_nan() -> None:
    model = GPT2(CONFIG).eval()
    slot = torch.zeros(1, dtype=torch.long)
    weights = fused_step.Weights.of(model)
    for token in (-1, 61):
        x = fused_step.embedding(torch.tensor([[token]]), slot, slot, weights)
        assert x.isnan().all()
