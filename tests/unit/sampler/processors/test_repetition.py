"""Presence and frequency penalties, DRY, and what makes a text end: against oracles that count by hand."""

from __future__ import annotations

import random

import pytest
import torch

from minigpt.sampler.processors import DRY, ExponentialLengthDecay, FrequencyPenalty, PresencePenalty

V = 6


@pytest.mark.parametrize("prompt_length", [1, 3, 7])
def test_presence_and_frequency_count_new_tokens_alone(prompt_length: int) -> None:
    tokens = [0, 1, 2, 2, 3, 2, 3]
    counts = [tokens[prompt_length:].count(token) for token in range(V)]
    logits, text = torch.randn(1, V), torch.tensor([tokens])
    lost = logits - PresencePenalty(0.75, prompt_length)(logits, text)
    torch.testing.assert_close(lost, 0.75 * torch.tensor([counts]).clamp_max(1))
    lost = logits - FrequencyPenalty(-0.75, prompt_length)(logits, text)
    torch.testing.assert_close(lost, -0.75 * torch.tensor([counts]))


def brute_force(text: list[int], token: int, allowed: int, breakers: frozenset[int]) -> float:
    """Tries every run of 1 to 50 tokens at the text's end: was it followed by this token before?"""
    said = [
        n
        for n in range(1, 51)
        for i in range(n, len(text))
        if text[i - n : i] == text[len(text) - n :] and text[i] == token
        if not breakers & {token, *text[i - n : i]}
    ]
    longest = max(said, default=0)
    return 0.5 * 1.5 ** (longest - allowed) if longest >= allowed else 0.0


@pytest.mark.parametrize("allowed", [1, 2, 5])
@pytest.mark.parametrize("breakers", [frozenset(), frozenset([0]), frozenset([0, 3])])
def test_dry_takes_what_a_brute_force_search_finds(allowed: int, breakers: frozenset[int]) -> None:
    chance = random.Random(f"{allowed} {sorted(breakers)}")
    dry = DRY(0.5, 1.5, allowed, breakers)
    for n in [1, 2, 3, *(chance.randint(4, 40) for _ in range(30))]:
        # Few different tokens, and pieces said again, so that there are long matches that overlap.
        texts = [[chance.randrange(4) for _ in range(n)] for _ in range(3)]
        texts[1] = (texts[1][: max(1, n // 3)] * n)[:n]
        lost = -dry(torch.zeros(3, V), torch.tensor(texts))
        expected = [[brute_force(text, token, allowed, breakers) for token in range(V)] for text in texts]
        torch.testing.assert_close(lost, torch.tensor(expected))


def test_dry_counts_50_tokens_at_most_so_that_no_penalty_leaves_the_floats() -> None:
    text = torch.full((1, 500), 2)
    assert DRY(1.0, 1.75)(torch.zeros(1, V), text)[0, 2] == pytest.approx(-(1.75**48))
    assert DRY(1e4, 5.0)(torch.zeros(1, V), text)[0, 2].isfinite()


def test_dry_leaves_what_is_ruled_out_and_other_tokens_alone() -> None:
    logits = torch.tensor([[1.0, 2.0, float("-inf"), 3.0]])
    assert DRY(9.0)(logits, torch.tensor([[0, 1, 2, 0, 1]])).equal(logits)
    assert DRY(9.0)(logits, torch.tensor([[0, 1, 3, 0, 1]])).tolist() == [[1.0, 2.0, float("-inf"), -6.0]]


def test_end_tokens_are_lifted_ever_higher_and_never_to_infinity() -> None:
    step = ExponentialLengthDecay(2, 3.0, prompt_length=1, end_tokens=frozenset([1, 2, 99]))
    logits = torch.tensor([[1.0, -2.0, float("-inf")]])
    found = [step(logits, torch.zeros(1, n, dtype=torch.long))[0].tolist() for n in (1, 3, 4, 5)]
    none = float("-inf")
    assert found == [[1, -2, none], [1, -2, none], [1, -2 + 2 * 2, none], [1, -2 + 2 * 8, none]]
    far = step(logits, torch.zeros(1, 2000, dtype=torch.long))
    assert 1e34 < far[0, 1] < float("inf")
    assert far[0, 2] == none
