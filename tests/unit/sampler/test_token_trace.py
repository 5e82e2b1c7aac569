"""Why each token was written, against the same figures computed by hand from the model's logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel, scrambled, tiny_gpt2
from torch import Tensor
from traced import traced

from minigpt.sampler import Beam, Greedy, Sample, Strategy
from minigpt.sampler.api import run
from minigpt.sampler.events import BeamsExtended, Event, Finished, TokenGenerated
from minigpt.sampler.processors import MinNewTokens, TopK
from minigpt.sampler.requests import prepare
from minigpt.sampler.token_trace import StageTrace, TokenRank, TokenTrace, rank

MODEL = FakeModel(scrambled(23, spread=2.0))
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [4]]
LIMITS: dict[str, Any] = {"max_new_tokens": 6, "end_tokens": [2, 13]}


def probabilities(logits: Any) -> np.ndarray:
    odds = np.exp(np.asarray(logits, dtype=float) - np.max(logits))
    return odds / odds.sum()


def by_hand(p: np.ndarray, token: int) -> TokenRank:
    some = p[p > 0]
    return TokenRank(p[token], int((p > p[token]).sum()) + 1, float(-(some * np.log2(some)).sum()))


def cut(p: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, int, float]:
    """What is left, how many tokens went, and their probability."""
    left = np.where(keep, p, 0.0)
    return left / left.sum(), int(((p > 0) & ~keep).sum()), float(p[~keep].sum())


def close(found: TokenRank, wanted: TokenRank) -> None:
    assert found.rank == wanted.rank
    assert (found.probability, found.entropy) == pytest.approx((wanted.probability, wanted.entropy), abs=1e-5)


def test_sampling_with_two_cut_offs() -> None:
    """Several texts of each prompt, two equal prompts, and texts that end at different times."""
    strategy = Sample(temperature=1.5, top_k=9, top_p=0.8, seed=4, num_return_sequences=3)
    for prompt, texts in zip(PROMPTS, traced(MODEL, PROMPTS, strategy, **LIMITS), strict=True):
        for text in texts:
            for k, (token, trace) in enumerate(zip(text.tokens, text.traces, strict=True)):
                logits = np.array(MODEL.rule((*prompt, *text.tokens[:k])))
                hot = probabilities(logits / 1.5)
                few, gone_k, mass_k = cut(hot, hot >= np.sort(hot)[-9])
                likelier = np.array([few[few > one].sum() for one in few])  # the mass before each token
                left, gone_p, mass_p = cut(few, (likelier < 0.8) & (few > 0))
                close(trace.before, by_hand(probabilities(logits), token))
                close(trace.after, by_hand(left, token))
                assert [(stage.stage, stage.removed) for stage in trace.stages] == [
                    ("Temperature", 0), ("TopK", gone_k), ("TopP", gone_p),
                ]  # fmt: skip
                assert [stage.mass for stage in trace.stages] == pytest.approx([0, mass_k, mass_p], abs=1e-5)
                expected = [p[token] for p in (hot, few, left)]
                assert [stage.probability for stage in trace.stages] == pytest.approx(expected, abs=1e-5)


def test_greedy_without_processors_is_the_likeliest_before_and_after() -> None:
    for prompt, (text,) in zip(PROMPTS, traced(MODEL, PROMPTS, Greedy(), **LIMITS), strict=True):
        for k, (token, trace) in enumerate(zip(text.tokens, text.traces, strict=True)):
            close(trace.before, by_hand(probabilities(MODEL.rule((*prompt, *text.tokens[:k]))), token))
            assert trace == TokenTrace(trace.before, trace.before)
            assert trace.before.rank == 1


@pytest.mark.parametrize("ends", [[2, 13], [], list(range(12))])
def test_beams_explain_every_text_that_comes_of_them(ends: list[int]) -> None:
    strategy = Beam(num_beams=4, num_return_sequences=4, bad_words=[[15], [16]])
    seen = 0
    groups = traced(MODEL, PROMPTS, strategy, end_tokens=ends, max_new_tokens=12)
    for prompt, texts in zip(PROMPTS, groups, strict=True):
        for text in texts:
            for k, (token, trace) in enumerate(zip(text.tokens, text.traces, strict=True)):
                p = probabilities(MODEL.rule((*prompt, *text.tokens[:k])))
                left, gone, mass = cut(p, ~np.isin(np.arange(23), [15, 16]))
                close(trace.before, by_hand(p, token))
                close(trace.after, by_hand(left, token))
                (stage,) = trace.stages
                assert replace(stage, mass=0, probability=0) == StageTrace("BadWords", gone, 0, 0)
                assert (stage.mass, stage.probability) == pytest.approx((mass, left[token]), abs=1e-5)
                seen += 1
    assert seen > 40


class Capricious:
    """Leaves three tokens, others every time that it is asked."""

    def __init__(self) -> None:
        self.left: list[list[int]] = []
        self.chance = torch.Generator().manual_seed(0)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        kept = torch.randperm(logits.size(1), generator=self.chance)[:3]
        self.left.append(kept.tolist())
        return torch.full_like(logits, float("-inf")).index_copy(1, kept, logits[:, kept])


def test_texts_alike_have_traces_of_their_own() -> None:
    """Three texts of one prompt begin alike, but what a processor with a will of its own did differs."""
    capricious = Capricious()
    strategy = Sample(seed=1, num_return_sequences=3, processors=(capricious,))
    events = run(MODEL, prepare(MODEL, [[1]], max_new_tokens=1, trace=True), strategy)
    generated = [event for event in events if isinstance(event, TokenGenerated)]
    capricious.left = [left for left in capricious.left if len(left) == 3][-3:]
    for event, kept in zip(generated, capricious.left, strict=True):
        assert event.trace is not None
        p = probabilities(MODEL.rule((1,)))
        close(event.trace.after, by_hand(cut(p, np.isin(np.arange(23), kept))[0], event.token))


STRATEGIES = [
    Greedy(repetition_penalty=1.5),
    Sample(seed=1, top_p=0.9, num_return_sequences=2),
    Beam(num_beams=4, min_new_tokens=2),
    Beam(num_beams=1),
]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_events_and_completions_carry_the_same_traces(strategy: Strategy) -> None:
    emitted: dict[tuple[int, int], list[TokenTrace | None]] = {}
    beams: list[TokenTrace | None] = []
    completions = {}
    for event in run(MODEL, prepare(MODEL, PROMPTS, trace=True, **LIMITS), strategy):
        if isinstance(event, TokenGenerated):
            emitted.setdefault((event.prompt_index, event.index), []).append(event.trace)
        elif isinstance(event, BeamsExtended):
            beams += [beam.trace for beam in event.beams]
        elif isinstance(event, Finished):
            completions[event.prompt_index] = event.completions
    for (prompt_index, _), traces in emitted.items():
        assert traces in [text.traces for text in completions[prompt_index]]
    assert None not in beams
    if isinstance(strategy, Beam):
        assert all(
            trace in beams for texts in completions.values() for text in texts for trace in text.traces
        )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tracing_changes_nothing_else(strategy: Strategy) -> None:
    """Least of all a seed that was drawn."""
    model = tiny_gpt2()

    def without(event: Event) -> Event:
        if isinstance(event, TokenGenerated):
            return replace(event, trace=None)
        if isinstance(event, BeamsExtended):
            return replace(event, beams=[beam._replace(trace=None) for beam in event.beams])
        if isinstance(event, Finished):
            return replace(event, completions=[replace(text, traces=[]) for text in event.completions])
        return event

    plain = list(run(model, prepare(model, PROMPTS, **LIMITS), strategy))
    traces = list(run(model, prepare(model, PROMPTS, trace=True, **LIMITS), strategy))
    assert plain == [without(event) for event in traces] != traces


def test_a_distribution_that_leaves_nothing_open() -> None:
    sure = torch.tensor([0.0, float("-inf"), float("-inf")])
    assert rank(sure, 0) == TokenRank(1.0, 1, 0.0)
    assert str(rank(sure, 0).entropy) == "0.0"


def test_a_processor_that_does_nothing_still_has_its_stage() -> None:
    early = MinNewTokens(1, prompt_length=9, end_tokens=frozenset([2]))
    ((text,),) = traced(MODEL, [[1]], Greedy(processors=(early, TopK(1))), max_new_tokens=1)
    assert [(stage.stage, stage.removed) for stage in text.traces[0].stages] == [
        ("MinNewTokens", 1),
        ("TopK", 21),
    ]
