"""Beam search against searches that are too slow to use and too short to be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from fakes import FakeModel, Text, after_last, scrambled, tiny_gpt2

from minigpt.sampler import Beam, BeamSample, Greedy, Sample, Strategy, generate
from minigpt.sampler.api import run
from minigpt.sampler.engine import beam_search
from minigpt.sampler.events import BeamExtension, BeamsExtended, Finished, TokenGenerated
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.constrained import Constrained
from minigpt.sampler.strategies.diverse_beam import DiverseBeam

Logprobs = Callable[[Text], list[float]]


def logprobs_of(model: Any) -> Logprobs:
    """What follows a text, computed anew from its first token: no cache, no batch, no padding."""
    if isinstance(model, FakeModel):
        return lambda text: torch.tensor(model.rule(text)).log_softmax(-1).tolist()
    with torch.no_grad():
        return lambda text: model(torch.tensor([text]))[0, -1].log_softmax(-1).tolist()


def exhaustive(
    logprobs: Logprobs, prompt: Text, n: int, ends: set[int], length_penalty: float
) -> list[tuple[Text, float]]:
    """All texts that there are, best first."""
    texts, open_ones = [], [((), 0.0)]
    while open_ones:
        text, total = open_ones.pop()
        if text and (text[-1] in ends or len(text) == n):
            texts.append((text, total / len(text) ** length_penalty))
        else:
            open_ones += [
                ((*text, token), total + value) for token, value in enumerate(logprobs((*prompt, *text)))
            ]
    return sorted(texts, key=lambda found: -found[1])


def naive_beam(
    logprobs: Logprobs, prompt: Text, n: int, ends: set[int], width: int, length_penalty: float
) -> list[tuple[Text, float]]:
    """Beam search that ends with `width` finished texts (early_stopping=True)."""
    live, finished = [((), 0.0)], []
    for length in range(1, n + 1):
        grown = [
            ((*text, token), total + value)
            for text, total in live
            for token, value in enumerate(logprobs((*prompt, *text)))
        ]
        grown.sort(key=lambda found: -found[1])
        done = [found[0][-1] in ends or length == n for found in grown]
        finished += [
            (text, total / length**length_penalty)
            for (text, total), over in zip(grown[:width], done, strict=False)
            if over
        ]
        live = [found for found, over in zip(grown, done, strict=True) if not over][:width]
        if len(finished) >= width:
            break
    return sorted(finished, key=lambda found: -found[1])[:width]


def search(
    model: Any, prompt: Text, n: int, ends: set[int] = frozenset(), **options: Any
) -> list[tuple[Text, float]]:
    (group,) = generate(model, [prompt], Beam(**options), max_new_tokens=n, end_tokens=ends)
    return [(tuple(text.tokens), text.score) for text in group]


def assert_same(found: list[tuple[Text, float]], expected: list[tuple[Text, float]]) -> None:
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("ends", [set(), {1}, {0, 2}])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0, 2.5])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_at_full_width_it_finds_all_texts_and_their_order(
    ends: set[int], length_penalty: float, early_stopping: Any
) -> None:
    model = FakeModel(scrambled(3, seed=2))
    expected = exhaustive(logprobs_of(model), (1, 0), 4, ends, length_penalty)
    n = len(expected)
    options = {"num_beams": n, "length_penalty": length_penalty, "early_stopping": early_stopping}
    assert_same(search(model, (1, 0), 4, ends, num_return_sequences=n, **options), expected)


@pytest.mark.parametrize("ends", [set(), {1, 5}, {0, 2, 7, 8}])
@pytest.mark.parametrize("width", [2, 3, 6])
@pytest.mark.parametrize("model", [FakeModel(scrambled(9)), tiny_gpt2()], ids=["table", "gpt2"])
def test_it_equals_a_naive_search_without_cache(model: Any, width: int, ends: set[int]) -> None:
    options = {"length_penalty": 0.7}
    expected = naive_beam(logprobs_of(model), (1, 2, 3), 8, ends, width=width, **options)
    found = search(
        model, (1, 2, 3), 8, ends, early_stopping=True, num_beams=width, num_return_sequences=width, **options
    )
    assert_same(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": -3.0},
        {"early_stopping": True},
        {"early_stopping": "never", "length_penalty": 2.0},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"bad_words": [[4], [2, 3]], "logit_bias": {6: 1.0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("ends", [set(), {1, 5}])
def test_one_beam_is_greedy_whatever_the_other_options(options: dict[str, Any], ends: set[int]) -> None:
    model, prompts = FakeModel(scrambled(9)), [(1, 1), (2, 3, 4), (5,)]
    shared = {
        name: value for name, value in options.items() if name not in ("length_penalty", "early_stopping")
    }
    limits: dict[str, Any] = {"max_new_tokens": 8, "end_tokens": ends, "top_logprobs": 2}
    beam = generate(model, prompts, Beam(num_beams=1, **options), **limits)
    greedy = generate(model, prompts, Greedy(**shared), **limits)
    for (one,), (other,) in zip(beam, greedy, strict=True):
        assert vars(one) | {"score": 0} == vars(other) | {"score": 0}
        expected = other.score / len(other.tokens) ** options.get("length_penalty", 1.0)
        assert one.score == pytest.approx(expected)


def test_one_beam_that_draws_lots_is_sampling() -> None:
    model, prompts = FakeModel(scrambled(9, spread=0.3)), [(1, 1), (2, 3, 4)]
    options: dict[str, Any] = {"seed": 4, "top_p": 0.9, "temperature": 1.5}
    beam, sample = (
        generate(model, prompts, strategy, max_new_tokens=8)
        for strategy in (BeamSample(num_beams=1, **options), Sample(**options))
    )
    assert [group[0].tokens for group in beam] == [group[0].tokens for group in sample]


def test_beams_that_draw_among_the_two_best_are_not_beams_that_take_them() -> None:
    model = FakeModel(scrambled(30, spread=0.3))
    found = {
        tuple(generate(model, [(1,)], strategy, max_new_tokens=8)[0][0].tokens)
        for strategy in (Beam(num_beams=2), BeamSample(num_beams=2, seed=0), BeamSample(num_beams=2, seed=1))
    }
    assert len(found) == 3


# Length


def test_equal_logprobs_per_token_give_equal_scores_at_length_penalty_1() -> None:
    """The prompt's length counts for nothing, the end token's for one."""
    half = FakeModel(lambda text: [0.0, 0.0])  # 0 ends a text, at every length with probability 2 ** -length
    for prompt in [(1,), (1, 1, 1, 1, 1, 1)]:
        found = search(half, prompt, 4, {0}, num_beams=5, num_return_sequences=5)
        assert sorted(len(text) for text, _ in found) == [1, 2, 3, 4, 4]
        assert [score for _, score in found] == pytest.approx([math.log(0.5)] * 5)


@pytest.mark.parametrize(
    ("length_penalty", "lengths"), [(0.0, [1, 2, 3]), (-1.0, [1, 2, 3]), (2.0, [4, 4, 3])]
)
def test_the_length_penalty_decides_between_short_and_long(length_penalty: float, lengths: list[int]) -> None:
    half = FakeModel(lambda text: [0.0, 0.0])
    options: dict[str, Any] = {"num_beams": 5, "num_return_sequences": 3, "length_penalty": length_penalty}
    assert [len(text) for text, _ in search(half, (1,), 4, {0}, **options)] == lengths


def test_the_score_is_total_over_length_to_the_penalty() -> None:
    model = FakeModel(scrambled(9))
    for group in generate(
        model,
        [(1,), (2, 3)],
        Beam(num_beams=4, num_return_sequences=4, length_penalty=1.5),
        max_new_tokens=5,
        end_tokens=[2, 3],
    ):
        for text in group:
            assert text.score == pytest.approx(sum(text.logprobs) / len(text.tokens) ** 1.5, abs=1e-5)


def test_what_processors_take_away_is_taken_from_the_score() -> None:
    """They act on log-probabilities, which are not normalised again."""
    model = FakeModel(scrambled(9))
    (group,) = generate(
        model, [(1,)], Beam(num_beams=2, logit_bias=dict.fromkeys(range(9), -1.0)), max_new_tokens=3
    )
    assert group[0].score == pytest.approx(sum(group[0].logprobs) / 3 - 1, abs=1e-5)


# Enough texts


def test_there_are_as_many_texts_as_asked_for_even_where_most_tokens_are_ends() -> None:
    model = FakeModel(scrambled(9))
    for prompt, ends in product([(1,), (2, 3)], [{0}, {0, 1, 2, 3}, set(range(8))]):
        found = search(model, prompt, 6, ends, num_beams=4, num_return_sequences=4)
        assert len({text for text, _ in found}) == 4
        assert all(text[-1] in ends or len(text) == 6 for text, _ in found)


def test_end_tokens_do_not_crowd_out_the_texts_that_go_on() -> None:
    """Three ends are likelier than all else at every step; yet with two beams two texts are carried on."""
    row = [0.3, 0.25, 0.2, 0.15, 0.1]
    model = FakeModel(after_last(dict.fromkeys(range(5), row)), end_tokens=[0, 1, 2])
    generate(model, [(3,)], Beam(num_beams=2, length_penalty=5.0, early_stopping="never"), max_new_tokens=4)
    assert model.reads == [(1, 1), (2, 1), (2, 1), (2, 1)]


def test_there_are_no_more_texts_than_the_vocabulary_allows() -> None:
    found = search(FakeModel(scrambled(2)), (1,), 2, num_beams=7, num_return_sequences=7)
    assert sorted(text for text, _ in found) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_beam_with_nothing_left_dies_alone() -> None:
    """Bad words leave the likelier first token without any continuation; the other one's text is found."""
    model = FakeModel(lambda text: [2.0, 1.0, 0.0])
    dead = [[0, 0], [0, 1], [0, 2]]
    assert search(model, (2,), 2, num_beams=2, bad_words=dead)[0][0] == (1, 0)


