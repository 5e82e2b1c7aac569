"""New tokens through all blocks by functions in C, which `compiled_modules` call one by one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minigpt.cache import KVCache
from minigpt.kernels import compiled
from minigpt.kernels.compiled import CBlock, CLinear
from minigpt.linear import Linear

# Shapes below:  B rows · T new tokens · D n_embd


def through_blocks(blocks: Any, x: Tensor, cache: KVCache) -> Tensor:
    """What leaves the last block, where each row's padding hides itself: (B, T, D)  ->  (B, T, D)."""
    x = x.contiguous()
    of_blocks = (CBlock * len(blocks))(*(block_of(block._modules) for block in blocks))
    compiled.through_blocks(x, of_blocks, cache.slots, cache.length, cache.pads(), blocks[0].attn.n_head)
    return x


def block_of(block: dict[str, Any]) -> CBlock:
    """A block as the compiled functions take it."""
    attn, mlp = block["attn"]._modules, block["mlp"]._modules
    return CBlock(
        compiled.norm_of(block["attn_norm"]),
        compiled.norm_of(block["mlp_norm"]),
        layer_of(attn["qkv"]),
        layer_of(attn["out"]),
        layer_of(mlp["up"]),
        layer_of(mlp["down"]),
        attn["sdpa"].scale,
    )


def layer_of(module: Any) -> CLinear:
    if type(module) is not Linear:
        return module.layer()  # type: ignore[no-any-return]
    own: Any = module._parameters
    n_in, n_out = own["weight"].shape
    return CLinear(own["weight"].data_ptr(), own["bias"].data_ptr(), n_in, n_out, compiled.FLOAT32)
