"""The learning rate over a run: its shape for any number of steps, and that a plateau knows nothing of the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.training.schedule import cosine, wsd

STEPS = st.integers(1, 200)
WARMUP = st.integers(0, 250)


@given(STEPS, WARMUP)
def test_a_cosine_goes_up_in_a_line_and_down_half_a_wave(steps: int, warmup: int) -> None:
    shares = [cosine(step, steps, warmup) for step in range(steps)]
    assert all(0 <= share <= 1 for share in shares)
    up, down = shares[:warmup], shares[warmup:]
    assert up == [(step + 1) / warmup for step in range(len(up))]
    assert down == sorted(down, reverse=True)
    if down:
        assert down[0] == 1  # reached as the warm-up ends
        assert down[-1] > 0  # the last step, too, is one
        assert cosine(steps, steps, warmup) == pytest.approx(0)


def test_a_cosine_is_at_half_in_the_middle() -> None:
    assert cosine(6, 10, 2) == pytest.approx(0.5)


@given(STEPS, WARMUP, st.integers(0, 250))
def test_wsd_goes_up_stays_and_goes_down(steps: int, warmup: int, decay: int) -> None:
    shares = [wsd(step, steps, warmup, decay) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    plateau = range(max(0, warmup - 1), max(0, steps - decay + 1))
    assert [share == 1 for share in shares] == [step in plateau for step in range(steps)]
    highest = shares.index(max(shares))
    assert shares[:highest] == sorted(shares[:highest])
    assert shares[highest:] == sorted(shares[highest:], reverse=True)


@given(WARMUP, st.integers(0, 50), st.integers(1, 100), st.integers(1, 100))
def test_before_its_decay_wsd_does_not_depend_on_the_number_of_steps(
    warmup: int, decay: int, steps: int, more: int
) -> None:
    for step in range(max(0, steps - decay)):
        assert wsd(step, steps, warmup, decay) == wsd(step, steps + more, warmup, decay)


def test_the_decay_is_a_line_to_zero() -> None:
    falls = [wsd(step, 100, 10, 20) - wsd(step + 1, 100, 10, 20) for step in range(80, 100)]
    assert falls == pytest.approx([1 / 20] * 20)
    assert wsd(100, 100, 10, 20) == 0
