"""Which tokens are predicted from which: each once, from enough of those before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.evaluation.scoring_windows import scoring_windows


@given(st.data())
def test_every_token_is_predicted_once_and_from_enough(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60), "tokens")
    size = data.draw(st.integers(1, 20), "window")
    stride = data.draw(st.integers(1, size), "stride")
    context = data.draw(st.integers(1, n - 1), "context")
    predicted: list[int] = []
    found = list(scoring_windows(range(n), size, stride, context))
    for window in found:
        first = window.tokens[0]
        assert first % stride == 0
        assert len(window.tokens) <= size + 1
        for i in window.tokens[-window.n_scored :]:
            assert i <= size or size - stride + 1 <= i - first <= size
            assert i > size or first == 0
        predicted.extend(window.tokens[-window.n_scored :])
    assert predicted == list(range(context, n))
    assert [window.ends_text for window in found] == [False] * (len(found) - 1) + [True]


def test_windows_move_by_half_their_size_unless_told() -> None:
    assert list(scoring_windows(range(99), 8)) == list(scoring_windows(range(99), 8, 4))
    assert list(scoring_windows(range(9), 1)) == list(scoring_windows(range(9), 1, 1))


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_beyond_the_window_would_skip_tokens(stride: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to the model's context length of 8 tokens, got {stride}"):
        scoring_windows(range(99), 8, stride)


@pytest.mark.parametrize(("n", "context"), [(1, 1), (5, 5), (5, 0), (0, 1)])
def test_something_is_given_and_something_left_to_predict(n: int, context: int) -> None:
    with pytest.raises(ValueError, match=f"{n} tokens?, of which {context} given"):
        scoring_windows(range(n), 8, 4, context)
