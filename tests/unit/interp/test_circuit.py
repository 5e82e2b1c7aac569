"""The circuit that is known by construction does what it was made for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from circuit import GAIN, VOCAB, induction_circuit, repeated

from minigpt.interp import ablate, knock_out, record_text

MODEL = induction_circuit()
TEXT = repeated(period=9, copies=3)  # 28 tokens
N = len(TEXT)
# Positions whose next token can be known: from the first token of the second copy on.
SECOND = range(10, N - 1)


def losses(logits: torch.Tensor) -> torch.Tensor:
    """In nats, of each position's next token: (T - 1,)."""
    return F.cross_entropy(logits[0, :-1], torch.tensor(TEXT[1:]), reduction="none")


def test_it_knows_every_token_of_the_later_copies() -> None:
    logits = record_text(MODEL, TEXT, "logits")["logits"]
    expected = GAIN * F.one_hot(torch.tensor(TEXT), VOCAB).float()
    torch.testing.assert_close(logits[0, SECOND], expected[[i + 1 for i in SECOND]], rtol=1e-4, atol=1e-4)
    assert losses(logits)[SECOND].max() < 1e-6


def test_the_previous_token_head_attends_one_back_and_the_inert_ones_everywhere() -> None:
    seen = record_text(MODEL, TEXT, "blocks.*.attn.pattern")
    previous = seen["blocks.0.attn.pattern"][0, 0]
    torch.testing.assert_close(previous.diagonal(-1), torch.ones(N - 1))
    uniform = torch.ones(N, N).tril() / torch.arange(1, N + 1)[:, None]
    for layer in (0, 1):
        torch.testing.assert_close(seen[f"blocks.{layer}.attn.pattern"][0, 1], uniform)


def test_the_induction_head_attends_to_what_came_after_earlier_occurrences() -> None:
    pattern = record_text(MODEL, TEXT, "blocks.1.attn.pattern")["blocks.1.attn.pattern"][0, 0]
    for query in range(10, N):
        after = [j + 1 for j in range(1, query) if TEXT[j] == TEXT[query]]
        assert pattern[query, after].sum() > 1 - 1e-6


def test_without_either_head_it_knows_nothing() -> None:
    for layer, least in ((0, 0.9 * math.log(VOCAB)), (1, math.log(VOCAB) - 1e-4)):
        with ablate(MODEL, f"blocks.{layer}.attn.z", heads=[0]):
            logits = record_text(MODEL, TEXT, "logits")["logits"]
        assert losses(logits)[SECOND].mean() > least
    with ablate(MODEL, "blocks.*.attn.z", heads=[1]), ablate(MODEL, "blocks.*.mlp.out"):
        assert losses(record_text(MODEL, TEXT, "logits")["logits"])[SECOND].max() < 1e-6


def test_a_token_whose_predecessor_it_may_not_see_cannot_be_copied() -> None:
    """Token 5 is known by what came before it at 4; then the query that repeats 4 has lost its target."""
    with knock_out(MODEL, queries=[5], keys=[4], layers=[0], heads=[0]):
        logits = record_text(MODEL, TEXT, "logits")["logits"]
    assert losses(logits)[13] > 1.0
    assert losses(logits)[[i for i in range(10, 19) if i != 13]].max() < 1e-6
