"""How many tokens are drafted: against simulated machines and texts, and that no number changes a text."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes import FakeModel, scrambled

from minigpt.sampler import Greedy, PromptLookup, Sample, Speculative, Strategy, generate
from minigpt.sampler.engine.draft_length import MARGIN, Acceptance, DraftLength, StepCost, matching

Cost = Callable[[int], float]  # seconds of a step with k draft tokens
FLAT: Cost = lambda k: 1.0 + 0.01 * k  # noqa: E731  (memory-bound: many tokens cost as much as one)
JUMP: Cost = lambda k: 1.0 if k == 0 else 1.5 + 0.05 * k  # noqa: E731  (another kernel for several rows)
STEEP: Cost = lambda k: 1.0 + 0.9 * k  # noqa: E731  (compute-bound: each token costs nearly a pass)


@dataclass
class Simulation:
    """Texts whose draft tokens are accepted with a probability each, on a machine with these costs."""

    length: DraftLength
    cost: Cost
    rates: list[float]
    untried: bool = False
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    seconds: float = 0.0
    tokens: int = 0

    def steps(self, n: int) -> list[int]:
        """The numbers that were chosen."""
        chosen = []
        for _ in range(n):
            rooms = [self.length.most] * len(self.rates)
            k = self.length.choose(range(len(rooms)), rooms, untried=self.untried)
            seconds = self.cost(k) * self.chance.uniform(0.95, 1.05)
            self.length.record_step(len(rooms), k, seconds)
            self.seconds += seconds
            for text, rate in enumerate(self.rates):
                proposal = [int(self.chance.random() < rate) for _ in range(k or (not self.untried))]
                accepted, offered = matching(proposal, [1] * (k + 1))
                self.length.acceptance(text).add(accepted, offered)
                self.tokens += 1 + min(accepted, k)
            chosen.append(k)
        return chosen

    def speed(self) -> float:
        """Tokens per second, of those of plain decoding."""
        return self.tokens / self.seconds / (len(self.rates) / self.cost(0))


COSTS = pytest.mark.parametrize("cost", [FLAT, JUMP, STEEP], ids=["flat", "jump", "steep"])


@COSTS
@pytest.mark.parametrize("rates", [[0.0], [0.1], [0.3], [0.0, 0.1, 0.2, 0.1]], ids=str)
@pytest.mark.parametrize("untried", [False, True])
def test_drafts_never_cost_more_than_five_percent(cost: Cost, rates: list[float], untried: bool) -> None:
    simulation = Simulation(DraftLength(15), cost, rates, untried)
    simulation.steps(300)
    assert simulation.speed() > 0.95


@pytest.mark.parametrize(
    ("cost", "least"), [(FLAT, 8), (JUMP, 4.5), (STEEP, 1.0)], ids=["flat", "jump", "steep"]
)
def test_drafts_that_are_always_accepted_are_as_long_as_pays_off(cost: Cost, least: float) -> None:
    simulation = Simulation(DraftLength(15), cost, [1.0])
    chosen = simulation.steps(200)
    assert simulation.speed() > least
    assert chosen[-1] == (0 if cost is STEEP else 15)


def test_a_text_that_begins_to_repeat_itself_is_noticed() -> None:
    simulation = Simulation(DraftLength(15), JUMP, [0.0])
    assert set(simulation.steps(100)) == {0}
    simulation.rates = [1.0]
    assert max(simulation.steps(20)) > 8
    simulation.rates = [0.0]
    assert simulation.steps(40)[-20:] == [0] * 20


def test_each_size_of_the_batch_has_costs_of_its_own() -> None:
    length = DraftLength(15)
    assert max(Simulation(length, FLAT, [1.0]).steps(50)) == 15
    assert Simulation(length, STEEP, [1.0, 1.0]).steps(50)[-10:] == [0] * 10


def test_the_cost_of_steps_is_fitted() -> None:
    cost = StepCost()
    for k in (0, 0, 3, 6, 12):
        cost.add(k, JUMP(k))
    assert [cost.curve()(k) for k in (0, 3, 6, 12)] == pytest.approx([1.0, 1.65, 1.8, 2.1], abs=0.1)


@pytest.mark.parametrize("seed", range(200))
def test_the_number_is_the_one_with_the_most_expected_tokens_per_second(seed: int) -> None:
    chance = random.Random(seed)
    texts = range(chance.randint(1, 3))
    length, rooms = DraftLength(most=8), [chance.randint(1, 10) for _ in texts]
    for text in texts:
        for _ in range(5):
            length.acceptance(text).add(chance.choice([0, 0, 1, 3]), 3)
    for k in (0, 0, 0, 1, chance.randint(2, 8)):
        length.record_step(len(texts), k, 1 + k * chance.random() / 3)
    seconds, longest = length._cost(len(texts)).curve(), min(8, max(rooms))

    def speed(k: int) -> float:
        tokens = (length.acceptance(i).tokens(min(k, n)) for i, n in zip(texts, rooms, strict=True))
        return sum(tokens) / seconds(k)

    assert all(seconds(k) <= seconds(k + 1) for k in range(8))
    best = max(range(1, longest + 1), key=speed)
    expected = best if speed(best) > MARGIN * speed(0) else 0
    assert length.choose(texts, rooms, untried=False) == expected


def test_acceptance_is_that_of_the_latest_tokens_and_fades() -> None:
    acceptance = Acceptance()
    assert acceptance.rate == 0.5
    assert acceptance.tokens(3) == 1 + 0.5 + 0.25 + 0.125
    for _ in range(40):
        acceptance.add(0, 1)
    assert acceptance.rate < 0.1
    for _ in range(200):
        acceptance.add(0, 0)
    assert acceptance.rate == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "sampling", [{}, {"seed": 2, "do_sample": True, "temperature": 0.8}], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("seed", range(4))
def test_no_number_of_draft_tokens_changes_a_text(
    seed: int, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers forced at random, none among them, so that drafters go on after steps that they had no part in."""
    chance = random.Random(seed)
    monkeypatch.setattr(DraftLength, "choose", lambda *_, **__: chance.choice([0, 0, 1, 2, 5]))
    rule = scrambled(6, spread=2.0)
    model = FakeModel(rule)
    near = FakeModel(
        lambda text: [x + 0.4 * y for x, y in zip(rule(text), scrambled(6, 1)(text), strict=True)]
    )
    prompts = [[1, 2, 3], [4], [5, 5, 5, 5, 5], [0, 1, 0, 1]]
    limits: dict[str, Any] = {"max_new_tokens": 24, "end_tokens": [4]}
    own = {name: value for name, value in sampling.items() if name != "do_sample"}
    plain: Strategy = Sample(**own) if sampling else Greedy()
    expected = [text.tokens for (text,) in generate(model, prompts, plain, **limits)]
    for strategy in (
        PromptLookup(**sampling),
        Speculative(draft=near, **sampling),
        Speculative(draft=FakeModel(rule, n_positions=12), **sampling),
    ):
        assert [text.tokens for (text,) in generate(model, prompts, strategy, **limits)] == expected
