"""One new token of each row through all blocks: what `Block` computes, without what Python costs.

A token of a small model spends as long in Python as in arithmetic: calls of modules, look-ups of parameters,
dropout that drops nothing. Here the same kernels are called in the same order without all that, so the result is
the same to the bit. A part that is not just what its class says (it has hooks, it was replaced, it trains, it is
compiled) is called as ever, or the whole step is: hooks see what they always see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn

from minigpt.attention import CausalAttention, ScaledDotProductAttention
from minigpt.cache import KVCache
from minigpt.kernels import affine
from minigpt.linear import Linear
from minigpt.quantization.small import SmallLinear

# Shapes below:  B rows · S tokens in view · D n_embd · H heads · K head dimension


def applies(blocks: Iterable[nn.Module], block_kind: type[nn.Module], mlp_kind: type[nn.Module]) -> bool:
    """Whether every block is just what its class says, and its result is not to be differentiated.

    To be asked at every token, for hooks come and go.
    """
    if torch.is_grad_enabled() or torch._C._is_any_autocast_enabled() or torch.compiler.is_compiling():
        return False
    return all(_is_plain_block(block, block_kind, mlp_kind) for block in blocks)


def _is_plain_block(block: Any, kind: type[nn.Module], mlp_kind: type[nn.Module]) -> bool:
    if not is_plain(block, kind):
        return False
    attn, mlp = block._modules["attn"], block._modules["mlp"]
    return (
        is_plain(attn, CausalAttention)
        and is_plain(attn._modules["sdpa"], ScaledDotProductAttention)
        and is_plain(mlp, mlp_kind)
    )


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether calling the module is calling the forward method of `kind`, in evaluation mode."""
    own = module.__dict__
    return (
        type(module) is kind
        and not (own["training"] or own["_forward_hooks"] or own["_forward_pre_hooks"])
        and not (torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks)
        and module._compiled_call_impl is None
        and "forward" not in own  # a method put in place of its class's
    )


def through_blocks(blocks: Iterable[nn.Module], x: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
    """What leaves the last block, as `x = block(x, past, mask)` from block to block.

    Shapes: (B, 1, D), mask as from `attention_mask`  ->  (B, 1, D)
    """
    rows, _, width = x.shape
    x = x.view(rows, width)
    for block, (place, k, v) in zip(blocks, cache.places(), strict=True):  # k, v: (B, H, S, K)
        parts: Any = block._modules
        attn, mlp = parts["attn"], parts["mlp"]
        qkv = linear(attn._modules["qkv"], norm(parts["attn_norm"], x))
        qkv = qkv.view(rows, 1, 3, attn.n_head, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, 1, K)
        place.copy_(qkv[1:])
        scale = attn._modules["sdpa"].scale
        y = F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask, scale=scale)  # (B, H, 1, K)
        x = x + linear(attn._modules["out"], y.reshape(rows, width))
        hidden = linear(mlp._modules["up"], norm(parts["mlp_norm"], x))
        x = x + linear(mlp._modules["down"], mlp.activation(hidden))
    return x[:, None]


def norm(module: Any, x: Tensor) -> Tensor:
    """`module(x)`, for a layer norm without the call."""
    if is_plain(module, nn.LayerNorm):
        own = module._parameters
        return torch.layer_norm(x, module.normalized_shape, own["weight"], own["bias"], module.eps)
    normed: Tensor = module(x)
    return normed


def linear(module: Any, x: Tensor) -> Tensor:
    """`module(x)`, for a plain linear layer without the call."""
    if is_plain(module, Linear):
        own = module._parameters
        return affine(x, own["weight"], own["bias"])
    if isinstance(module, SmallLinear) and is_plain(module, type(module)):
        return module.affine(x, module._buffers["bias"])
    result: Tensor = module(x)
    return result
