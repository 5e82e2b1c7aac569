"""Random numbers: whose they are, what they have in common, and how often each token is sampled by them."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel, scrambled
from scipy.stats import chisquare, kstest
from torch import Tensor

import minigpt
from minigpt.sampler import BeamSample, PromptLookup, Sample, Speculative, Strategy, generate
from minigpt.sampler.api import prepare, run
from minigpt.sampler.engine.random_stream import (
    RandomStream,
    sample,
    sample_by_torch,
    sample_distinct,
    uniform,
)
from minigpt.sampler.events import Finished
from minigpt.sampler.processors import XTC

NONE = float("-inf")
CHANCES = [0.4, 0.3, 0.15, 0.1, 0.05, 0.0]
MASK = (1 << 64) - 1


def assert_as_often_as(expected: dict[Any, float], drawn: list[Any]) -> None:
    """Seeds are fixed, so this cannot fail by bad luck; a skew of a few percent would."""
    counts = Counter(drawn)
    possible = [outcome for outcome, chance in expected.items() if chance > 0]
    assert set(counts) <= set(possible)
    observed = [counts[outcome] for outcome in possible]
    assert chisquare(observed, [expected[outcome] * len(drawn) for outcome in possible]).pvalue > 0.01


def keys(n: int) -> list[int]:
    return [RandomStream(0, [1]).key(position) for position in range(n)]


# The numbers themselves


def split_mix(state: int) -> int:
    """Figure 17 of the paper, in whole numbers of any size."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@pytest.mark.parametrize("key", [0, 5, 2**63, MASK])
def test_numbers_are_those_of_splitmix64(key: int) -> None:
    """For state 0 the first number is known from its use in Java and Rust: e220a8397b1dcdaf."""
    numbers = np.array([0, 1, 2, 50256], dtype=np.uint64)
    expected = [split_mix(key + (int(n) + 1) * 0x9E3779B97F4A7C15) for n in numbers]
    assert split_mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF
    assert uniform(key, numbers).tolist() == [((z >> 12) + 0.5) / 2**52 for z in expected]


def test_the_least_and_the_greatest_number_have_a_logarithm_of_a_logarithm() -> None:
    for bits in (0, 2**52 - 1):
        u = (bits + 0.5) / 2**52
        assert 0 < u < 1
        assert math.isfinite(-math.log(-math.log(u)))


def test_numbers_are_spread_evenly_over_positions_and_tokens() -> None:
    stream = RandomStream(7, [1, 2])
    across = np.concatenate([uniform(stream.key(i), np.arange(500, dtype=np.uint64)) for i in range(40)])
    assert kstest(across, "uniform").pvalue > 0.01
    assert kstest([stream.uniform(i) for i in range(4000)], "uniform").pvalue > 0.01


def test_no_two_streams_have_a_number_in_common() -> None:
    """Seeds, prompts, indices and purposes that begin alike, add up alike or are spelled alike."""
    prompts: list[Any] = [[1], [1, 2], [12], [1, 23], [12, 3], "1", "[1]", "", [0], "\ud800"]
    streams = [
        RandomStream(seed, prompt, index, purpose)
        for seed in (0, 1, 12, 2**64, 2**64 + 1)
        for prompt in prompts
        for index in (0, 1, 2)
        for purpose in ("token", "xtc")
    ]
    values = {stream.key(position) for stream in streams for position in range(20)}
    assert len(values) == len(streams) * 20


def test_lists_and_tuples_are_one_prompt() -> None:
    assert RandomStream(1, [1, 2]).key(3) == RandomStream(1, (1, 2)).key(3)


# How often each token is sampled


def test_each_token_is_sampled_as_often_as_the_softmax_says() -> None:
    logits = torch.tensor(CHANCES).log() + 5.0  # the scale of logits is free
    drawn = sample(logits.expand(4000, -1), keys(4000)).tolist()
    assert_as_often_as(dict(enumerate(CHANCES)), drawn)


def test_small_probabilities_of_a_large_vocabulary_add_up() -> None:
    logits = torch.zeros(50_000)
    logits[7] = math.log(50_000)  # as likely as the rest together, nearly
    drawn = sample(logits.expand(1000, -1), keys(1000)).tolist()
    assert_as_often_as({True: 0.5, False: 0.5}, [token == 7 for token in drawn])


