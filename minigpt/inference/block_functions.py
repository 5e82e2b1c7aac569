"""What `Block` computes, as functions of its weights, for `scripted.run`.

There is no class here but what names the weights: TorchScript knows modules only if all that they do is TorchScript. It
reads the types of what it is given, which is why they are no strings here.
"""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt import kernels
from minigpt.attention import attention_mask, fused_attention, row_by_row
from minigpt.quantization import float16, int8
from minigpt.quantization.small import Packed

# Shapes below:  B rows · T new tokens · N slots of the cache · S tokens in view · D n_embd · H heads · K head dimension


class Norm(NamedTuple):
    """A layer norm."""

    weight: Tensor | None  # (D,)
    bias: Tensor | None  # (D,)
    eps: float


class Layer(NamedTuple):
    """A linear layer: with a plain weight, or one that is packed."""

    kind: str  # the kernel of `kernels.affine`; "float16", "int8" or "int8, fine"
    bias: Tensor
    weight: Tensor | None = None  # (in, out)
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
    first: int,
) -> Tensor:
    """What leaves the last block; the new keys and values go to the slots from `length` on.

    Args:
        x: what enters the first block; it is overwritten.
        mask: as from `attention_mask`.
        pads: each row's padding, where each is to attend by itself.
        first: the first token that is asked for, as in a slice. Of those before it, the last block computes keys and
            values, and no more.

    Shapes: x (B, T, D), slots (layer, key | value, B, H, N, K)  ->  (B, T - first, D)
    """
    n_rows, n_new, width = x.shape
    x = x.reshape(-1, width)  # (B * T, D)
    for layer, block in enumerate(blocks):
        seen = slots[layer].narrow(-2, 0, length + n_new)  # (key | value, B, H, S, K)
        qkv = linear(norm(x, block.attn_norm), block.qkv).view(n_rows, n_new, 3, n_head, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, K)
        seen.narrow(-2, length, n_new).copy_(qkv[1:])
        q = qkv[0]
        if first != 0 and n_new > 1 and layer == len(blocks) - 1:
            q, x = q[:, :, first:], x.view(n_rows, n_new, width)[:, first:].reshape(-1, width)
            mask = last_rows(mask, q.size(-2), length + n_new, x.device)
        if pads is None:
            y = fused_attention(q, seen[0], seen[1], mask, block.scale)  # (B, H, T, K)
        else:
            y = row_by_row(q, seen[0], seen[1], pads, block.scale)
        rest_of_block(x, y.transpose(1, 2).reshape(-1, width), block)
    return x.view(n_rows, -1, width)


def last_rows(mask: Tensor | None, n_last: int, n_seen: int, device: torch.device) -> Tensor | None:
    """The mask for the last tokens alone, of that for all new ones."""
    return attention_mask(n_last, n_seen, None, device) if mask is None else mask[..., -n_last:, :]


def rest_of_block(x: Tensor, y: Tensor, block: BlockWeights, at_once: int = 256) -> None:
    """Makes of what enters a block, and of what its heads give, what leaves it: (rows, D) both, x in place.

    With packed weights, a long prompt goes through `at_once` rows at a time: what is computed between the products,
    most of it four times as wide, then stays in the processor's caches. MKL is faster with all rows at once.
    """
    if block.mlp_up.packed is None or len(x) <= at_once:
        add_residuals(x, y, block)
    else:
        for begin in range(0, len(x), at_once):
            add_residuals(x[begin : begin + at_once], y[begin : begin + at_once], block)


def add_residuals(x: Tensor, y: Tensor, block: BlockWeights) -> None:
    """The same for all rows at once."""
    x.add_(linear(y, block.attn_out))
    hidden = F.gelu(linear(norm(x, block.mlp_norm), block.mlp_up), approximate=block.gelu)
    x.add_(linear(hidden, block.mlp_down))


def norm(x: Tensor, layer: Norm) -> Tensor:
    return torch.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def linear(x: Tensor, layer: Layer) -> Tensor:
    """Shapes: (rows, in)  ->  (rows, out)."""
    weight, packed, input_scale = layer.weight, layer.packed, layer.input_scale
    if weight is not None:
        return kernels.affine(layer.kind, x, weight, layer.bias)
    assert packed is not None
    if input_scale is None:
        return float16.affine(x, packed, layer.bias)
    if layer.kind == "int8":
        return int8.affine(x, packed, input_scale, layer.bias)
    return int8.fine_affine(x, packed, input_scale, layer.bias)
