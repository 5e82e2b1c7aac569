"""Causal multi-head attention: the masks, scaled dot-product attention, the module."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minigpt.cache import LayerCache, NoCache
from minigpt.config import GPT2Config
from minigpt.linear import Linear

# Shapes below:  B rows · T new tokens · S tokens in view (cached + new) · H heads · K head dimension · D n_embd


def causal_mask(n_new: int, n_seen: int, device: torch.device) -> Tensor:
    """Which of `n_seen` keys each of the last `n_new` tokens may attend to: bool (T, S).

    The one rule: a token sees itself and everything before it.

    >>> causal_mask(2, 4, torch.device("cpu")).int()
    tensor([[1, 1, 1, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    """
    return torch.ones(n_new, n_seen, dtype=torch.bool, device=device).tril(n_seen - n_new)


def attention_mask(n_new: int, n_seen: int, pad: Tensor | None, device: torch.device) -> Tensor | None:
    """The mask of one pass, or None where the kernel needs none: a single new token, or the plain triangle.

    No token attends to padding. Padding attends only to itself: its result is never used, but a row that is
    masked throughout has no softmax, and its NaN would spread.

    Shapes: pad (B,)  ->  bool (T, S), or (B, 1, T, S) with padding
    """
    if pad is None:
        return None if n_new in (1, n_seen) else causal_mask(n_new, n_seen, device)
    slots = torch.arange(n_seen, device=device)
    is_token = slots >= pad[:, None]  # (B, S)
    itself = slots[n_seen - n_new :, None] == slots  # (T, S)
    return (causal_mask(n_new, n_seen, device) & is_token[:, None, None]) | itself


def attention_pattern(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The attention weights: softmax(q·kᵀ · scale) over the keys that the mask allows; each row sums to 1.

    The fused kernel computes this formula without ever storing the weights. It is written out here to be
    read, to be tested against, and to recompute the weights of a layer from its q and k.

    Shapes: q (B, H, T, K), k (B, H, S, K), mask as from `attention_mask`  ->  (B, H, T, S)

    Source: Vaswani et al. 2017, equation 1.

    >>> q = k = torch.zeros(1, 1, 3, 4)                                 # equal scores: equal weights
    >>> attention_pattern(q, k, None, scale=0.5)[0, 0, 2]
    tensor([0.3333, 0.3333, 0.3333])
    """
    scores = q @ k.mT * scale
    if mask is None:
        mask = causal_mask(q.size(-2), k.size(-2), q.device)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
) -> Tensor:
    """`attention_pattern(q, k, ...) @ v` by torch's fused kernel. TorchScript, too: see `inference.scripted`.

    Shapes: q (B, H, T, K), k and v (B, H, S, K), mask as from `attention_mask`  ->  (B, H, T, K)
    """
    # The kernel's own triangle starts at the *first* key, which is right only where T = S;
    # `attention_mask` gives a mask in every other case but T = 1, which attends to everything.
    causal = mask is None and q.size(-2) > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
    )


def kernels_for_any_length(device: torch.device) -> AbstractContextManager[None]:
    """In it, `fused_attention` uses kernels that are as fast with a new length as with one that they have seen.

    On a GPU torch may take cuDNN's, which is planned anew for each length: on an H200 for 45 ms, where it then computes
    for 0.1 ms. That pays off in training, whose lengths do not change.
    """
    flags: Any = torch.backends.cuda
    if device.type != "cuda" or torch.is_grad_enabled() or not flags.cudnn_sdp_enabled():
        return nullcontext()
    others = {
        SDPBackend.FLASH_ATTENTION: flags.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: flags.mem_efficient_sdp_enabled(),
        SDPBackend.MATH: flags.math_sdp_enabled(),
    }
    allowed = [kernel for kernel, is_enabled in others.items() if is_enabled]
    return sdpa_kernel(allowed) if allowed else nullcontext()


class ScaledDotProductAttention(nn.Module):
    """`attention_pattern(q, k, ...) @ v`, fused: each token's weighted mean of the values it attends to.

    A module of its own, so that a forward hook here is given q, k, v and the mask of its layer.
    """

    def __init__(self, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes: q (B, H, T, K), k and v (B, H, S, K)  ->  (B, H, T, K)."""
        return fused_attention(q, k, v, mask, self.scale, self.dropout if self.training else 0.0)

    def extra_repr(self) -> str:
        return f"scale={self.scale:.4g}, dropout={self.dropout}"


class Float32ScaledDotProductAttention(ScaledDotProductAttention):
    """The same in float32 whatever the weights: q·k of late layers overflows float16 in some checkpoints.

    Source: `reorder_and_upcast_attn`, from Stanford CRFM's Mistral models.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return super().forward(q.float(), k.float(), v.float(), mask).to(v.dtype)


class CausalAttention(nn.Module):
    """Multi-head self-attention: each token attends to itself and the tokens before it, in `n_head` heads."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.qkv = Linear(config.n_embd, 3 * config.n_embd)
        kind = (
            Float32ScaledDotProductAttention if config.reorder_and_upcast_attn else ScaledDotProductAttention
        )
        self.sdpa = kind(config.attention_scale(layer), config.attn_pdrop)
        self.out = Linear(config.n_embd, config.n_embd)
        self.dropout = config.resid_pdrop

    def forward(self, x: Tensor, past: LayerCache | NoCache, mask: Tensor | None) -> Tensor:
        """Shapes: (B, T, D)  ->  (B, T, D)."""
        # fmt: off
        rows, n_new, _ = x.shape
        qkv = self.qkv(x).view(rows, n_new, 3, self.n_head, -1)  # (B, T, 3, H, K)
        qkv = qkv.permute(2, 0, 3, 1, 4)                         # (3, B, H, T, K)
        k, v = past.extend(qkv[1:])                              # (B, H, S, K) each
        y = self.sdpa(qkv[0], k, v, mask)                         # (B, H, T, K)
        x = self.out(y.transpose(1, 2).flatten(2))               # (B, T, D)
        # fmt: on
        return F.dropout(x, self.dropout, self.training)