def test_distinct_tokens_are_drawn_without_putting_back() -> None:
    logits = torch.tensor(CHANCES).log() + 5.0
    drawn = [tuple(sample_distinct(logits, 2, key).tolist()) for key in keys(4000)]
    pairs = {(a, b): CHANCES[a] * CHANCES[b] / (1 - CHANCES[a]) for a, b in permutations(range(6), 2)}
    assert_as_often_as(pairs, drawn)
    assert [first for first, _ in drawn] == sample(logits.expand(4000, -1), keys(4000)).tolist()


def test_distinct_tokens_end_where_no_probability_is_left() -> None:
    for n in (5, 6, 9):
        assert sorted(sample_distinct(torch.tensor(CHANCES).log(), n, 3).tolist()) == [0, 1, 2, 3, 4]


def test_what_is_ruled_out_is_never_sampled() -> None:
    logits = torch.tensor([NONE, 1.0, NONE, 2.0, NONE, -900.0])
    assert set(sample(logits.expand(500, -1), keys(500)).tolist()) == {1, 3}
    assert sample_distinct(logits, 5, 1).tolist()[-1] == 5, "too unlikely for a float, but not ruled out"


def test_a_row_that_leaves_nothing_gives_some_token() -> None:
    rows = torch.tensor([[NONE] * 3, [float("nan")] * 3, [NONE, 0.0, NONE]])
    found = sample(rows, [1, 2, 3])
    assert found.shape == (3,)
    assert found[2] == 1


def test_what_is_ruled_out_changes_nothing_for_the_others() -> None:
    """Each token has a number of its own, so a choice that stays possible stays chosen."""
    logits = torch.tensor(CHANCES[:5]).log()
    for key in keys(200):
        token = int(sample(logits[None], [key]))
        others = [other for other in range(5) if other != token]
        assert int(sample(logits.index_fill(0, torch.tensor(others[:3]), NONE)[None], [key])) == token


def test_predictions_nearly_alike_nearly_always_agree() -> None:
    """What drafts live by: at least (1 - d) / (1 + d) of the time, d being the total variation distance."""
    torch.manual_seed(0)
    large = torch.randn(500)
    small = large + 0.1 * torch.randn(500)
    distance = (large.softmax(0) - small.softmax(0)).abs().sum().item() / 2
    n = 3000
    agree = (sample(large.expand(n, -1), keys(n)) == sample(small.expand(n, -1), keys(n))).float().mean()
    assert (1 - distance) / (1 + distance) - 0.02 < agree < 1 - distance + 0.02


def test_numbers_are_made_on_the_cpu_whatever_the_default_device() -> None:
    expected = RandomStream(1, [0]).uniform(2)
    with torch.device("meta"):
        assert RandomStream(1, [0]).uniform(2) == expected
        assert sample(torch.zeros(1, 3, device="cpu"), [1]).device.type == "cpu"


# Prompts


@cache
def bundled_logits() -> tuple[list[list[int]], Tensor]:
    """50 prompts, and what the bundled model predicts after each."""
    model, tokenizer = minigpt.load()
    words = [
        "Once",
        "upon",
        "a",
        "time",
        "there",
        "was",
        "an",
        "old",
        "king",
        "who",
        "lived",
        "with",
        "his",
        "daughter",
        "in",
        "the",
    ]
    starts = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    prompts = [tokenizer.encode(start) for start in starts[:50]]
    with torch.no_grad():
        logits = torch.stack([model(torch.tensor([prompt]))[0, -1].float() for prompt in prompts])
    return prompts, logits


def test_different_prompts_are_independent() -> None:
    """Over 400 seeds the mean surprisal of 50 prompts' tokens varies as much as their distributions imply.

    With one stream for all prompts it varied 4.6 times as much: 50 prompts said no more than 2.
    """
    prompts, logits = bundled_logits()
    logprobs = logits.log_softmax(-1).double()
    means = []
    for seed in range(400):
        chosen = sample(logits, [RandomStream(seed, prompt).key(0) for prompt in prompts])
        means.append(-logprobs[range(50), chosen].mean().item())
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    variance = (logprobs.exp() * (-logprobs - entropy[:, None]).square()).sum(-1)
    implied = variance.sum().sqrt().item() / 50
    assert np.std(means) == pytest.approx(implied, rel=0.1)
    assert np.mean(means) == pytest.approx(entropy.mean().item(), abs=4 * implied / 20)


def test_generate_samples_each_prompt_by_its_own_numbers() -> None:
    prompts, logits = bundled_logits()
    model, _ = minigpt.load()
    for seed in (0, 1):
        found = generate(model, prompts, Sample(seed=seed), max_new_tokens=1)
        expected = sample(logits, [RandomStream(seed, prompt).key(0) for prompt in prompts])
        assert [text.tokens[0] for (text,) in found] == expected.tolist()


