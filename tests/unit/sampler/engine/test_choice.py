"""What is equal in exact arithmetic is ranked by its order, however a kernel rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.sampler.engine.choice import argmax, top_k_ids, top_k_within_rounding

ROUNDING = st.sampled_from([0.0, 2e-7, -2e-7, 1e-6, -1e-6])
SCORES = st.lists(st.tuples(st.integers(-4, 4), ROUNDING), min_size=1, max_size=12)


@given(SCORES, st.integers(1, 14))
def test_rounding_decides_nothing(scores: list[tuple[int, float]], k: int) -> None:
    exact = sorted(range(len(scores)), key=lambda place: (-scores[place][0], place))
    rounded = torch.tensor([whole + error for whole, error in scores])
    assert top_k_within_rounding(rounded, k) == exact[:k]


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_what_differs_by_more_is_ranked_by_value(size: float) -> None:
    assert top_k_within_rounding(torch.tensor([size, size * (1 + 3e-5), size * (1 + 6e-5)]), 3) == [2, 1, 0]


def test_what_is_ruled_out_has_no_rank() -> None:
    nothing = float("-inf")
    assert top_k_within_rounding(torch.tensor([nothing, 1.0, nothing, 2.0]), 3) == [3, 1]
    assert top_k_within_rounding(torch.tensor([nothing]), 1) == []


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, float("-inf")]), min_size=1, max_size=400),
    st.integers(1, 5),
)
def test_the_most_likely_are_those_of_a_stable_sort(scores: list[float], k: int) -> None:
    exact = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    assert top_k_ids(torch.tensor(scores), k).tolist() == exact
    assert argmax(torch.tensor([scores, scores[::-1]]))[0].item() == exact[0]


@pytest.mark.parametrize("n", [63, 64, 65, 639, 640, 641, 5 * 50257])
def test_the_most_likely_of_many(n: int) -> None:
    scores = torch.randn(n, generator=torch.Generator().manual_seed(0))
    scores[n // 2] = scores[n - 1] = scores.max()  # equals, one of them in no whole group
    assert top_k_ids(scores, 10).tolist() == scores.argsort(descending=True, stable=True)[:10].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_likeliest_of_several_rows(dtype: torch.dtype) -> None:
    scores = torch.randint(-9, 9, (7, 301), generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[3, 8] = float("nan")  # comes first, and is refused afterwards
    assert torch.equal(argmax(scores), scores.argmax(-1))
