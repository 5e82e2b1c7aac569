"""A watermark is found in the text that bears it, and nowhere else; parity has transformers' figures."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from fakes import FakeModel, scrambled

from minigpt.sampler import Greedy, Sample, generate
from minigpt.sampler.processors import Detection, Watermark, WatermarkDetector
from minigpt.sampler.processors.watermark import green_tokens

V = 50
MODEL = FakeModel(scrambled(V), n_positions=256)


def written(*, watermark: bool, key: int = 7) -> list[int]:
    strategy = Sample(seed=1, watermark=watermark, watermark_key=key)
    return generate(MODEL, [[0]], strategy, max_new_tokens=200)[0][0].tokens


def test_the_mark_is_found_by_its_key_alone() -> None:
    marked = written(watermark=True)
    found = WatermarkDetector(V, key=7)(marked)
    assert found.z > 4
    assert found.p_value < 1e-4
    assert found.green_fraction > 0.4
    assert abs(WatermarkDetector(V, key=8)(marked).z) < 4
    assert abs(WatermarkDetector(V, key=7)(written(watermark=False)).z) < 4
    assert abs(WatermarkDetector(V, key=7)(written(watermark=True, key=8)).z) < 4


def test_green_tokens_are_lifted_and_no_others() -> None:
    logits = torch.randn(2, V)
    lifted = Watermark(bias=3.0, ratio=0.5, key=7)(logits, torch.tensor([[1, 2], [4, 5]])) - logits
    for row, last in enumerate((2, 5)):
        green = sorted(green_tokens(last, V, 0.5, 7).tolist())
        assert lifted[row].nonzero()[:, 0].tolist() == green
        assert len(green) == V // 2
    torch.testing.assert_close(lifted[lifted != 0], torch.full((V,), 3.0))


def test_the_mark_is_counted_by_hand() -> None:
    tokens = [random.Random(0).randrange(V) for _ in range(80)]
    green = [b in green_tokens(a, V, 0.25, 7).tolist() for a, b in pairwise(tokens)]
    assert WatermarkDetector(V, key=7, count_repeats=True)(tokens) == Detection(79, sum(green), 0.25)


def test_z_is_the_papers() -> None:
    """Kirchenbauer et al. 2023, equation 3: (green - ratio T) / sqrt(T ratio (1 - ratio))."""
    assert Detection(100, 50, 0.25).z == pytest.approx((50 - 25) / math.sqrt(100 * 0.25 * 0.75))
    assert Detection(100, 25, 0.25).p_value == 0.5
    assert Detection(100, 25, 0.25).green_fraction == 0.25


def test_a_pair_said_again_is_no_further_evidence() -> None:
    again = [3, 4] * 50
    assert WatermarkDetector(V)(again).n_scored == 2
    assert WatermarkDetector(V, count_repeats=True)(again).n_scored == 99


@pytest.mark.parametrize("tokens", [[], [3]])
def test_a_text_without_a_pair_has_no_figures(tokens: list[int]) -> None:
    found = WatermarkDetector(V)(tokens)
    assert (found.n_scored, found.n_green) == (0, 0)
    assert all(math.isnan(figure) for figure in (found.z, found.p_value, found.green_fraction))


def test_every_strategy_can_be_marked() -> None:
    plain, marked = (
        generate(MODEL, [[0]], Greedy(watermark=on, watermark_bias=9.0), max_new_tokens=30)[0][0].tokens
        for on in (False, True)
    )
    assert WatermarkDetector(V)(marked).green_fraction > 0.95
    assert WatermarkDetector(V)(plain).green_fraction < 0.6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.0}, r"^watermark_ratio .* must be a number above 0 and below 1, got 0.0$"),
        ({"key": 0}, r"^watermark_key .* must be a whole number of at least 1, got 0$"),
    ],
)
def test_a_detector_refuses_what_no_mark_can_have(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WatermarkDetector(V, **settings)  # type: ignore[arg-type]
