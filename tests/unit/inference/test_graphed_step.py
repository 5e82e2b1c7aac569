"""A step at fixed shapes gives what the model gives; the recording itself is tested in tests/gpu."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from minigpt import GPT2, GPT2Config
from minigpt.inference.graphed_step import GraphedStep

CONFIG = GPT2Config(vocab_size=61, n_positions=16, n_embd=32, n_layer=3, n_head=4)
TOKENS = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
CLOSE = 1e-6  # masked slots are added up, too: as zeros, but in another order


def new_model(config: GPT2Config = CONFIG) -> GPT2:
    torch.manual_seed(0)
    return GPT2(config).eval()


@pytest.mark.parametrize("pad", [None, torch.tensor([0, 2])], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, reorder_and_upcast_attn=True), replace(CONFIG, tie_word_embeddings=False)],
    ids=["plain", "upcast", "untied"],
)
def test_steps_are_those_of_the_model(config: GPT2Config, pad: Tensor | None) -> None:
    model = new_model(config)
    caches = [model.new_cache(9, 2, pad) for _ in range(2)]
    caches[0].layers[0]._slots.fill_(float("nan"))  # as memory may be that nothing was written to
    for cache in caches:
        model.next_logits(TOKENS, cache)
    step = GraphedStep(model, caches[0])
    for n in range(5):
        new = torch.tensor([[n], [20 + n]])
        torch.testing.assert_close(step(new), model.next_logits(new, caches[1]), rtol=0, atol=CLOSE)
        assert caches[0].length == caches[1].length


def test_a_cache_that_is_rewound_is_read_anew() -> None:
    model = new_model()
    cache = model.new_cache(9, 2)
    model.next_logits(TOKENS, cache)
    step = GraphedStep(model, cache)
    new = torch.tensor([[3], [4]])
    first, _ = step(new), step(new)
    cache.rewind(0)
    model.next_logits(TOKENS, cache)
    assert torch.equal(step(new), first)


def test_it_refuses_a_full_cache() -> None:
    model = new_model()
    cache = model.new_cache(4, 2)
    model.next_logits(TOKENS, cache)
    with pytest.raises(ValueError, match="token 5 does not fit a cache reserved for 4"):
        GraphedStep(model, cache)(torch.tensor([[1], [2]]))
