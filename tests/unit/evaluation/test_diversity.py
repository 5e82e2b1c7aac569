"""What is counted in texts, against counting by hand, the libraries that others use, and at its limits."""

from __future__ import annotations

import math
import random

import pytest
import torch
from fakes import tiny_gpt2
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import BLEU
from scipy.stats import linregress

from minigpt.compare.measuring import perplexity
from minigpt.compare.writing import Counted, write
from minigpt.data.prompts import Prompt
from minigpt.evaluation.diversity import (
    distinct,
    ends_in_a_loop,
    loops,
    ngrams,
    repetition,
    self_bleu,
    zipf,
)
from minigpt.evaluation.logprobs import token_logprobs
from minigpt.sampler import Beam, Greedy, Sample, generate

SAME = [[1, 2, 3, 4, 5, 6]] * 3
DIFFERENT = [list(range(start, start + 6)) for start in (0, 6, 12)]
TEXTS = st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=6)


# ------------------------------------------------------------------------------ diversity and repetition


@given(TEXTS, st.integers(1, 4))
def test_distinct_counts_what_is_new(texts: list[list[int]], n: int) -> None:
    seen, new, total = set(), 0, 0
    for text in texts:
        for start in range(len(text) - n + 1):
            run = tuple(text[start : start + n])
            new, total = new + (run not in seen), total + 1
            seen.add(run)
    assert distinct(texts, n) == pytest.approx(new / total if total else math.nan, nan_ok=True)


def test_distinct_at_its_limits() -> None:
    assert [distinct(DIFFERENT, n) for n in (1, 2, 3)] == [1, 1, 1]
    assert [distinct(SAME, n) for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3)
    assert math.isnan(distinct([[1], []], 2))


def test_repetition_is_a_mean_over_texts_not_over_runs() -> None:
    looping, fresh = [1, 2] * 5, list(range(4))  # 7 runs of four, 2 of them different; and a single run
    assert repetition([looping, fresh]) == pytest.approx((5 / 7 + 0) / 2)
    assert repetition([looping, [1, 2, 3]]) == pytest.approx(5 / 7)  # too short to have one
    assert repetition(DIFFERENT) == 0
    assert math.isnan(repetition([[1, 2, 3]]))


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("abab", False),  # twice
        ("ababab", True),
        ("xxabcabcabc", True),
        ("abcabcabcx", False),  # not at the end
        ("aaaaa", False),  # a single token is no phrase
        ("aaaaaa", True),  # a phrase of two, three times
        ("abcabdabc", False),
        ("", False),
    ],
)
def test_a_loop_is_a_phrase_said_three_times_at_the_end(text: str, is_loop: bool) -> None:
    assert ends_in_a_loop([ord(letter) for letter in text]) is is_loop


def test_the_share_of_loops() -> None:
    assert loops([[1, 2] * 3, [1, 2] * 2, [], [5] * 9]) == 0.5
    assert math.isnan(loops([]))


def test_zipf_is_the_slope_of_logarithms() -> None:
    chance = random.Random(0)
    texts = [[min(int(chance.paretovariate(1)), 40) for _ in range(200)] for _ in range(3)]
    frequencies = sorted(torch.tensor(texts).flatten().unique(return_counts=True)[1].tolist(), reverse=True)
    ranks = range(1, len(frequencies) + 1)
    fit = linregress([math.log(rank) for rank in ranks], [math.log(count) for count in frequencies])
    assert zipf(texts) == pytest.approx(-fit.slope)
    assert zipf(DIFFERENT) == 0  # all equally frequent
    assert math.isnan(zipf([[7, 7, 7]]))


def test_zipf_leaves_out_what_is_beyond_rank_5000() -> None:
    often = [token for token in range(5000) for _ in range(2)]
    assert zipf([often, range(5000, 9000)]) == 0


# ------------------------------------------------------------------------------ self-BLEU


def by_the_library(texts: list[list[int]]) -> float:
    bleu = BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=True)
    words = [" ".join(map(str, text)) for text in texts if text]
    scores = [
        bleu.sentence_score(text, words[:i] + words[i + 1 :]).score / 100 for i, text in enumerate(words)
    ]
    return sum(scores) / len(scores)


@given(TEXTS.filter(lambda texts: sum(map(bool, texts)) > 1))
def test_self_bleu_is_the_librarys(texts: list[list[int]]) -> None:
    assert self_bleu(texts) == pytest.approx(by_the_library(texts), abs=1e-9)


