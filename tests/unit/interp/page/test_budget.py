"""A page stays under 5 MB, whatever it shows of a model of gpt2's shape."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from minigpt import GPT2, GPT2Config, Tokenizer
from minigpt.interp.page import explore
from minigpt.interp.page.budget import Kept, kept
from minigpt.sampler import Sample

MOST = 5_000_000
GPT2_SHAPE = GPT2Config()


@pytest.mark.parametrize(
    ("sizes", "n_tokens", "n_generated", "n_runs", "wanted"),
    [
        ({}, 10, 0, 1, Kept(10, True)),  # whole rows
        ({}, 1024, 0, 1, Kept(7, True)),
        ({}, 1024, 0, 2, Kept(2, True)),
        ({}, 1024, 4, 1, Kept(4, True)),
        ({}, 1024, 20, 1, Kept(7, False)),
        ({"vocab_size": 4096}, 512, 50, 1, Kept(15, True)),
        ({"n_layer": 48, "n_head": 25}, 1024, 0, 1, Kept(1, True)),  # too many heads for 5 MB
    ],
)
def test_what_is_kept(
    sizes: dict[str, int], n_tokens: int, n_generated: int, n_runs: int, wanted: Kept
) -> None:
    assert kept(GPT2Config(**{"n_embd": 12 * 25 * 4, **sizes}), n_tokens, n_generated, n_runs) == wanted  # type: ignore[arg-type]


def text_of(tokenizer: Tokenizer, n_tokens: int) -> str:
    """Some text of so many tokens."""
    generator = torch.Generator().manual_seed(0)
    ids: Sequence[int] = torch.randint(0, 4000, (2 * n_tokens,), generator=generator).tolist()
    return tokenizer.decode(tokenizer.encode(tokenizer.decode(ids))[:n_tokens])


@pytest.mark.parametrize(
    ("n_prompt", "n_new", "width", "spread"),
    [
        (1000, 0, 96, 0.5),  # of sharp attention, which compresses worse than even attention
        pytest.param(1000, 0, 768, 0.02, marks=pytest.mark.slow),
        pytest.param(100, 900, 96, 0.5, marks=pytest.mark.slow),
        pytest.param(800, 20, 96, 0.5, marks=pytest.mark.slow),
    ],
)
def test_a_thousand_tokens_of_gpt2_s_shape_take_less_than_5_mb(
    n_prompt: int, n_new: int, width: int, spread: float
) -> None:
    """Random weights, whose attention and predictions compress worst; the hidden size changes no size of the page."""
    torch.manual_seed(0)
    n_vocab = 50257 if n_new or width == 768 else 4096
    model = GPT2(GPT2Config(n_embd=width, vocab_size=n_vocab, initializer_range=spread)).eval()
    tokenizer, overflow = Tokenizer.from_pretrained(), "truncate" if n_new else "error"
    page = explore(
        model,
        tokenizer,
        text_of(tokenizer, n_prompt),
        Sample(seed=0),
        max_new_tokens=n_new,
        overflow=overflow,
    )
    assert 2_000_000 < len(page.html) < MOST