FLAT = FakeModel(lambda text: [0.0] * 1000)
DRAWING: list[Strategy] = [
    Sample(seed=3),
    BeamSample(seed=3, num_beams=3),
    PromptLookup(seed=3, do_sample=True),
    Speculative(draft=FLAT, seed=3, do_sample=True),
]
EACH = pytest.mark.parametrize("strategy", DRAWING, ids=lambda strategy: type(strategy).__name__)


def first_texts(strategy: Strategy, prompts: list[list[int]], ids: list[str | None]) -> list[list[int]]:
    plain = prepare(FLAT, prompts, max_new_tokens=3)
    requests = [replace(request, id=name) for request, name in zip(plain, ids, strict=True)]
    finished = [event for event in run(FLAT, requests, strategy) if isinstance(event, Finished)]
    return [event.completions[0].tokens for event in sorted(finished, key=lambda event: event.prompt_index)]


@EACH
def test_a_prompts_id_takes_the_place_of_its_tokens(strategy: Strategy) -> None:
    plain, same, a, again, b = first_texts(strategy, [[1], [1], [1], [2], [1]], [None, None, "a", "a", "b"])
    assert plain == same
    assert a == again
    assert len({tuple(text) for text in (plain, a, b)}) == 3


@EACH
def test_prompts_have_no_sampled_token_in_common(strategy: Strategy) -> None:
    """In a model that tells no text from another, 20 prompts of 3 tokens, of 1000 each."""
    found = first_texts(strategy, [[i] for i in range(20)], [None] * 20)
    for position in range(3):
        assert len({text[position] for text in found}) >= 18


def test_different_prompts_have_different_coins() -> None:
    """XTC: for each of 40 prompts the coins of 20 tokens."""
    row = torch.tensor([[1.0, 0.9, -9.0]])
    thrown = {
        tuple(
            bool(
                XTC(0.5, stream=RandomStream(3, [i], purpose="xtc"))(row, torch.zeros(1, n).long())[0, 0] < 0
            )
            for n in range(20)
        )
        for i in range(40)
    }
    assert len(thrown) == 40


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_sampled_text_is_that_of_sample_at_any_number_of_draft_tokens(count: int, seed: int) -> None:
    """Drafts by a model that is often right, by one that is mostly wrong, and by what came before."""
    rule = scrambled(6, spread=2.0)
    model = FakeModel(rule)
    near = FakeModel(
        lambda text: [x + 0.4 * y for x, y in zip(rule(text), scrambled(6, 1)(text), strict=True)]
    )
    prompts = [[1, 2, 3], [4], [5, 5, 5, 5, 5], [0, 1, 0, 1]]
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}
    limits: dict[str, Any] = {"max_new_tokens": 24, "end_tokens": [4]}
    expected = [text.tokens for (text,) in generate(model, prompts, Sample(seed=seed, **options), **limits)]
    drafting: dict[str, Any] = {**options, "seed": seed, "do_sample": True, "num_draft_tokens": count}
    drafting["draft_schedule"] = "constant"
    for strategy in (
        Speculative(draft=near, **drafting),
        Speculative(draft=FakeModel(scrambled(6, 5)), **drafting),
        PromptLookup(**drafting),
    ):
        assert [text.tokens for (text,) in generate(model, prompts, strategy, **limits)] == expected
        alone = [generate(model, [prompt], strategy, **limits)[0][0].tokens for prompt in prompts]
        assert alone == expected


def test_what_a_gpu_computes_is_what_the_cpu_computes() -> None:
    """The GPU's own arithmetic, on a CPU: the same numbers of every key and token, whatever is ruled out."""
    torch.manual_seed(0)
    logits = 4 * torch.randn(300, 700)
    logits[torch.rand(logits.shape) < torch.linspace(0, 0.999, 300)[:, None]] = NONE
    logits[:, 13] = logits[:, 13].clamp_min(-9)  # one at least is possible
    some = keys(300)
    some[:2] = [0, MASK]
    assert torch.equal(sample_by_torch(logits, some), sample(logits, some))
    flat = torch.zeros(300, 700)  # then the random numbers alone decide
    assert torch.equal(sample_by_torch(flat, some), sample(flat, some))
    nothing = torch.tensor([[NONE, NONE], [math.nan, math.nan]])
    assert set(sample_by_torch(nothing, [1, 2]).tolist()) <= {0, 1}
