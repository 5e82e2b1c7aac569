"""New tokens through all blocks: what `Block` computes, without what Python costs.

A token of a small model spends as long in Python as in arithmetic: calls of modules, look-ups of parameters,
dropout that drops nothing. Here the weights are gathered and given to `block_functions`, or where the modules call
functions in C to `pass_in_c`: they call the same kernels in the same order, so the result is the same to the bit. If any
part is not just what its class says (it has hooks, it was replaced, it trains, it is compiled), the modules are called as
ever: hooks see what they always see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn

from minigpt.attention import CausalAttention
from minigpt.cache import KVCache
from minigpt.inference import block_functions as functions
from minigpt.inference import modules_in_c, pass_in_c, scripted
from minigpt.inference.block_functions import BlockWeights, Layer, Norm
from minigpt.inference.modules_in_c import ATTENTION_IN_C, TORCH_ATTENTION, gelu_form, tanh_gelu_in_c
from minigpt.inference.row_by_row import RowByRowAttention
from minigpt.kernels import products
from minigpt.kernels.c_functions import may_run
from minigpt.linear import Linear
from minigpt.quantization import float16, int8

# Shapes below:  B rows · T new tokens · D n_embd

QUANTIZED = (float16.Float16Linear, int8.Int8Linear)


def blocks_are_plain(
    blocks: Iterable[nn.Module], block_kind: type[nn.Module], mlp_kind: type[nn.Module]
) -> bool:
    """Whether every part of the blocks is just what its class says, and the result is not to be differentiated.

    To be asked before every pass, for hooks come and go.
    """
    if torch.is_grad_enabled() or torch._C._is_any_autocast_enabled() or torch.compiler.is_compiling():
        return False
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        return False
    checks = _checks_for(blocks)
    return all(_is_plain_block(block, block_kind, mlp_kind, checks) for block in blocks)


class PartChecks(NamedTuple):
    """What tells of a part of a block whether it is plain."""

    norm: Callable[[Any], bool]
    attention: tuple[type[nn.Module], ...]
    gelu: Callable[[Any], object]
    linear: Callable[[Any], bool]


def _is_plain_block(block: Any, kind: type[nn.Module], mlp_kind: type[nn.Module], checks: PartChecks) -> bool:
    if not is_plain(block, kind):
        return False
    parts = block._modules
    attn, mlp = parts["attn"], parts["mlp"]
    if not (is_plain(attn, CausalAttention) and is_plain(mlp, mlp_kind) and checks.gelu(mlp.activation)):
        return False
    own, of_mlp = attn._modules, mlp._modules
    sdpa = own["sdpa"]
    return (
        all(map(checks.norm, (parts["attn_norm"], parts["mlp_norm"])))
        and type(sdpa) in checks.attention
        and is_plain(sdpa, type(sdpa))
        and all(map(checks.linear, (own["qkv"], own["out"], of_mlp["up"], of_mlp["down"])))
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


def _checks_for(blocks: Iterable[Any]) -> PartChecks:
    """What all blocks must pass: the first one's norm tells whether they compute in C."""
    norm = next(iter(blocks))._modules.get("attn_norm")
    if type(norm) is not modules_in_c.LayerNormInC:
        return TORCH_PARTS
    return C_PARTS if norm.is_readable() and may_run() else C_PARTS_CALLING_TORCH


def _is_torchs_norm(module: Any) -> bool:
    return is_plain(module, nn.LayerNorm)


def _is_norm_in_c(module: Any) -> bool:
    return is_plain(module, modules_in_c.LayerNormInC)


def _is_norm_elsewhere(module: Any) -> bool:
    return is_plain(module, modules_in_c.LayerNormInC) and not (module.is_readable() and may_run())


def _is_plain_linear(module: Any) -> bool:
    kind = type(module)
    if kind is not Linear and (kind not in QUANTIZED or not hasattr(module.matrix, "packed")):
        return False
    return is_plain(module, kind)


def _is_linear_in_c(module: Any) -> bool:
    kind = type(module)
    return (kind is Linear or (kind in QUANTIZED and hasattr(module.matrix, "layer"))) and is_plain(
        module, kind
    )


TORCH_PARTS = PartChecks(_is_torchs_norm, TORCH_ATTENTION, gelu_form, _is_plain_linear)
C_PARTS = PartChecks(
    _is_norm_in_c, ATTENTION_IN_C, lambda activation: activation is tanh_gelu_in_c, _is_linear_in_c
)
# The modules that call functions in C, where they call torch's: on a GPU, or with weights of another dtype.
C_PARTS_CALLING_TORCH = PartChecks(_is_norm_elsewhere, ATTENTION_IN_C, gelu_form, _is_plain_linear)


def are_in_c(blocks: Iterable[Any]) -> bool:
    """Whether blocks, if they are plain, compute in C."""
    return _checks_for(blocks) is C_PARTS


def through_blocks(blocks: Any, x: Tensor, mask: Tensor | None, cache: KVCache, n_last: int) -> Tensor:
    """What leaves the last block for each row's `n_last` last tokens, as `x = block(x, past, mask)` from block to block.

    Where a row's bits do not depend on the rows that are computed beside it (in C), the last block computes those tokens only.

    Shapes: x (B, T, D), which is overwritten; mask as from `attention_mask`  ->  (B, n_last, D)

    Raises:
        ValueError: they do not fit the cache.
    """
    cache.check_room(x.size(1))
    if are_in_c(blocks):
        found = pass_in_c.through_blocks(blocks, x, cache, n_last)
        if found is not None:
            return found
        # A layer cannot be read in C, or the widths do not fit: the modules compute it, or say what is wrong.
        for block, past in zip(blocks, cache.layers, strict=True):
            x = block(x, past, mask)
        return x[:, -n_last:]
    rows = x.size(0) * x.size(1) if products.can_replace_torch(x) else None
    attn = blocks[0].attn
    pads = cache.pads() if mask is not None and isinstance(attn.sdpa, RowByRowAttention) else None
    args = (x, weights(blocks, rows), attn.n_head, cache.slots, cache.length, mask, pads)
    # The first pass reads a prompt: it is long, and the first token shall not wait for the compiler.
    sooner = x.device.type == "cpu" and cache.length > 0
    y: Tensor = scripted.run(functions.through_blocks, *args) if sooner else functions.through_blocks(*args)
    return y[:, -n_last:]


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
        output_major = products.is_output_major(weight)
        kernel = "mkl" if rows is None else products.fastest_for(rows, weight.numel(), output_major)
        return Layer(own["bias"], weight, products.kernel_that_can_read(kernel, weight, own["bias"]))
    own = module._buffers
    return Layer(own["bias"], packed=module.matrix.packed, input_scale=own.get("input_scale"))
