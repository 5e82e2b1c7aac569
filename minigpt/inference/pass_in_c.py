"""New tokens through all blocks by functions in C, which `modules_in_c` call one by one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minigpt.cache import KVCache
from minigpt.kernels import c_functions
from minigpt.kernels.c_functions import CBlock, CLinear, CNorm, is_in_memory
from minigpt.kernels.products import lies_outputs_first
from minigpt.linear import Linear

# Shapes below:  B rows · T new tokens · D n_embd


def through_blocks(blocks: Any, x: Tensor, cache: KVCache, n_last: int) -> Tensor | None:
    """What leaves the last block, where each row's padding hides itself: (B, T, D)  ->  (B, n_last, D).

    None if they cannot read x or a layer, or the layers do not fit together: torch's operations can, or say why not.
    """
    if not c_functions.can_read(x):
        return None
    x = x.contiguous()
    kept: list[object] = []
    of_blocks = (CBlock * len(blocks))(*(c_block(block._modules, kept) for block in blocks))
    if not c_functions.fit_together(of_blocks, x.size(-1)):
        return None
    return c_functions.through_blocks(x, of_blocks, cache.slots, cache.length, cache.pads(), n_last)


def c_block(block: dict[str, Any], kept: list[object]) -> CBlock:
    """A block as the functions in C take it: addresses. `kept` gets what has to stay there while they run.

    Another thread may replace a weight meanwhile.
    """
    attn, mlp = block["attn"]._modules, block["mlp"]._modules
    return CBlock(
        c_norm(block["attn_norm"], kept),
        c_norm(block["mlp_norm"], kept),
        c_linear(attn["qkv"], kept),
        c_linear(attn["out"], kept),
        c_linear(mlp["up"], kept),
        c_linear(mlp["down"], kept),
        block["attn"].n_head,
        attn["sdpa"].scale,
    )


# Where the functions cannot read the tensors of a module, a struct is empty: no other fits it.


def c_norm(module: Any, kept: list[object]) -> CNorm:
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if not module.can_read_from(weight, bias):
        return CNorm()
    kept += weight, bias
    return c_functions.norm_of(weight, bias, module.eps)


def c_linear(module: Any, kept: list[object]) -> CLinear:
    if type(module) is not Linear:
        layer: CLinear = module.layer() if "bias" in module._buffers else CLinear()
        kept.append(layer)
        return layer
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or bias is None or not (is_in_memory(weight) and is_in_memory(bias)):
        return CLinear()
    n_in, n_out = weight.shape
    if not (lies_outputs_first(weight) and bias.shape == (n_out,) and bias.is_contiguous()):
        return CLinear()
    kept += weight, bias
    # Not by `plain_layer`, which asks the same of a transposed view: this is done for each layer of each token.
    return CLinear(weight.data_ptr(), bias.data_ptr(), n_in, n_out, c_functions.FLOAT32)
