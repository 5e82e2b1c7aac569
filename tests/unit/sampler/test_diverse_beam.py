"""Diverse beam search against a naive one, and at its limits against beam search."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from fakes import FakeModel, Text, after_last, scrambled, tiny_gpt2

from minigpt.sampler import Beam, Completion, Greedy, generate, stream
from minigpt.sampler.api import run
from minigpt.sampler.events import BeamsExtended
from minigpt.sampler.processors import RepetitionPenalty
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.diverse_beam import DiverseBeam

PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 10, 11)]
GPT2 = tiny_gpt2()


def logprobs_of(model: Any, text: Text) -> torch.Tensor:
    """What follows a text, computed anew from its first token: no cache, no batch, no padding."""
    if isinstance(model, FakeModel):
        return torch.tensor(model.rule(text)).log_softmax(-1)
    with torch.no_grad():
        return model(torch.tensor([text]))[0, -1].log_softmax(-1)


def naive(
    model: Any,
    prompt: Text,
    n: int,
    ends: set[int],
    groups: int,
    width: int,
    penalty: float,
    repetition: float,
) -> list[tuple[Text, float]]:
    """All finished texts, best first, of groups of `width` that end with `width` texts (early_stopping=True)."""
    live: list[list[tuple[Text, float]]] = [[((), 0.0)] for _ in range(groups)]
    finished: list[list[tuple[Text, float]]] = [[] for _ in range(groups)]
    for length in range(1, n + 1):
        chosen: Counter[int] = Counter()
        for g in [g for g in range(groups) if len(finished[g]) < width]:
            grown = []
            for text, total in live[g]:
                scores = logprobs_of(model, (*prompt, *text))
                scores = scores - penalty * torch.tensor([chosen[token] for token in range(len(scores))])
                scores = RepetitionPenalty(repetition)(scores[None], torch.tensor([[*prompt, *text]]))[0]
                grown += [((*text, token), total + value) for token, value in enumerate(scores.tolist())]
            grown.sort(key=lambda found: -found[1])
            over = [text[-1] in ends or length == n for text, _ in grown]
            finished[g] += [
                (text, total / length)
                for (text, total), done in zip(grown[:width], over, strict=False)
                if done
            ]
            live[g] = [found for found, done in zip(grown, over, strict=True) if not done][:width]
            full = [text for text, _ in grown[:width] if length == n and text[-1] not in ends]
            chosen.update(text[-1] for text in full)
            if len(finished[g]) < width:
                chosen.update(text[-1] for text, _ in live[g])
        finished = [sorted(texts, key=lambda found: -found[1])[:width] for texts in finished]
    return sorted((text for texts in finished for text in texts), key=lambda found: -found[1])


def texts_of(group: list[Completion]) -> list[Text]:
    return [tuple(text.tokens) for text in group]


@pytest.mark.parametrize("model", [FakeModel(scrambled(12)), GPT2], ids=["table", "gpt2"])
@pytest.mark.parametrize(
    ("groups", "width", "ends", "penalty", "repetition"),
    [(2, 2, set(), 0.7, 1.0), (3, 1, {1}, 1.5, 1.0), (2, 3, {1, 5}, 0.9, 1.0), (4, 2, {0, 7}, 3.0, 1.7)],
)
def test_it_equals_a_naive_search_without_cache(
    model: Any, groups: int, width: int, ends: set[int], penalty: float, repetition: float
) -> None:
    strategy = DiverseBeam(
        num_beams=groups * width,
        num_beam_groups=groups,
        diversity_penalty=penalty,
        early_stopping=True,
        num_return_sequences=groups * width,
        repetition_penalty=repetition,
    )
    batch = generate(model, PROMPTS, strategy, max_new_tokens=6, end_tokens=ends)
    for prompt, found in zip(PROMPTS, batch, strict=True):
        expected = naive(model, prompt, 6, ends, groups, width, penalty, repetition)
        assert texts_of(found) == [text for text, _ in expected]
        assert [text.score for text in found] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("ends", [[], [1, 5]])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 4, "early_stopping": True},
        {"num_beams": 5, "length_penalty": 2.0, "early_stopping": "never", "no_repeat_ngram_size": 2},
        {"num_beams": 3, "length_penalty": -1.0, "repetition_penalty": 1.4, "min_new_tokens": 3},
    ],
    ids=str,
)
def test_one_group_is_beam_search(options: dict[str, Any], ends: list[int]) -> None:
    options = {**options, "num_return_sequences": options["num_beams"]}
    limits: dict[str, Any] = {"max_new_tokens": 8, "end_tokens": ends, "top_logprobs": 2}
    one = generate(GPT2, PROMPTS, DiverseBeam(num_beam_groups=1, diversity_penalty=9.0, **options), **limits)
    assert one == generate(GPT2, PROMPTS, Beam(**options), **limits)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("width", [1, 3])
def test_without_diversity_every_group_is_a_beam_search(width: int, early_stopping: Any) -> None:
    model = FakeModel(scrambled(12))
    limits: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": [0, 3]}
    options: dict[str, Any] = {"early_stopping": early_stopping, "length_penalty": 1.5}
    beams = generate(model, PROMPTS, Beam(num_beams=width, num_return_sequences=width, **options), **limits)
    strategy = DiverseBeam(
        num_beams=3 * width,
        num_beam_groups=3,
        diversity_penalty=0.0,
        num_return_sequences=3 * width,
        **options,
    )
    for found, group in zip(generate(model, PROMPTS, strategy, **limits), beams, strict=True):
        assert texts_of(found) == [text for text in texts_of(group) for _ in range(3)]


@pytest.mark.parametrize("ends", [[], [0, 3]])
def test_one_text_of_each_group_is_returned_before_a_second_of_any(ends: list[int]) -> None:
    model = FakeModel(scrambled(12))
    strategy = DiverseBeam(num_beams=6, num_beam_groups=2, diversity_penalty=2.0, num_return_sequences=2)
    requests = prepare(model, [PROMPTS[0]], max_new_tokens=5, end_tokens=ends)
    live: list[Text] = [()]
    ended: dict[int, list[tuple[float, Text]]] = {0: [], 1: []}
    for event in run(model, requests, strategy):
        if isinstance(event, BeamsExtended):
            grown = [((*live[beam.parent], beam.token), beam) for beam in event.beams]
            live = [text for text, beam in grown if not beam.finish_reason]
            for text, beam in grown:
                if beam.finish_reason:
                    ended[beam.group].append((beam.score, text))
    (found,) = generate(model, [PROMPTS[0]], strategy, max_new_tokens=5, end_tokens=ends)
    best = sorted((max(texts) for texts in ended.values()), reverse=True)
    assert texts_of(found) == [text for _, text in best]
    assert min(best)[0] < sorted(max(ended.values(), key=max))[-2][0], (
        "else the scores alone would do the same"
    )


def test_groups_of_one_avoid_the_greedy_text() -> None:
    """The second of two groups never writes what the first has just written, if it can help it."""
    model = FakeModel(scrambled(12, spread=0.5))
    strategy = DiverseBeam(num_beams=2, num_beam_groups=2, diversity_penalty=50.0, num_return_sequences=2)
    for prompt in PROMPTS:
        ((greedy,),) = generate(model, [prompt], Greedy(), max_new_tokens=8)
        (both,) = generate(model, [prompt], strategy, max_new_tokens=8)
        first, second = sorted(both, key=lambda text: text.tokens != greedy.tokens)
        assert first.tokens == greedy.tokens
        assert not any(a == b for a, b in zip(first.tokens, second.tokens, strict=True))
        assert first.score == pytest.approx(sum(first.logprobs) / 8, abs=1e-5)


def test_logprobs_are_the_models_own_and_what_was_lost_stays_in_the_score() -> None:
    model = FakeModel(after_last({last: [0.9, 0.1] for last in (0, 1)}))  # 1 is too unlikely to win even so
    strategy = DiverseBeam(num_beams=2, num_beam_groups=2, diversity_penalty=1.0, num_return_sequences=2)
    ((first, second),) = generate(model, [(1,)], strategy, max_new_tokens=3)
    assert first.tokens == second.tokens == [0, 0, 0]
    assert first.logprobs == second.logprobs == pytest.approx([torch.tensor(0.9).log().item()] * 3)
    assert second.score == pytest.approx(first.score - 1.0)


def test_a_group_that_has_finished_is_in_nobodys_way() -> None:
    """The first group ends with its second token; the other one then loses nothing by writing that or any other."""
    rows = {1: [0.5, 0.05, 0.05, 0.4], 0: [0.1, 0.1, 0.7, 0.1], 3: [0.9, 0.02, 0.04, 0.04]}
    model = FakeModel(after_last(rows))
    strategy = DiverseBeam(num_beams=2, num_beam_groups=2, diversity_penalty=9.0, num_return_sequences=2)
    ((other, first),) = generate(model, [(1,)], strategy, max_new_tokens=4, end_tokens=[2])
    assert (first.tokens, other.tokens) == ([0, 2], [3, 0, 2])
    assert other.score == pytest.approx(sum(other.logprobs) / 3)


@pytest.mark.parametrize("ends", [[], [0, 1], [2, 3, 4]])
def test_the_stream_is_settled_over_all_groups(ends: list[int]) -> None:
    strategy = DiverseBeam(num_beams=4, num_beam_groups=2, diversity_penalty=0.3)
    for seed in range(6):
        model = FakeModel(scrambled(9, seed))
        ((best,),) = generate(model, [(1, 2)], strategy, max_new_tokens=8, end_tokens=ends)
        assert list(stream(model, (1, 2), strategy, max_new_tokens=8, end_tokens=ends)) == best.tokens


def test_a_stop_ends_texts_of_every_group() -> None:
    strategy = DiverseBeam(num_beams=6, num_beam_groups=3, num_return_sequences=6)

    def even(tokens: Any) -> bool:
        return len(tokens) >= 2 and sum(tokens[-2:]) % 2 == 0

    for group in generate(GPT2, PROMPTS, strategy, max_new_tokens=9, stop=even):
        for text in group:
            stops = [n for n in range(1, len(text.tokens) + 1) if even(text.tokens[:n])]
            assert stops == ([len(text.tokens)] if text.finish_reason == "stop" else [])


def test_all_groups_share_one_reading_of_the_prompt() -> None:
    model = FakeModel(scrambled(12))
    generate(model, PROMPTS, DiverseBeam(num_beams=6, num_beam_groups=3), max_new_tokens=3)
    assert model.reads == [(3, 7), (18, 1), (18, 1)]


def test_beams_say_their_group_and_their_trace_has_the_penalty_first() -> None:
    strategy = DiverseBeam(num_beams=4, num_beam_groups=2, repetition_penalty=1.5)
    requests = prepare(GPT2, [(1,)], max_new_tokens=3, trace=True)
    steps = [event.beams for event in run(GPT2, requests, strategy) if isinstance(event, BeamsExtended)]
    for beams in steps:
        assert sorted(beam.group for beam in beams if not beam.finish_reason) in ([0, 0, 1, 1], [])
        for beam in beams:
            assert beam.trace is not None
            assert [stage.stage for stage in beam.trace.stages] == ["diversity", "RepetitionPenalty"]
    assert {beam.group for beams in steps for beam in beams} == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_beams": 5},
            r"num_beam_groups \(--num-beam-groups\) must divide num_beams \(--num-beams\): 2 groups cannot share 5 beams",
        ),
        ({"num_beam_groups": 0}, r"num_beam_groups .* must be a whole number from 1 to 65536, got 0"),
        ({"num_beam_groups": -2}, r"num_beam_groups .* must be a whole number from 1 to 65536, got -2"),
        ({"diversity_penalty": -0.1}, "diversity_penalty .* must be a number from 0 to 1e\\+06, got -0.1"),
        (
            {"diversity_penalty": float("nan")},
            "diversity_penalty .* must be a number from 0 to 1e\\+06, got nan",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiverseBeam(**options)
