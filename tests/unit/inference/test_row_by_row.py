"""Attention row by row = attention of each row alone, to the bit."""

import pytest
import torch

from minigpt.attention import ScaledDotProductAttention, attention_mask
from minigpt.inference.row_by_row import RowByRowAttention

CPU = torch.device("cpu")


def qkv(n_new, n_seen, dtype=torch.float32):
    torch.manual_seed(0)
    shape = lambda n: torch.randn(2, 3, n, 8, dtype=dtype)  # noqa: E731
    return shape(n_new), shape(n_seen), shape(n_seen)


@pytest.mark.parametrize(("n_new", "n_seen"), [(1, 9), (9, 9), (5, 9)])
def test_a_padded_row_attends_as_it_does_alone_to_the_bit(n_new, n_seen):
    q, k, v = qkv(n_new, n_seen)
    plain, row_by_row = ScaledDotProductAttention(0.3, 0.0).eval(), RowByRowAttention(0.3, 0.0).eval()
    for pads in ([0, 3], [6, 0], [2, 2]):
        mask = attention_mask(n_new, n_seen, torch.tensor(pads), CPU)
        found, usual = row_by_row(q, k, v, mask), plain(q, k, v, mask)
        for row, pad in enumerate(pads):
            first = max(0, pad - (n_seen - n_new))
            own = [part[row : row + 1] for part in (q[:, :, first:], k[:, :, pad:], v[:, :, pad:])]
            alone = plain(*own, attention_mask(n_new - first, n_seen - pad, None, CPU))
            assert torch.equal(found[row, :, first:], alone[0])
            torch.testing.assert_close(found[row, :, first:], usual[row, :, first:])


def test_a_mask_of_somebodys_own_is_kept_to_row_by_row_too():
    q, k, v = qkv(4, 7)
    plain, row_by_row = ScaledDotProductAttention(0.3, 0.0).eval(), RowByRowAttention(0.3, 0.0).eval()
    for pads in (None, [1, 3]):
        mask = attention_mask(4, 7, None if pads is None else torch.tensor(pads), CPU)
        assert torch.equal(row_by_row(q, k, v, None), plain(q, k, v, None))
        cut = mask.clone()
        cut[..., 3, 5] = False  # the last token no longer sees the one before the last
        added = torch.zeros(2, 1, 4, 7).masked_fill(~mask, float("-inf"))
        for own in (cut, added):
            assert torch.equal(row_by_row(q, k, v, own), plain(q, k, v, own))
