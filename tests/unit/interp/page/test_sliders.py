"""The sliders are the sampler's own processors; the tokens that a page leaves out are one smooth function."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minigpt.interp.page import tail
from minigpt.interp.page.sliders import Sliders
from minigpt.sampler import Sample
from minigpt.sampler.events import Request
from minigpt.sampler.processors import chain

LOGITS = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def by_hand(logits: Tensor, temperature: float, top_k: int, top_p: float) -> list[float]:
    """The rule as the page's script has it: scalar by scalar, in float64."""
    x = [logit / temperature for logit in logits.tolist()]
    kept = set(range(len(x)))
    if top_k:
        limit = sorted(x, reverse=True)[min(top_k, len(x)) - 1]
        kept = {i for i in kept if x[i] >= limit}
    if top_p != 1:
        order = sorted(kept, key=lambda i: (x[i], i))
        total = sum(math.exp(x[i] - max(x)) for i in order)
        cumulative = 0.0
        for i in order[:-1]:
            cumulative += math.exp(x[i] - max(x)) / total
            if cumulative <= 1 - top_p:
                kept.remove(i)
    weights = [math.exp(x[i] - max(x)) if i in kept else 0.0 for i in range(len(x))]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 0.0])
def test_kept_sets_and_probabilities_are_those_of_the_rule(
    temperature: float, top_k: int, top_p: float
) -> None:
    probabilities = Sliders(temperature, top_k, top_p)(LOGITS)
    wanted = by_hand(LOGITS, temperature, top_k, top_p)
    assert probabilities.tolist() == pytest.approx(wanted, abs=1e-12)
    assert (probabilities > 0).tolist() == [p > 0 for p in wanted]


def test_ties() -> None:
    """With the k-th all are kept; for the nucleus, of equally likely tokens that with the smaller id goes first."""
    logits = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    assert (Sliders(top_k=2)(logits) > 0).tolist() == [True, False, True, False, True]
    for top_p in (0.3, 0.6, 0.9):
        wanted = by_hand(logits, 1.0, 0, top_p)
        assert Sliders(top_p=top_p)(logits).tolist() == pytest.approx(wanted, abs=1e-12)


def test_they_are_the_chain_of_sample() -> None:
    strategy = Sample(temperature=0.7, top_k=40, top_p=0.9, seed=0)
    rows = LOGITS[None]
    for processor in chain(strategy, Request((0,), 1)):
        rows = processor(rows, torch.tensor([[0]]))
    assert rows[0].softmax(-1).equal(Sliders(0.7, 40, 0.9)(LOGITS))


@pytest.mark.parametrize(
    "logits",
    [
        torch.randn(50_000, generator=torch.Generator().manual_seed(1)),
        3 * torch.randn(50_000, generator=torch.Generator().manual_seed(2)) - 40,
        torch.zeros(300),
        torch.tensor([-3.25]),
        torch.linspace(-80, 5, 4_000),
    ],
    ids=["narrow", "wide", "equal", "one", "long"],
)
def test_the_tail_is_right_at_every_temperature(logits: Tensor) -> None:
    coefficients, top = tail.fit(logits), float(logits.max())
    for t in torch.linspace(*tail.TEMPERATURES, 77).tolist():
        wanted = float(((logits.double() - top) / t).logsumexp(0))
        assert tail.at(coefficients, t) == pytest.approx(wanted, abs=1e-8)


def test_temperatures_and_places_of_the_series() -> None:
    assert [tail.temperature(x) for x in (-1, 1)] == pytest.approx(tail.TEMPERATURES)
