"""Why each token was written, against the same figures computed by hand from the model's logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel, scrambled, tiny_gpt2
from torch import Tensor

from minigpt.sampler import Beam, Completion, Greedy, Sample, Strategy
from minigpt.sampler.api import run
from minigpt.sampler.events import Finished, TokenGenerated
from minigpt.sampler.processors import MinNewTokens, TopK
from minigpt.sampler.requests import prepare
from minigpt.sampler.token_trace import Explainer, Explanation, Stage, Standing, standing, table

MODEL = FakeModel(scrambled(23, spread=2.0))
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [4]]


def explained(
    strategy: Strategy, prompts: list[list[int]] = PROMPTS, model: Any = MODEL, **limits: Any
) -> tuple[Explainer, dict[int, list[Completion]]]:
    requests = prepare(model, prompts, **{"max_new_tokens": 6, "end_tokens": [2, 13], **limits})
    explainer, finished = Explainer(requests), {}
    for event in run(model, requests, replace(strategy, watch=explainer.watch)):
        explainer.take(event)
        if isinstance(event, Finished):
            finished[event.prompt_index] = event.completions
    return explainer, finished


def probabilities(logits: Any) -> np.ndarray:
    odds = np.exp(np.asarray(logits, dtype=float) - np.max(logits))
    return odds / odds.sum()


def by_hand(p: np.ndarray, token: int) -> Standing:
    some = p[p > 0]
    return Standing(p[token], int((p > p[token]).sum()) + 1, float(-(some * np.log2(some)).sum()))


def cut(p: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, int, float]:
    """What is left, how many tokens went, and their probability."""
    left = np.where(keep, p, 0.0)
    return left / left.sum(), int(((p > 0) & ~keep).sum()), float(p[~keep].sum())


def close(told: Standing, wanted: Standing) -> None:
    assert told.rank == wanted.rank
    assert (told.probability, told.entropy) == pytest.approx((wanted.probability, wanted.entropy), abs=1e-5)


def test_sampling_with_two_cut_offs() -> None:
    """Several texts of each prompt, two equal prompts, and texts that end at different times."""
    strategy = Sample(temperature=1.5, top_k=9, top_p=0.8, seed=4, num_return_sequences=3)
    explainer, finished = explained(strategy)
    for i, completions in finished.items():
        for index, text in enumerate(completions):
            explanations = explainer.explanations(i, index)
            assert len(explanations) == len(text.tokens)
            for k, (token, told) in enumerate(zip(text.tokens, explanations, strict=True)):
                logits = np.array(MODEL.rule((*PROMPTS[i], *text.tokens[:k])))
                p = probabilities(logits / 1.5)
                p, gone_k, mass_k = cut(p, p >= np.sort(p)[-9])
                likelier = np.array([p[p > one].sum() for one in p])  # the mass before each token
                p, gone_p, mass_p = cut(p, (likelier < 0.8) & (p > 0))
                assert told is not None
                close(told.before, by_hand(probabilities(logits), token))
                close(told.after, by_hand(p, token))
                assert [(stage.stage, stage.removed) for stage in told.stages] == [
                    ("Temperature", 0), ("TopK", gone_k), ("TopP", gone_p),
                ]  # fmt: skip
                assert [stage.mass for stage in told.stages] == pytest.approx([0, mass_k, mass_p], abs=1e-5)


def test_greedy_without_processors_is_the_likeliest_before_and_after() -> None:
    explainer, finished = explained(Greedy())
    for i, (text,) in finished.items():
        for k, (token, told) in enumerate(zip(text.tokens, explainer.explanations(i, 0), strict=True)):
            assert told is not None
            close(told.before, by_hand(probabilities(MODEL.rule((*PROMPTS[i], *text.tokens[:k]))), token))
            assert (told.before, told.before.rank, told.stages) == (told.after, 1, [])


@pytest.mark.parametrize("ends", [[2, 13], [], list(range(12))])
def test_beams_explain_every_text_that_comes_of_them(ends: list[int]) -> None:
    strategy = Beam(num_beams=4, num_return_sequences=4, bad_words=[[15], [16]])
    explainer, finished = explained(strategy, end_tokens=ends, max_new_tokens=12)
    seen = 0
    for i, completions in finished.items():
        for index, text in enumerate(completions):
            for k, (token, told) in enumerate(
                zip(text.tokens, explainer.explanations(i, index), strict=True)
            ):
                p = probabilities(MODEL.rule((*PROMPTS[i], *text.tokens[:k])))
                left, gone, mass = cut(p, ~np.isin(np.arange(23), [15, 16]))
                assert told is not None
                close(told.before, by_hand(p, token))
                close(told.after, by_hand(left, token))
                assert [replace(stage, mass=0) for stage in told.stages] == [Stage("BadWords", gone, 0)]
                assert told.stages[0].mass == pytest.approx(mass, abs=1e-5)
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


def test_texts_alike_are_told_apart() -> None:
    """Three texts of one prompt begin alike, but what processors with a will of their own did differs."""
    capricious = Capricious()
    strategy = Sample(seed=1, num_return_sequences=3, processors=(capricious,))
    requests = prepare(MODEL, [[1]], max_new_tokens=1)
    explainer = Explainer(requests)
    events = list(run(MODEL, requests, replace(strategy, watch=explainer.watch)))
    for event in events:
        explainer.take(event)
    tokens = [event.token for event in events if isinstance(event, TokenGenerated)]
    (texts,) = (event.completions for event in events if isinstance(event, Finished))
    order = [[text.tokens for text in texts].index([token]) for token in tokens]
    assert sorted(order) == [0, 1, 2], "or one of them would stand for another"
    explanations = [explainer.explanations(0, index) for index in order]
    for kept, token, (told,) in zip(capricious.left, tokens, explanations, strict=True):
        p = probabilities(MODEL.rule((1,)))
        assert told is not None
        close(told.after, by_hand(cut(p, np.isin(np.arange(23), kept))[0], token))


def test_a_strategys_own_step_comes_first() -> None:
    """As a strategy tells that contrasts layers: first for all texts, two of them alike, then each is processed."""
    (request,) = prepare(MODEL, [[1]])
    explainer = Explainer([request, request])
    logits, contrast = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([float("-inf"), 3.0, 2.0, 1.0])
    final = contrast.masked_fill(contrast < 2, float("-inf"))
    for _ in range(2):
        explainer.watch((1,), "DoLa", logits, contrast)
    for _ in range(2):
        explainer.watch((1,), "unchanged", contrast, contrast)
        explainer.watch((1,), "TopK", contrast, final)
    for i in range(2):
        explainer.take(TokenGenerated(i, 0, 1, -1.0))
        (told,) = explainer.explanations(i, 0)
        assert told is not None
        assert (told.before, told.after) == (standing(logits, 1), standing(final, 1))
        assert [(stage.stage, stage.removed) for stage in told.stages] == [("DoLa", 1), ("TopK", 1)]


def test_a_text_that_another_was_before_is_told_anew() -> None:
    """The second prompt becomes what the first was, and its processors are no longer the same."""
    always_7 = FakeModel(lambda text: [9.0 * (token == 7) for token in range(9)])
    explainer, _ = explained(
        Sample(seed=1, min_new_tokens=1), [[1, 7], [1]], always_7, end_tokens=[3], max_new_tokens=3
    )
    for i in range(2):
        told = explainer.explanations(i, 0)
        assert [[stage.removed for stage in each.stages] for each in told if each] == [[1], [0], [0]]


@pytest.mark.parametrize(
    "strategy", [Greedy(), Sample(seed=1, num_return_sequences=2), Beam(num_beams=4), Beam(num_beams=1)]
)
def test_a_text_that_is_broken_off_is_explained_as_far_as_it_got(strategy: Strategy) -> None:
    requests = prepare(MODEL, PROMPTS, max_new_tokens=9)
    whole, _ = explained(strategy, max_new_tokens=9, end_tokens=None)
    explainer = Explainer(requests)
    emitted: dict[tuple[int, int], int] = {}
    for event in run(MODEL, requests, replace(strategy, watch=explainer.watch)):
        explainer.take(event)
        if isinstance(event, Finished):
            break
        if isinstance(event, TokenGenerated):
            place = event.prompt_index, event.index
            emitted[place] = emitted.get(place, 0) + 1
            told = explainer.explanations(*place)
            assert len(told) == emitted[place]
            finished = whole._finished[event.prompt_index]
            assert told in [explanations[: len(told)] for explanations in finished]
    assert emitted


def test_what_no_strategy_tells_is_none() -> None:
    explainer = Explainer(prepare(MODEL, [[1]]))
    explainer.take(TokenGenerated(0, 0, 5, -1.0))
    assert explainer.explanations(0, 0) == [None]


@pytest.mark.parametrize("strategy", [Greedy(), Sample(seed=1, num_return_sequences=2), Beam(num_beams=4)])
def test_no_more_than_one_steps_logits_are_kept(strategy: Strategy) -> None:
    """Even where beams never agree: this model goes on with whatever token comes first."""
    most = 0

    class Counted(Explainer):
        def watch(self, *told: Any) -> None:
            nonlocal most
            super().watch(*told)
            most = max(most, sum(len(told.processed) for told in self._told.values()))

    model = FakeModel(lambda text: [5.0 * ((token,) == text[-1:]) for token in range(9)], n_positions=99)
    requests = prepare(model, [[1], [2, 3]], max_new_tokens=60)
    explainer = Counted(requests)
    for event in run(model, requests, replace(strategy, watch=explainer.watch)):
        explainer.take(event)
    assert len(explainer.explanations(1, 0)) == 60
    assert 2 <= most <= 4


def test_what_is_kept_is_a_copy_of_one_row() -> None:
    explainer = Explainer(prepare(MODEL, [[1]]))
    batch = torch.zeros(100, 23)
    explainer.watch((1,), "unchanged", batch[0], batch[0])
    ((steps,),) = (told.processed for told in explainer._told.values())
    assert steps.before is not None
    assert steps.before is steps.after
    assert steps.before.untyped_storage().nbytes() == 23 * 4


@pytest.mark.parametrize(
    "strategy",
    [
        Greedy(repetition_penalty=1.5),
        Sample(top_p=0.9, num_return_sequences=2),
        Beam(num_beams=3, min_new_tokens=2),
    ],
)
def test_watching_changes_nothing(strategy: Strategy) -> None:
    """Least of all a seed that was drawn."""
    model = tiny_gpt2()
    requests = prepare(model, PROMPTS, max_new_tokens=9)
    watched = replace(strategy, watch=Explainer(requests).watch)
    assert list(run(model, requests, watched)) == list(run(model, requests, strategy))


def test_a_distribution_that_leaves_nothing_open() -> None:
    sure = torch.tensor([0.0, float("-inf"), float("-inf")])
    assert standing(sure, 0) == Standing(1.0, 1, 0.0)
    assert str(standing(sure, 0).entropy) == "0.0"


def lines(strings: Sequence[str], explanations: Sequence[Explanation | None]) -> list[str]:
    return table(strings, explanations).splitlines()


def test_the_table() -> None:
    before, after = Standing(0.1234567, 1234, 9.5), Standing(1.5e-7, 2, 0.123)
    stages = [Stage("Temperature", 0, 0.0), Stage("NoRepeatNGram", 12, 0.5), Stage("TopP", 4071, 0.1234)]
    assert lines([' "a"\n', "é"], [Explanation(before, after, stages), None]) == [
        "token       probability       rank       bits of entropy  removed (their probability)",
        '" \\"a\\"\\n"  0.123 -> 1.5e-07  1234 -> 2  9.50 -> 0.12     '
        "temperature, no-repeat-n-gram -12 (0.5), top-p -4071 (0.12)",
        '"é"         not told',
    ]
    assert lines([], []) == ["token  probability  rank  bits of entropy  removed (their probability)"]


def test_a_processor_that_does_nothing_still_has_its_stage() -> None:
    early = MinNewTokens(1, prompt_length=9, end_tokens=frozenset([2]))
    explainer, _ = explained(Greedy(processors=(early, TopK(1))), [[1]], max_new_tokens=1)
    ((told),) = explainer.explanations(0, 0)
    assert told is not None
    assert [(stage.stage, stage.removed) for stage in told.stages] == [("MinNewTokens", 1), ("TopK", 21)]
