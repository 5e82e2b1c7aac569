"""Detecting a watermark: green tokens counted by hand, and the paper's z."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest

from minigpt.evaluation.watermark import Detection, WatermarkDetector
from minigpt.sampler.processors.watermark import green_tokens

V = 50


def test_green_tokens_are_counted_as_by_hand() -> None:
    tokens = [random.Random(0).randrange(V) for _ in range(80)]
    green = [b in green_tokens(a, V, 0.25, 7).tolist() for a, b in pairwise(tokens)]
    assert WatermarkDetector(V, key=7, count_repeats=True)(tokens) == Detection(79, sum(green), 0.25)


def test_z_is_the_papers() -> None:
    """Kirchenbauer et al. 2023, equation 3: (green - ratio T) / sqrt(T ratio (1 - ratio))."""
    assert Detection(100, 50, 0.25).z == pytest.approx((50 - 25) / math.sqrt(100 * 0.25 * 0.75))
    assert Detection(100, 25, 0.25).green_fraction == 0.25


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.01])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_the_p_value_is_that_of_coins_thrown(n: int, ratio: float) -> None:
    p = Fraction(ratio)
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    for green in range(n + 1):
        assert Detection(n, green, ratio).p_value == pytest.approx(float(sum(chances[green:])), rel=1e-10)


def test_the_p_value_of_a_long_text_is_that_of_its_z() -> None:
    for n_green in (249_000, 250_500, 251_500):
        found = Detection(1_000_000, n_green, 0.25)
        assert found.p_value == pytest.approx(0.5 * math.erfc(found.z / math.sqrt(2)), rel=0.02)
    assert Detection(1_000_000, 400_000, 0.25).p_value == 0


def test_a_pair_said_again_is_no_further_evidence() -> None:
    again = [3, 4] * 50
    assert WatermarkDetector(V)(again).n_scored == 2
    assert WatermarkDetector(V, count_repeats=True)(again).n_scored == 99


@pytest.mark.parametrize("tokens", [[], [3]])
def test_a_text_without_a_pair_has_no_figures(tokens: list[int]) -> None:
    found = WatermarkDetector(V)(tokens)
    assert (found.n_scored, found.n_green) == (0, 0)
    assert all(math.isnan(figure) for figure in (found.z, found.p_value, found.green_fraction))


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