def test_self_bleu_at_its_limits() -> None:
    assert self_bleu(SAME) == pytest.approx(1)
    assert self_bleu(DIFFERENT) == 0
    assert math.isnan(self_bleu([[1, 2, 3], []]))


def test_self_bleu_by_hand() -> None:
    # 1 2 3 against 1 2 4: of 3 tokens 2 match, of 2 pairs 1, of one triple none, which counts as 0.1; no brevity.
    assert self_bleu([[1, 2, 3], [1, 2, 4]]) == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))


def test_self_bleu_punishes_texts_shorter_than_the_others() -> None:
    short, long = [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8]
    of_the_long = (4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** (1 / 4)
    assert self_bleu([short, long]) == pytest.approx((math.exp(1 - 8 / 4) + of_the_long) / 2)


# ------------------------------------------------------------------------------ perplexity and cost


def test_perplexity_is_that_of_each_text_after_its_prompt() -> None:
    model = tiny_gpt2()
    pairs = [((1, 2, 3), [4, 5, 6, 7]), ((9,), [8]), ((5, 5), [])]
    logprobs = torch.cat([token_logprobs(model, [*a, *b], context=len(a)) for a, b in pairs if b])
    assert len(logprobs) == 5
    assert perplexity(model, pairs) == pytest.approx(math.exp(-logprobs.double().mean()), rel=1e-5)
    assert math.isnan(perplexity(model, [((1,), [])]))


def test_perplexity_of_what_a_method_wrote_is_that_of_its_own_logprobs() -> None:
    model, prompt = tiny_gpt2(), (1, 2, 3)
    ((best,),) = generate(model, [prompt], Sample(seed=0), max_new_tokens=20)
    expected = math.exp(-sum(best.logprobs) / 20)
    assert perplexity(model, [(prompt, best.tokens)]) == pytest.approx(expected, rel=1e-4)


PROMPTS = [Prompt((1, 2, 3)), Prompt((4,)), Prompt((5, 6))]


@pytest.mark.parametrize(
    "strategy", [Greedy(), Sample(seed=3), Beam(num_beams=3)], ids=["greedy", "sample", "beam"]
)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_counting_and_batches_change_no_text(strategy, batch_size) -> None:
    model, reported = tiny_gpt2(), []
    expected = [
        best.tokens for best, *_ in generate(model, [p.tokens for p in PROMPTS], strategy, max_new_tokens=9)
    ]
    written = write(model, PROMPTS, strategy, 9, batch_size, reported.append)
    assert written.tokens == expected
    assert reported == [1, 1, 1]
    assert written.cost["tokens_per_s"] > 0


def test_passes_per_token_are_those_of_each_text_alone() -> None:
    model = tiny_gpt2()

    def passes(strategy, batch_size):
        return write(model, PROMPTS, strategy, 5, batch_size).cost["passes_per_token"]

    assert [passes(Greedy(), size) for size in (1, 2, 3)] == [1, 1, 1]
    # The prompt is read once, then each of the other four tokens by three beams.
    assert [passes(Beam(num_beams=3), size) for size in (1, 2, 3)] == pytest.approx([(1 + 4 * 3) / 5] * 3)


def test_cache_bytes_are_the_most_that_lived_at_one_time() -> None:
    model = tiny_gpt2()  # 2 layers of 16, float32
    slot = 2 * 2 * 16 * 4
    assert write(model, PROMPTS[1:2], Greedy(), 5, 1).cost["cache_bytes"] == slot * 5  # the last is not read
    assert write(model, PROMPTS, Greedy(), 5, 3).cost["cache_bytes"] == slot * 3 * 7  # padded to the longest
    assert write(model, PROMPTS, Greedy(), 5, 1).cost["cache_bytes"] == slot * 7  # one after the other
    assert write(model, PROMPTS[1:2], Beam(num_beams=3), 5, 1).cost["cache_bytes"] == slot * 3 * 5


def test_caches_that_live_together_are_added() -> None:
    counted, token = Counted(tiny_gpt2()), torch.tensor([[1]])
    first, second = counted.new_cache(3), counted.new_cache(5)
    counted.hidden_states(token, first)
    together = counted.peak_bytes
    del first
    counted.lens_states(token, second)
    assert counted.passes == 2
    assert together == counted.peak_bytes == 2 * 2 * 16 * 4 * 8


def test_runs_of_tokens() -> None:
    assert list(ngrams([1, 2, 3, 4], 3)) == [(1, 2, 3), (2, 3, 4)]
    assert list(ngrams([1, 2], 3)) == []
