"""What `Block` computes for one new token of each row, as functions of its weights, for `scripted.run`.

There is no class here but what names the weights: TorchScript knows modules only if all that they do is TorchScript. It
reads the types of what it is given, which is why they are no strings here.
"""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt import kernels
from minigpt.quantization import float16, int8
from minigpt.quantization.small import Packed

# Shapes below:  B rows · N slots of the cache · S tokens in view · D n_embd · H heads · K head dimension


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
    """All that a block is made of."""

    attn_norm: Norm
    qkv: Layer
    attn_out: Layer
    mlp_norm: Norm
    mlp_up: Layer
    mlp_down: Layer


class Attention(NamedTuple):
    """What attention has to know besides queries, keys and values."""

    n_head: int
    scales: list[float]  # of the scores, layer by layer
    mask: Tensor | None  # as from `attention_mask`
    pads: list[int] | None  # each row's padding, where each is to attend by itself


def through_blocks(
    x: Tensor, slots: Tensor, length: int, blocks: list[BlockWeights], attention: Attention, gelu: str
) -> Tensor:
    """What leaves the last block; the new keys and values go to slot `length`.

    Shapes: x (B, D), slots (layer, key | value, B, H, N, K)  ->  (B, D)
    """
    rows = x.size(0)
    for layer, block in enumerate(blocks):
        seen = slots[layer].narrow(-2, 0, length + 1)  # (key | value, B, H, S, K)
        qkv = linear(norm(x, block.attn_norm), block.qkv)
        qkv = qkv.view(rows, 1, 3, attention.n_head, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, 1, K)
        seen.narrow(-2, length, 1).copy_(qkv[1:])
        y = attend(qkv[0], seen[0], seen[1], attention, attention.scales[layer])  # (B, H, 1, K)
        x = x + linear(y.reshape(rows, -1), block.attn_out)
        hidden = F.gelu(linear(norm(x, block.mlp_norm), block.mlp_up), approximate=gelu)
        x = x + linear(hidden, block.mlp_down)
    return x


def norm(x: Tensor, layer: Norm) -> Tensor:
    return torch.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def linear(x: Tensor, layer: Layer) -> Tensor:
    """Shapes: (B, in)  ->  (B, out)."""
    weight, packed, input_scale = layer.weight, layer.packed, layer.input_scale
    if weight is not None:
        return kernels.affine(layer.kind, x, weight, layer.bias)
    assert packed is not None
    if input_scale is None:
        return float16.affine(x, packed, layer.bias)
    if layer.kind == "int8":
        return int8.affine(x, packed, input_scale, layer.bias)
    return int8.fine_affine(x, packed, input_scale, layer.bias)


def attend(q: Tensor, k: Tensor, v: Tensor, attention: Attention, scale: float) -> Tensor:
    """Shapes: q (B, H, 1, K), k and v (B, H, S, K)  ->  (B, H, 1, K)."""
    pads = attention.pads
    if pads is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attention.mask, scale=scale)
    rows: list[Tensor] = []
    for row, pad in enumerate(pads):
        own_k, own_v = k[row : row + 1, :, pad:], v[row : row + 1, :, pad:]
        rows.append(F.scaled_dot_product_attention(q[row : row + 1], own_k, own_v, scale=scale))
    return torch.cat(rows)
