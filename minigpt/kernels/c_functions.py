"""What a GPT-2 computes on a CPU, by functions in C: `blocks.c`, compiled where it runs (`available`).

torch's kernels wait for memory longer than they must, and between two products each small operation is a call of its own.
Here a linear layer is one call, whatever its weights are; so are all blocks for some new tokens, and all from token ids to
the next token's logits. The functions one by one give the bits that they give together; a row gives the bits that it
gives alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from minigpt.kernels import c_code
from minigpt.kernels.c_structs import (
    FLOAT16,
    FLOAT32,
    INT8,
    CAttention,
    CCache,
    CLinear,
    CModel,
    CNorm,
    CStrides,
    CTable,
)

# Shapes below:  B rows · T new tokens · S tokens in view · H heads · K head dimension · D n_embd

SOURCE = Path(__file__).with_name("blocks.c")
NOT_IN_TABLES = 2  # what `next_logits` returns where an embedding is missing
KIND_OF_DTYPE = {torch.float32: FLOAT32, torch.float16: FLOAT16}
PLAIN = (nn.Parameter, Tensor)  # classes whose tensors hold their numbers themselves


ARGUMENTS: dict[str, tuple[type, ...]] = {
    "layer_norm": (c_void_p, c_int64, c_void_p, c_void_p),
    "gelu": (c_void_p, c_int64, c_void_p),
    "attention": (c_void_p,),
    "linear": (c_void_p, c_int64, c_void_p, c_void_p),
    "fit_together": (c_void_p, c_int64, c_int64),
    "through_blocks": (c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int64),
    "next_logits": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p),
}


@cache
def functions() -> Any:
    """The library of the functions; None where there is none."""
    library = c_code.library(SOURCE)
    if library is not None:
        for name, types in ARGUMENTS.items():
            getattr(library, name).argtypes = types
    return library


def available() -> bool:
    return functions() is not None


def may_run() -> bool:
    """Whether there are functions, and nobody has to see torch's operations in their place."""
    return not (torch.compiler.is_compiling() or is_intercepted()) and available()


def can_run_on(*tensors: Tensor) -> bool:
    """Whether the functions may run on these: float32 numbers in memory, of which nobody wants gradients."""
    wanted = torch.is_grad_enabled()
    return may_run() and all(is_float32_on_cpu(t) and not (wanted and t.requires_grad) for t in tensors)


def is_float32_on_cpu(tensor: Tensor) -> bool:
    """Whether it is float32 numbers in the processor's memory."""
    return tensor.dtype is torch.float32 and tensor.is_cpu and is_ordinary_tensor(tensor)


def is_ordinary_tensor(tensor: Tensor) -> bool:
    """Whether its memory holds its numbers: it is of no other class, layout or sign, which torch keeps elsewhere."""
    return (
        type(tensor) in PLAIN
        and tensor.layout is torch.strided
        and not (tensor.is_neg() or tensor._is_zerotensor())
    )


