"""New tokens through all blocks: what `Block` computes, without what Python costs.

A token of a small model spends as long in Python as in arithmetic: calls of modules, look-ups of parameters,
dropout that drops nothing. Here the weights are gathered and given to `block_functions`, which call the same kernels in
the same order, so the result is the same to the bit. If any part is not just what its class says (it has hooks, it was
replaced, it trains, it is compiled), the modules are called as ever: hooks see what they always see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn

from minigpt import kernels
from minigpt.attention import CausalAttention, RowByRowAttention, ScaledDotProductAttention
from minigpt.cache import KVCache
from minigpt.inference import block_functions as functions
from minigpt.inference import compiled_pass, scripted
from minigpt.inference.block_functions import BlockWeights, Layer, Norm
from minigpt.linear import Linear
from minigpt.quantization import compiled, float16, int8
from minigpt.quantization.compiled import gelu_form

# Shapes below:  B rows · T new tokens · D n_embd

# Of each class of linear layers with packed weights, the kind in `block_functions`.
KINDS: dict[type[nn.Module], str] = {
    float16.Float16Linear: "float16",
    int8.Int8Linear: "int8",
    int8.Int8FineLinear: "int8, fine",
}


def applies(blocks: Iterable[nn.Module], block_kind: type[nn.Module], mlp_kind: type[nn.Module]) -> bool:
    """Whether every part of the blocks is just what its class says, and the result is not to be differentiated.

    To be asked before every pass, for hooks come and go.
    """
    if torch.is_grad_enabled() or torch._C._is_any_autocast_enabled() or torch.compiler.is_compiling():
        return False
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return False
    kinds = IN_C if _is_in_c(blocks) else OF_TORCH
    return all(_is_plain_block(block, block_kind, mlp_kind, kinds) for block in blocks)


class Kinds(NamedTuple):
    """What the parts of a plain block are."""

    norm: type[nn.Module]
    can_read: Callable[[Any], bool]  # a norm
    attention: tuple[type[nn.Module], ...]
    is_gelu: Callable[[Any], object]
    is_linear: Callable[[Any], bool]


def _is_plain_block(block: Any, kind: type[nn.Module], mlp_kind: type[nn.Module], kinds: Kinds) -> bool:
    if not is_plain(block, kind):
        return False
    parts = block._modules
    attn, mlp = parts["attn"], parts["mlp"]
    if not (is_plain(attn, CausalAttention) and is_plain(mlp, mlp_kind) and kinds.is_gelu(mlp.activation)):
        return False
    own, of_mlp = attn._modules, mlp._modules
    sdpa = own["sdpa"]
    return (
        all(
            is_plain(norm, kinds.norm) and kinds.can_read(norm)
            for norm in (parts["attn_norm"], parts["mlp_norm"])
        )
        and type(sdpa) in kinds.attention
        and is_plain(sdpa, type(sdpa))
        and all(map(kinds.is_linear, (own["qkv"], own["out"], of_mlp["up"], of_mlp["down"])))
    )


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Whether calling the module is calling the forward method of `kind`, in evaluation mode."""
    own = module.__dict__
    return (
        type(module) is kind
        and not (own["training"] or own["_forward_hooks"] or own["_forward_pre_hooks"])
        and module._compiled_call_impl is None
        and "forward" not in own  # a method put in place of its class's
    )


def _is_in_c(blocks: Iterable[Any]) -> bool:
    """Whether the first block is made of the modules that call functions in C; to be plain, all must be as it is."""
    return type(next(iter(blocks))._modules.get("attn_norm")) is compiled.LayerNorm


def _is_linear_in_c(module: Any) -> bool:
    kind = type(module)
    return kind in (int8.Int8Linear, int8.Int8FineLinear) and module.is_in_c and is_plain(module, kind)


def _is_plain_linear(module: Any) -> bool:
    kind = type(module)
    if kind is not Linear and (kind not in KINDS or not hasattr(module.matrix, "packed")):
        return False
    return is_plain(module, kind)


OF_TORCH = Kinds(
    nn.LayerNorm,
    lambda norm: True,
    (ScaledDotProductAttention, RowByRowAttention),
    gelu_form,
    _is_plain_linear,
)
IN_C = Kinds(
    compiled.LayerNorm,
    compiled.LayerNorm.is_readable,
    (compiled.Attention,),
    lambda activation: activation is compiled.tanh_gelu,
    _is_linear_in_c,
)


def through_blocks(blocks: Any, x: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
    """What leaves the last block, as `x = block(x, past, mask)` from block to block.

    Shapes: x (B, T, D), which is overwritten; mask as from `attention_mask`  ->  (B, T, D)

    Raises:
        ValueError: they do not fit the cache.
    """
    cache.check_room(x.size(1))
    if _is_in_c(blocks):
        return compiled_pass.through_blocks(blocks, x, cache)
    rows = x.size(0) * x.size(1) if kernels.is_to_choose(x) else None
    attn = blocks[0].attn
    pads = cache.pads() if mask is not None and isinstance(attn.sdpa, RowByRowAttention) else None
    args = (x, weights(blocks, rows), attn.n_head, cache.slots, cache.length, mask, pads)
    # The first pass reads a prompt: it is long, and the first token shall not wait for the compiler.
    sooner = x.device.type == "cpu" and cache.length > 0
    y: Tensor = scripted.run(functions.through_blocks, *args) if sooner else functions.through_blocks(*args)
    return y


def weights(blocks: Any, rows: int | None = None) -> list[BlockWeights]:
    """What the blocks are made of, to multiply so many rows; None leaves the kernel to torch."""
    return [_weights(block._modules, rows) for block in blocks]


def _weights(block: dict[str, Any], rows: int | None) -> BlockWeights:
    attn, mlp = block["attn"]._modules, block["mlp"]._modules
    return BlockWeights(
        attn_norm=norm(block["attn_norm"]),
        qkv=_layer(attn["qkv"], rows),
        scale=float(attn["sdpa"].scale),
        attn_out=_layer(attn["out"], rows),
        mlp_norm=norm(block["mlp_norm"]),
        mlp_up=_layer(mlp["up"], rows),
        gelu=str(gelu_form(block["mlp"].activation)),
        mlp_down=_layer(mlp["down"], rows),
    )


def norm(module: Any) -> Norm:
    own = module._parameters
    return Norm(own["weight"], own["bias"], module.eps)


def _layer(module: Any, rows: int | None) -> Layer:
    if type(module) is Linear:
        own: Any = module._parameters
        weight = own["weight"]
        size, outputs_first = weight.numel(), weight.stride(0) == 1
        kernel = "mkl" if rows is None else kernels.fastest_for(rows, size, outputs_first)
        return Layer(kernel, own["bias"], weight)
    own = module._buffers
    return Layer(KINDS[type(module)], own["bias"], None, module.matrix.packed, own.get("input_scale"))
