"""New tokens through all blocks by functions in C, which `modules_in_c` call one by one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

from minigpt.cache import KVCache
from minigpt.kernels import c_functions
from minigpt.kernels.c_functions import is_float32_on_cpu
from minigpt.kernels.c_structs import CBlock, CLinear, CNorm
from minigpt.kernels.products import is_output_major
from minigpt.linear import Linear

# Shapes below:  B rows · T new tokens · D n_embd


def through_blocks(blocks: Any, x: Tensor, cache: KVCache, n_last: int) -> Tensor | None:
    """What leaves the last block for each row's `n_last` last tokens: (B, T, D)  ->  (B, n_last, D).

    Padding is left out by the cache's counts of it. None if the functions cannot read x or a layer, or the widths of the
    layers do not fit together: torch's operations compute that, or say what is wrong.
    """
    if not c_functions.can_run_on(x):
        return None
    x = x.contiguous()
    structs = structs_for(cache.blocks_in_c, parts_of(blocks), lambda: c_blocks(blocks))
    if not c_functions.fit_together(structs.made, x.size(-1)):
        return None
    cache.blocks_in_c = structs
    return c_functions.through_blocks(x, structs.made, cache.slots, cache.length, cache.pads(), n_last)


# Parameters and buffers, each in its place; and matrices, numbers and whatever else counts. The same are the same objects.
Parts = tuple[list[Tensor | None], list[object]]


def parts_of(blocks: Any) -> Parts:
    """What plain blocks are made of."""
    tensors: list[Tensor | None] = []
    others: list[object] = []
    for block in blocks:
        own = block._modules
        attn, mlp = own["attn"]._modules, own["mlp"]._modules
        others += own["attn"].n_head, attn["sdpa"].scale
        for norm in (own["attn_norm"], own["mlp_norm"]):
            others += norm.eps, norm.normalized_shape
            tensors += norm._parameters.get("weight"), norm._parameters.get("bias")
        for linear in (attn["qkv"], attn["out"], mlp["up"], mlp["down"]):
            if type(linear) is Linear:
                tensors += linear._parameters.get("weight"), linear._parameters.get("bias")
            else:
                tensors += linear._buffers.get("input_scale"), linear._buffers.get("bias")
                others.append(linear.matrix)
    return tensors, others


class CachedStructs:
    """Structs with the addresses of a model's weights, kept from one pass to the next.

    To find out whether they are still right takes 60 µs a token for all of the bundled model; to make them takes 350.
    """

    def __init__(self, parts: Parts, make: Callable[[], Any]) -> None:
        self._tensors, self._others = parts
        # Holds the memory: another thread may replace a weight while they run, and no other tensor is given its address.
        self._places = [t.detach() for t in self._tensors if t is not None]
        self._addresses = list(map(Tensor.data_ptr, self._places))
        self.made = make()

    def are_made_of(self, parts: Parts) -> bool:
        tensors, others = parts
        if len(others) != len(self._others) or len(tensors) != len(self._tensors):
            return False
        if not (
            all(map(operator.is_, others, self._others)) and all(map(operator.is_, tensors, self._tensors))
        ):
            return False
        present = [t for t in tensors if t is not None]
        # To set `data` gives the same tensor other memory, or another view of it; and to share it moves its memory.
        return (
            list(map(Tensor.data_ptr, present)) == self._addresses
            and all(map(Tensor.is_set_to, present, self._places))
            and not any(map(Tensor.is_neg, present))
        )


def structs_for(known: CachedStructs | None, parts: Parts, make: Callable[[], Any]) -> CachedStructs:
    """The known ones, if they are still right; otherwise others."""
    return known if known is not None and known.are_made_of(parts) else CachedStructs(parts, make)


def c_blocks(blocks: Any) -> Any:
    return (CBlock * len(blocks))(*(c_block(block._modules) for block in blocks))


def c_block(block: dict[str, Any]) -> CBlock:
    attn, mlp = block["attn"]._modules, block["mlp"]._modules
    return CBlock(
        c_norm(block["attn_norm"]),
        c_norm(block["mlp_norm"]),
        c_linear(attn["qkv"]),
        c_linear(attn["out"]),
        c_linear(mlp["up"]),
        c_linear(mlp["down"]),
        block["attn"].n_head,
        attn["sdpa"].scale,
    )


# Where the functions cannot read the tensors of a module where they are, a struct is empty: no other fits it.


def c_norm(module: Any) -> CNorm:
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if not module.can_read_from(weight, bias):
        return CNorm()
    return c_functions.norm_of(weight, bias, module.eps)


def c_linear(module: Any) -> CLinear:
    if type(module) is not Linear:
        layer: CLinear = (
            module.layer() if all(map(is_readable_vector, module._buffers.values())) else CLinear()
        )
        return layer
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or bias is None or not (is_float32_on_cpu(weight) and is_output_major(weight)):
        return CLinear()
    fits = bias.shape == (weight.size(1),) and is_readable_vector(bias)
    return c_functions.plain_layer(weight.t(), bias) if fits else CLinear()


def is_readable_vector(vector: Tensor | None) -> bool:
    return vector is not None and is_float32_on_cpu(vector) and vector.is_contiguous()
