"""What is equal in exact arithmetic is ranked by its order, however a kernel rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.sampler.engine.choice import ranked

ROUNDING = st.sampled_from([0.0, 2e-7, -2e-7, 1e-6, -1e-6])
SCORES = st.lists(st.tuples(st.integers(-4, 4), ROUNDING), min_size=1, max_size=12)


@given(SCORES, st.integers(1, 14))
def test_rounding_decides_nothing(scores: list[tuple[int, float]], k: int) -> None:
    exact = sorted(range(len(scores)), key=lambda place: (-scores[place][0], place))
    rounded = torch.tensor([whole + error for whole, error in scores])
    assert ranked(rounded, k) == exact[:k]


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_what_differs_by_more_is_ranked_by_value(size: float) -> None:
    assert ranked(torch.tensor([size, size * (1 + 3e-5), size * (1 + 6e-5)]), 3) == [2, 1, 0]


def test_what_is_ruled_out_has_no_rank() -> None:
    nothing = float("-inf")
    assert ranked(torch.tensor([nothing, 1.0, nothing, 2.0]), 3) == [3, 1]
    assert ranked(torch.tensor([nothing]), 1) == []
