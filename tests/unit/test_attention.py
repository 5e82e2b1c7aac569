"""The fused kernel = the written-out formula, whoever may see whom."""

import pytest
import torch

from minigpt.attention import (
    Float32ScaledDotProductAttention,
    ScaledDotProductAttention,
    attention_mask,
    attention_pattern,
    causal_mask,
)

CPU = torch.device("cpu")


def qkv(n_new, n_seen, dtype=torch.float32):
    torch.manual_seed(0)
    shape = lambda n: torch.randn(2, 3, n, 8, dtype=dtype)  # noqa: E731
    return shape(n_new), shape(n_seen), shape(n_seen)


@pytest.mark.parametrize(("n_new", "n_seen"), [(1, 1), (1, 9), (9, 9), (5, 9), (2, 3)])
@pytest.mark.parametrize("pad", [None, [0, 0], [0, 1], [1, 0]])
def test_fused_is_the_formula(n_new, n_seen, pad):
    q, k, v = qkv(n_new, n_seen)
    mask = attention_mask(n_new, n_seen, None if pad is None else torch.tensor(pad), CPU)
    pattern = attention_pattern(q, k, mask, scale=0.3)
    torch.testing.assert_close(
        ScaledDotProductAttention(0.3, 0.0).eval()(q, k, v, mask), pattern @ v, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 3, n_new))


def test_the_rule_is_itself_and_everything_before():
    for n_seen in range(1, 7):
        for n_new in range(1, n_seen + 1):
            for query, row in enumerate(causal_mask(n_new, n_seen, CPU)):
                place = n_seen - n_new + query
                assert row.tolist() == [key <= place for key in range(n_seen)]


def test_padding_is_seen_by_nobody_but_itself():
    mask = attention_mask(4, 4, torch.tensor([2]), CPU)[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_upcast_survives_scores_that_overflow_float16():
    q, k, v = (200 * part for part in qkv(4, 4, torch.float16))
    expected = attention_pattern(q.float(), k.float(), None, 1.0) @ v.float()
    torch.testing.assert_close(
        Float32ScaledDotProductAttention(1.0, 0.0).eval()(q, k, v, None).float(),
        expected,
        rtol=1e-2,
        atol=1.0,
    )


def test_upcast_is_not_undone_by_autocast():
    q, k, v = qkv(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        upcast = Float32ScaledDotProductAttention(1.0, 0.0).eval()(q, k, v, None)
    torch.testing.assert_close(upcast, attention_pattern(q, k, None, 1.0) @ v, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only():
    q, k, v = qkv(9, 9)
    mix = ScaledDotProductAttention(1.0, dropout=0.5)
    torch.manual_seed(1)
    assert not torch.equal(mix.train()(q, k, v, None), mix.eval()(q, k, v, None))
    assert torch.equal(mix.eval()(q, k, v, None), mix.eval()(q, k, v, None))