# When to stop


def test_three_modes_of_early_stopping_give_three_answers() -> None:
    """With one text a step that ends, each mode gives up later than the one before, and finds a better text."""
    answers, scores, steps = [], [], []
    for mode in (True, False, "never"):
        model = FakeModel(scrambled(12, seed=10))
        ((text, score),) = search(
            model, (1,), 12, {0, 1, 2}, num_beams=2, length_penalty=1.5, early_stopping=mode
        )
        answers.append(text)
        scores.append(score)
        steps.append(len(model.reads))
    assert len(set(answers)) == 3
    assert scores == sorted(scores)
    assert steps == sorted(set(steps))


def test_without_end_tokens_the_modes_are_one() -> None:
    model = FakeModel(scrambled(9))
    found = {search(model, (1,), 5, num_beams=3, early_stopping=mode)[0] for mode in (True, False, "never")}
    assert len(found) == 1


# What is reported while it searches


def reported(model: Any, strategy: Strategy, steps: int) -> tuple[Text, list[Text], Text]:
    """What was settled and which beams went on after so many steps; and the best text in the end."""
    settled, live, grown = [], [()], 0
    best: Text = ()
    for event in run(model, prepare(model, [(1, 0)], max_new_tokens=16, end_tokens=[2, 3]), strategy):
        if isinstance(event, BeamsExtended):
            grown += 1
            if grown <= steps:
                live = [(*live[beam.parent], beam.token) for beam in event.beams if not beam.finish_reason]
        elif isinstance(event, TokenGenerated) and grown <= steps:
            settled.append(event.token)
        elif isinstance(event, Finished):
            best = tuple(event.completions[0].tokens)
    return tuple(settled), live, best


