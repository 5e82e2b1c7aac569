"""What `Block` computes, as functions of its weights, for `scripted.run`.

There is no class here but what names the weights: TorchScript knows modules only if all that they do is TorchScript. It
reads the types of what it is given, which is why they are no strings here.
"""

from typing import NamedTuple, Optional

import torch
from torch import Tensor

from minigpt.attention import fused_attention
from minigpt.inference.row_by_row import row_by_row
from minigpt.kernels import products
from minigpt.quantization import float16, int8
from minigpt.quantization.modules import Packed

# Shapes below:  B rows · T new tokens · N slots of the cache · S tokens in view · D n_embd · H heads · K head dimension


class Norm(NamedTuple):
    """A layer norm."""

    weight: Tensor | None  # (D,)
    bias: Tensor | None  # (D,)
    eps: float


class Layer(NamedTuple):
    """A linear layer: with a plain weight, or one that is packed."""

    bias: Tensor
    weight: Tensor | None = None  # (in, out)
    kernel: str = "mkl"  # of `products.affine`, which multiplies by it
    packed: Optional[Packed] = None  # noqa: UP045  # it knows no `|`
    input_scale: Tensor | None = None  # of int8: (in,)


class BlockWeights(NamedTuple):
    """All that a block is made of, in the order of its computation."""

    attn_norm: Norm
    qkv: Layer
    scale: float  # of attention's scores
    attn_out: Layer
    mlp_norm: Norm
    mlp_up: Layer
    gelu: str  # which form, in the word of `F.gelu`
    mlp_down: Layer


def through_blocks(
    x: Tensor,
    blocks: list[BlockWeights],
    n_head: int,
    slots: Tensor,
    length: int,
    mask: Tensor | None,
    pads: list[int] | None,
) -> Tensor:
    """What leaves the last block; the new keys and values go to the slots from `length` on.

    Args:
        x: what enters the first block; it is overwritten.
        mask: as from `attention_mask`.
        pads: each row's padding, where each is to attend by itself.

    Shapes: x (B, T, D), slots (layer, key | value, B, H, N, K)  ->  (B, T, D)
    """
    n_rows, n_new, width = x.shape
    x = x.reshape(-1, width)  # (B * T, D)
    for layer, block in enumerate(blocks):
        seen = slots[layer].narrow(-2, 0, length + n_new)  # (key | value, B, H, S, K)
        qkv = linear(norm(x, block.attn_norm), block.qkv).view(n_rows, n_new, 3, n_head, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, K)
        seen.narrow(-2, length, n_new).copy_(qkv[1:])
        if pads is None:
            y = fused_attention(qkv[0], seen[0], seen[1], mask, block.scale)  # (B, H, T, K)
        else:
            y = row_by_row(qkv[0], seen[0], seen[1], pads, block.scale)
        add_branches_in_parts(x, y.transpose(1, 2).reshape(-1, width), block)
    return x.view(n_rows, n_new, width)


def add_branches_in_parts(x: Tensor, y: Tensor, block: BlockWeights, at_once: int = 256) -> None:
    """Adds both branches of a block to the residual stream x, in place; y is what the heads give: (rows, D) both.

    8-bit weights take a long prompt `at_once` rows at a time, so that what is computed between the products, most of it
    four times as wide, stays in the processor's caches. A product of integers gives a row the same bits in any company;
    one of floating-point numbers may not, and MKL is faster with all rows at once.
    """
    is_int8 = block.mlp_up.input_scale is not None
    if not is_int8 or len(x) <= at_once:
        add_branches(x, y, block)
    else:
        for begin in range(0, len(x), at_once):
            add_branches(x[begin : begin + at_once], y[begin : begin + at_once], block)


def add_branches(x: Tensor, y: Tensor, block: BlockWeights) -> None:
    """The same for all rows at once.

    In place, GELU too: with a long prompt, the system takes longer to hand out memory than the additions take.
    """
    x.add_(linear(y, block.attn_out))
    hidden = linear(norm(x, block.mlp_norm), block.mlp_up)
    x.add_(linear(torch.ops.aten.gelu_(hidden, approximate=block.gelu), block.mlp_down))


def norm(x: Tensor, layer: Norm) -> Tensor:
    return torch.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def linear(x: Tensor, layer: Layer) -> Tensor:
    """Shapes: (rows, in)  ->  (rows, out)."""
    weight, packed, input_scale = layer.weight, layer.packed, layer.input_scale
    if weight is not None:
        return products.affine(layer.kernel, x, weight, layer.bias)
    assert packed is not None
    if input_scale is None:
        return float16.affine(x, packed, layer.bias)
    return int8.affine(x, packed, input_scale, layer.bias)
