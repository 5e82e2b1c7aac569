"""Greedy text with drafts is transformers' own, with and without its drafts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from reference import pair
from transformers import GPT2LMHeadModel

from minigpt import GPT2
from minigpt.sampler import generate
from minigpt.sampler.strategies.prompt_lookup import PromptLookup
from minigpt.sampler.strategies.speculative import Speculative

PROMPTS = [[3, 4, 5], [7, 8, 9, 1, 7, 8], [60]]
N_NEW = 24


@cache
def models(seed: int = 0, n_layer: int = 3) -> tuple[GPT2, GPT2LMHeadModel]:
    with TemporaryDirectory() as directory:
        return pair(Path(directory), seed=seed, spread=0.3, n_layer=n_layer)


def theirs(**drafts: Any) -> list[list[int]]:
    """Prompt by prompt, for their drafts take no batches."""
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = models()[1].generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=N_NEW, do_sample=False, pad_token_id=0, **drafts
        )  # fmt: skip
        texts.append(out[0, len(prompt) :].tolist())
    return texts


def ours(strategy: PromptLookup | Speculative) -> list[list[int]]:
    return [text.tokens for (text,) in generate(models()[0], PROMPTS, strategy, max_new_tokens=N_NEW)]


@pytest.mark.parametrize("n", [2, 10])
def test_prompt_lookup(n: int) -> None:
    expected = theirs(prompt_lookup_num_tokens=n)
    assert ours(PromptLookup(num_draft_tokens=n)) == expected == theirs()


@pytest.mark.parametrize("n", [1, 4])
def test_a_draft_model(n: int) -> None:
    draft, their_draft = models(seed=1, n_layer=1)
    their_draft.generation_config.num_assistant_tokens = n
    expected = theirs(assistant_model=their_draft)
    assert ours(Speculative(draft=draft, num_draft_tokens=n)) == expected == theirs()