@pytest.mark.parametrize(
    "strategy",
    [
        Beam(num_beams=3, early_stopping="never"),
        DiverseBeam(num_beams=4, early_stopping="never", diversity_penalty=0.2),
        Constrained(num_beams=3, early_stopping="never", must_include=[[4]]),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
@pytest.mark.parametrize("steps", [2, 5])
def test_a_token_is_told_as_soon_as_no_future_can_change_it(strategy: Strategy, steps: int) -> None:
    """Of the futures that the model may yet bring, each beam wins in one, and what is finished in another."""
    for seed in (2, 4, 9):  # in each a text is finished that will not win
        rule = scrambled(9, seed, spread=1.5)

        def future(text: Text, winner: Text | None, rule: Any = rule) -> list[float]:
            if len(text) < 2 + steps:  # has been read
                return [value + (token in (2, 3)) for token, value in enumerate(rule(text))]
            return [30.0 * (text[2 : 2 + steps] == winner) * (token == 4) for token in range(9)]

        settled, live, _ = reported(FakeModel(partial(future, winner=None)), strategy, steps)
        futures = []
        for winner in [*live, None]:
            again, same, best = reported(FakeModel(partial(future, winner=winner)), strategy, steps)
            assert (again, same) == (settled, live)
            futures.append(best)
        assert all(best[: len(settled)] == settled for best in futures)
        assert live
        assert len({best[: len(settled) + 1] for best in futures}) > 1


def test_what_is_told_of_the_beams() -> None:
    """Two steps of two beams by hand: at each end token 0, or 1, or 2."""
    model = FakeModel(after_last({0: [1.0, 0.0, 0.0], 1: [0.5, 0.3, 0.2], 2: [0.1, 0.2, 0.7]}))
    events = list(run(model, prepare(model, [(1,)], max_new_tokens=2, end_tokens=[0]), Beam(num_beams=2)))
    first, second = [event.beams for event in events if isinstance(event, BeamsExtended)]
    assert first == [
        BeamExtension(0, 1, pytest.approx(math.log(0.3)), ""),
        BeamExtension(0, 2, pytest.approx(math.log(0.2)), ""),
        BeamExtension(0, 0, pytest.approx(math.log(0.5)), "eos"),
    ]
    assert second == [
        BeamExtension(0, 0, pytest.approx(math.log(0.3 * 0.5) / 2), "eos"),
        BeamExtension(1, 2, pytest.approx(math.log(0.2 * 0.7) / 2), "length"),
    ]
    assert [type(event).__name__ for event in events].index("BeamsExtended") == 1


def test_processors_last_as_long_as_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some remember what they saw; each prompt has its own."""
    chains = []
    chain = beam_search.chain
    strategy = Beam(num_beams=3)
    monkeypatch.setattr(
        beam_search, "chain", lambda *given, **named: chains.append(given) or chain(*given, **named)
    )
    generate(FakeModel(scrambled(9)), [(1,), (2, 3)], strategy, max_new_tokens=6, end_tokens=[5])
    assert [request.prompt for _, request in chains] == [(1,), (2, 3)]
