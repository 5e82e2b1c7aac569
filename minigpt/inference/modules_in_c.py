"""Modules that call functions in C, in the place of torch's: those of blocks, and the final norm.

They call one by one what `inference.pass_in_c` and `inference.whole_model_in_c` call at once, so that a model gives the same
bits whether it is watched or not. With other dtypes, on other devices, for gradients and under `torch.compile` they do what torch's do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.attention import ScaledDotProductAttention, attention_mask
from minigpt.inference.row_by_row import RowByRowAttention, pads_of
from minigpt.kernels import c_functions
from minigpt.kernels.c_functions import attention, can_run_on, is_float32_on_cpu

# Shapes below:  B rows · T new tokens · S tokens in view · H heads · K head dimension


class LayerNormInC(nn.LayerNorm):
    """A layer norm by the function in C."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        fits = x.shape[-1:] == self.normalized_shape and self.can_read_from(weight, bias)
        if not (fits and can_run_on(x, weight, bias)):
            return super().forward(x)
        x = x.contiguous()
        y = torch.empty_like(x)
        norm = c_functions.norm_of(weight, bias, self.eps)
        c_functions.functions().layer_norm(
            x.data_ptr(), x.numel() // norm.n, ctypes.byref(norm), y.data_ptr()
        )
        return y

    def is_readable(self) -> bool:
        """Whether the functions can read the parameters where they are."""
        own = self._parameters
        return self.can_read_from(own.get("weight"), own.get("bias"))

    def can_read_from(self, *parameters: Tensor | None) -> bool:
        return all(
            t is not None and t.shape == self.normalized_shape and t.is_contiguous() and is_float32_on_cpu(t)
            for t in parameters
        )

    @classmethod
    def like(cls, norm: nn.LayerNorm) -> LayerNormInC:
        """The same with the same parameters."""
        new = cls(norm.weight.shape[0], eps=norm.eps, device="meta")
        new.weight, new.bias = norm.weight, norm.bias
        return new.train(norm.training)


def tanh_gelu_in_c(x: Tensor) -> Tensor:
    """GELU's tanh form by the function in C."""
    if not can_run_on(x):
        return F.gelu(x, approximate="tanh")
    x = x.contiguous()
    y = torch.empty_like(x)
    c_functions.functions().gelu(x.data_ptr(), x.numel(), y.data_ptr())
    return y


def gelu_form(activation: Any) -> str | None:
    """Which form of GELU an activation function is, in the word of `F.gelu`; None for any other.

    Of these `tanh_gelu_in_c` may replace "tanh".
    """
    if activation is tanh_gelu_in_c:
        return "tanh"
    if activation is F.gelu:
        return "none"
    if isinstance(activation, partial) and activation.func is F.gelu:
        return str(activation.keywords["approximate"])
    return None


class AttentionInC(ScaledDotProductAttention):
    """Attention by the function in C, each row by itself; by torch's kernel where the mask is not the one that `attention_mask` makes."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        drops = self.training and self.dropout > 0
        pads = None if drops or not can_run_on(q, k, v) else self._pads(q, k, v, mask)
        return super().forward(q, k, v, mask) if pads is None else attention(q, k, v, pads, self.scale)

    def _pads(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Sequence[int] | None:
        """Each row's padding; None where torch's kernel is to be called."""
        n_new, n_seen = q.size(-2), k.size(-2)
        fit = k.shape == v.shape == (*q.shape[:2], n_seen, q.size(-1))
        if not fit or k.stride() != v.stride() or k.stride(-1) != 1 or q.stride(-1) != 1:
            return None
        if mask is None:
            return [0] * len(q) if n_new in (1, n_seen) else None
        if mask.dim() == 2:
            its_own = attention_mask(n_new, n_seen, None, mask.device)
            return [0] * len(q) if its_own is not None and torch.equal(mask, its_own) else None
        return pads_of(mask.expand(len(q), -1, -1, -1), n_new, n_seen) if mask.dim() == 4 else None


class RowByRowAttentionInC(AttentionInC, RowByRowAttention):
    """The same, but where torch's kernel is called, it is called for each row by itself."""


TORCH_ATTENTION = (ScaledDotProductAttention, RowByRowAttention)
ATTENTION_IN_C = (AttentionInC, RowByRowAttentionInC)
NORMS = (nn.LayerNorm, LayerNormInC)


def put_into(model: Any, kind_of_attention: type[AttentionInC] = AttentionInC) -> None:
    """Puts the modules in the place of torch's: into each block all of whose parts can be replaced; and if that is every
    block, as the final norm, so that the whole model computes in C, or as torch does.
    """
    are_in_blocks = [_put_into_block(block, kind_of_attention) for block in model.blocks]
    if all(are_in_blocks) and _can_be_replaced(model.final_norm, NORMS):
        model.final_norm = LayerNormInC.like(model.final_norm)


def _can_be_replaced(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    return type(module) in kinds and not (module._forward_hooks or module._forward_pre_hooks)


def _put_into_block(block: Any, kind_of_attention: type[AttentionInC]) -> bool:
    """The same for one block, if it is made of modules that can be replaced; returns whether it is."""
    sdpa = block.attn.sdpa
    replaced = {sdpa: TORCH_ATTENTION + ATTENTION_IN_C, block.attn_norm: NORMS, block.mlp_norm: NORMS}
    is_known = gelu_form(block.mlp.activation) == "tanh" and all(
        _can_be_replaced(module, kinds) for module, kinds in replaced.items()
    )
    if is_known:
        block.attn.sdpa = kind_of_attention(sdpa.scale, sdpa.dropout).train(sdpa.training)
        block.attn_norm = LayerNormInC.like(block.attn_norm)
        block.mlp_norm = LayerNormInC.like(block.mlp_norm)
        block.mlp.activation = tanh_gelu_in_c
    return is_known