def is_intercepted() -> bool:
    """Whether somebody counts, records or changes what torch computes: `FlopCounterMode`, `torch.func.vmap` and the like."""
    inner: Any = torch._C
    return (
        bool(inner._len_torch_dispatch_stack())
        or inner._functorch.peek_interpreter_stack() is not None
        or inner._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def as_float32_vector(vector: Tensor, n: int) -> Tensor:
    """A vector as the functions read it, which mostly it is already."""
    if vector.device.type != "cpu" or vector.shape != (n,):
        raise ValueError(f"expected {n} numbers on the CPU, got {tuple(vector.shape)} on {vector.device}")
    return vector if is_float32_on_cpu(vector) and vector.is_contiguous() else torch.empty(n).copy_(vector)


def plain_layer(weight: Tensor, bias: Tensor | None) -> CLinear:
    """A layer with a weight of float32 or float16 as it lies: (out, in), (out,)."""
    n_out, n_in = weight.shape
    kind = KIND_OF_DTYPE.get(weight.dtype)
    if kind is None or weight.device.type != "cpu" or not weight.is_contiguous():
        raise ValueError(
            f"expected a contiguous weight (out, in) of float32 or float16 on the CPU, got {weight.dtype} on "
            f"{weight.device.type} with strides {weight.stride()}"
        )
    bias = None if bias is None else as_float32_vector(bias, n_out)
    layer = CLinear(weight.data_ptr(), None if bias is None else bias.data_ptr(), n_in, n_out, kind)
    layer.kept = (weight, bias)
    return layer


def linear(rows: Tensor, layer: CLinear) -> Tensor:
    """A linear layer: (rows, in)  ->  (rows, out)."""
    if rows.device.type != "cpu" or rows.size(1) != layer.n_in:
        raise ValueError(
            f"expected rows of {layer.n_in} inputs on the CPU, got {rows.size(1)} on {rows.device.type}"
        )
    x = rows.float().contiguous()
    y = x.new_empty(len(x), layer.n_out)
    check_memory(functions().linear(x.data_ptr(), len(x), ctypes.byref(layer), y.data_ptr()))
    return y


def check_memory(there_was_memory: int) -> None:
    if not there_was_memory:
        raise MemoryError("there is no memory left for what is computed between the layers")


def norm_of(weight: Tensor, bias: Tensor, eps: float) -> CNorm:
    return CNorm(weight.data_ptr(), bias.data_ptr(), weight.numel(), eps)


def attention(q: Tensor, k: Tensor, v: Tensor, pads: Sequence[int], scale: float) -> Tensor:
    """Each new token's weighted mean of the values that it sees.

    Shapes: q (B, H, T, K), k and v (B, H, S, K)  ->  (B, H, T, K)
    """
    n_rows, n_head, n_new, head_dim = q.shape
    q = q.transpose(1, 2)  # (B, T, H, K)
    # All rows' tokens are one list, with one step from each to the next.
    if n_rows > 1 and n_new > 1 and q.stride(0) != n_new * q.stride(1):
        q = q.contiguous()
    from_token_to_token = q.stride(0) if n_new == 1 else q.stride(1)
    y = q.new_empty(n_rows, n_new, n_head, head_dim)
    own_pads = c_array(pads)
    asked = CAttention(
        q.data_ptr(), k.data_ptr(), v.data_ptr(), y.data_ptr(), from_token_to_token, q.stride(2),
        CStrides(*k.stride()[:3]), ctypes.addressof(own_pads), n_rows, n_new, k.size(-2), n_head, head_dim, scale,
    )  # fmt: skip
    check_memory(functions().attention(ctypes.byref(asked)))
    return y.transpose(1, 2)


def c_array(pads: Sequence[int]) -> Any:
    return (c_int64 * len(pads))(*pads)


def fit_together(blocks: Any, width: int) -> bool:
    """Whether each layer of some blocks reads what the one before it gives."""
    return bool(functions().fit_together(blocks, len(blocks), width))


def through_blocks(
    x: Tensor, blocks: Any, slots: Tensor, length: int, pads: Sequence[int], n_last: int
) -> Tensor:
    """New tokens through all blocks, which fit together; keys and values go to the slots from `length` on.

    What leaves the last block is computed for each row's `n_last` last tokens, 1 to T, and lies where x did.

    Shapes: x (B, T, D), slots (layer, key | value, B, H, N, K)  ->  (B, n_last, D)

    Raises:
        ValueError: the cache is another model's.
        MemoryError: there is no memory for what is computed on the way.
    """
    n_rows, n_new, width = x.shape
    cache = c_cache(slots, length, pads, n_rows, blocks, len(blocks), width)
    check_memory(functions().through_blocks(
        x.data_ptr(), blocks, len(blocks), ctypes.byref(cache), n_rows, n_new, n_last
    ))  # fmt: skip
    return x.view(-1)[: n_rows * n_last * width].view(n_rows, n_last, width)


def c_cache(
    slots: Tensor, length: int, pads: Sequence[int], n_rows: int, blocks: Any, n_layer: int, width: int
) -> CCache:
    """A cache as the functions take it.

    Raises:
        ValueError: it is not one of these blocks for so many rows.
    """
    n_head = blocks[0].n_head
    shape = (n_layer, 2, n_rows, n_head, slots.size(-2), width // n_head)
    if slots.shape != shape or not is_float32_on_cpu(slots) or slots.stride(-1) != 1:
        raise ValueError(
            f"the cache is another model's: it is {tuple(slots.shape)} of {slots.dtype} on {slots.device.type}, "
            f"and must be {shape} of torch.float32 on the CPU"
        )
    layer_stride, value_offset, *strides, _ = slots.stride()
    own_pads = c_array(pads)
    cache = CCache(
        slots.data_ptr(), layer_stride, value_offset, CStrides(*strides), ctypes.addressof(own_pads), length
    )
    cache.kept = own_pads
    return cache


def plain_table(weight: Tensor) -> CTable | None:
    """Embeddings of float32 or float16, (n, D), as the functions read them; None if they cannot."""
    kind = KIND_OF_DTYPE.get(weight.dtype)
    if kind is None or weight.dim() != 2 or not is_contiguous_on_cpu(weight):
        return None
    return CTable(weight.data_ptr(), *weight.shape, kind)


def int8_table(weight: Tensor, scale: Tensor, input_scale: Tensor) -> CTable | None:
    """Embeddings of int8, (n, D), with scales (n,) and (D,), as the functions read them; None if they cannot."""
    dtypes = weight.dtype, scale.dtype, input_scale.dtype
    fit = (
        dtypes == (torch.int8, torch.float32, torch.float32)
        and (*scale.shape, *input_scale.shape) == weight.shape
    )
    if not (fit and all(map(is_contiguous_on_cpu, (weight, scale, input_scale)))):
        return None
    return CTable(weight.data_ptr(), *weight.shape, INT8, scale.data_ptr(), input_scale.data_ptr())


def is_contiguous_on_cpu(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous() and is_ordinary_tensor(tensor)


def next_logits(
    tokens: Tensor, model: CModel, slots: Tensor, length: int, pads: Sequence[int]
) -> Tensor | None:
    """The logits of what follows each row, whose new tokens are these; keys and values go to the slots from `length` on.

    None if a token or a position has no embedding.

    Shapes: tokens int64 (B, T), slots as for `through_blocks`  ->  (B, V)

    Raises:
        ValueError: the cache is another model's.
        MemoryError: there is no memory for what is computed on the way.
    """
    n_rows, n_new = tokens.shape
    cache = c_cache(slots, length, pads, n_rows, model.blocks, model.n_layer, model.final_norm.n)
    logits = slots.new_empty(n_rows, model.head.n_out)
    found = functions().next_logits(
        tokens.data_ptr(), ctypes.byref(model), ctypes.byref(cache), n_rows, n_new, logits.data_ptr()
    )
    check_memory(found)
    return logits if found != NOT_IN_TABLES else None
