"""New tokens through blocks with weights of 8 bits, by the functions in C that their modules call one by one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from minigpt.cache import KVCache
from minigpt.quantization import compiled
from minigpt.quantization.compiled import CBlock

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
        attn["qkv"].layer(),
        attn["out"].layer(),
        mlp["up"].layer(),
        mlp["down"].layer(),
        attn["sdpa"].scale,
    )
