"""New tokens through all blocks by functions in C, which `modules_in_c` call one by one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minigpt.cache import KVCache
from minigpt.kernels import c_functions
from minigpt.kernels.c_functions import CBlock, CLinear
from minigpt.linear import Linear

# Shapes below:  B rows · T new tokens · D n_embd


def through_blocks(blocks: Any, x: Tensor, cache: KVCache) -> Tensor:
    """What leaves the last block, where each row's padding hides itself: (B, T, D)  ->  (B, T, D)."""
    x = x.contiguous()
    of_blocks = (CBlock * len(blocks))(*(c_block(block._modules) for block in blocks))
    c_functions.through_blocks(x, of_blocks, cache.slots, cache.length, cache.pads(), blocks[0].attn.n_head)
    return x


def c_block(block: dict[str, Any]) -> CBlock:
    """A block as the functions in C take it."""
    attn, mlp = block["attn"]._modules, block["mlp"]._modules
    return CBlock(
        c_functions.norm_of(block["attn_norm"]),
        c_functions.norm_of(block["mlp_norm"]),
        c_linear(attn["qkv"]),
        c_linear(attn["out"]),
        c_linear(mlp["up"]),
        c_linear(mlp["down"]),
        attn["sdpa"].scale,
    )


def c_linear(module: Any) -> CLinear:
    if type(module) is not Linear:
        return module.layer()  # type: ignore[no-any-return]
    own: Any = module._parameters  # whose memory lasts as long as the pass
    n_in, n_out = own["weight"].shape
    return CLinear(own["weight"].data_ptr(), own["bias"].data_ptr(), n_in, n_out, c_functions.FLOAT32)
