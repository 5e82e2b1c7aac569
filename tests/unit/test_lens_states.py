"""`GPT2.lens_states`: what the model would say if it ended after each layer."""

from __future__ import annotations

import pytest
import torch
from fakes import tiny_gpt2
from torch import Tensor

from minigpt.cache import NoCache

MODEL = tiny_gpt2(n_layer=4)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


@torch.no_grad()
def lens_states(tokens: Tensor, pad: Tensor | None = None) -> Tensor:
    return MODEL.lens_states(tokens, NoCache(MODEL.config, pad))


def test_the_last_is_the_trunks_result() -> None:
    streams = lens_states(TOKENS)
    assert streams.shape == (5, 2, 6, 16)
    assert streams[-1].equal(MODEL.hidden_states(TOKENS, NoCache(MODEL.config)))
    assert MODEL.unembed(streams[-1]).equal(MODEL(TOKENS))


def test_each_is_what_comes_out_of_its_block_through_the_final_norm() -> None:
    seen: list[Tensor] = []
    hooks = [MODEL.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    hooks += [block.register_forward_hook(lambda _, __, out: seen.append(out)) for block in MODEL.blocks]
    with torch.no_grad():
        MODEL(TOKENS)
    for hook in hooks:
        hook.remove()
    for stream, x in zip(lens_states(TOKENS), seen, strict=True):
        assert stream.equal(MODEL.final_norm(x))
    embedded = MODEL.token_embedding(TOKENS) + MODEL.position_embedding.weight[:6]
    assert seen[0].equal(embedded)


@pytest.mark.parametrize("split", [1, 4])
def test_read_in_parts_with_a_cache_it_is_the_same(split: int) -> None:
    cache = MODEL.new_cache(6, rows=2)
    with torch.no_grad():
        parts = [MODEL.lens_states(part, cache) for part in (TOKENS[:, :split], TOKENS[:, split:])]
    torch.testing.assert_close(torch.cat(parts, 2), lens_states(TOKENS))
    assert cache.length == 6


def test_the_cache_is_what_trunk_leaves() -> None:
    """So that a text may go on with either."""
    cache = MODEL.new_cache(6, rows=2)
    with torch.no_grad():
        MODEL.lens_states(TOKENS[:, :4], cache)
        logits = MODEL.next_logits(TOKENS[:, 4:], cache)
        torch.testing.assert_close(logits, MODEL(TOKENS)[:, -1])


def test_a_padded_row_gives_what_it_gives_alone() -> None:
    pad = torch.tensor([0, 2])
    padded = torch.cat([TOKENS[:1], torch.tensor([[0, 0, 2, 6, 5, 3]])])
    streams = lens_states(padded, pad)
    torch.testing.assert_close(streams[:, 1, 2:], lens_states(TOKENS[1:, :4])[:, 0])
    torch.testing.assert_close(streams[:, 0], lens_states(TOKENS)[:, 0])
    cache = MODEL.new_cache(6, rows=2, pad=pad)
    with torch.no_grad():
        parts = [MODEL.lens_states(part, cache) for part in (padded[:, :4], padded[:, 4:])]
    torch.testing.assert_close(torch.cat(parts, 2)[:, 1, 2:], lens_states(TOKENS[1:, :4])[:, 0])


def test_what_does_not_fit_is_told_as_ever() -> None:
    with pytest.raises(ValueError, match="33 tokens do not fit the context length of 32"):
        lens_states(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="the tokens have 2 rows, but the cache or its padding has 1"):
        MODEL.lens_states(TOKENS, MODEL.new_cache(6))
