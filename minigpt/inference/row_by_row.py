"""Attention of each row of a batch by itself, so that a row gives the same bits in any company."""

from __future__ import annotations

import torch
from torch import Tensor

from minigpt.attention import ScaledDotProductAttention, attention_mask, fused_attention

# Shapes below:  B rows · T new tokens · S tokens in view (cached + new) · H heads · K head dimension


class RowByRowAttention(ScaledDotProductAttention):
    """The same for each row by itself, without its padding, so that it gives the same bits in any batch.

    With padding before it, a kernel adds up in another order. In float32 that changes no more than a last bit, but layers
    that round their inputs can make a whole quantization step of it.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        pads = pads_of(mask, q.size(-2), k.size(-2))
        return super().forward(q, k, v, mask) if pads is None else row_by_row(q, k, v, pads, self.scale)


def row_by_row(q: Tensor, k: Tensor, v: Tensor, pads: list[int], scale: float) -> Tensor:
    """Scaled dot-product attention of each row by itself, after its padding. TorchScript, too: see `inference.scripted`.

    Shapes: q (B, H, T, K), k and v (B, H, S, K)  ->  (B, H, T, K), of padding zeros
    """
    n_new, n_seen = q.size(-2), k.size(-2)
    y = torch.zeros_like(q)
    for row, pad in enumerate(pads):
        start = min(pad, n_seen - 1)  # padding, too, sees itself
        first = max(0, start - (n_seen - n_new))  # of the new tokens that are no padding
        mask = attention_mask(n_new - first, n_seen - start, None, q.device)
        own_k, own_v = k[row : row + 1, :, start:], v[row : row + 1, :, start:]
        y[row : row + 1, :, first:] = fused_attention(q[row : row + 1, :, first:], own_k, own_v, mask, scale)
    return y


def pads_of(mask: Tensor | None, n_new: int, n_seen: int) -> list[int] | None:
    """Each row's padding, if the mask is the one that `attention_mask` makes of it, and not somebody's own."""
    if mask is None or mask.dim() != 4 or mask.dtype != torch.bool:
        return None
    pads = (~mask[:, 0, -1]).sum(-1)  # the last token sees all but that
    its_own = attention_mask(n_new, n_seen, pads, mask.device)
    return pads.tolist() if its_own is not None and torch.equal(mask, its_own) else None
