"""One new token of each row through the model in five kernels a layer, written in Triton, for a GPU.

With one text, a GPU computes next to nothing: it waits for weights, and between kernels for the next one to begin. Here the
layer norms, GELU and the additions to the residual stream are part of the products that they stand beside:

    norm and qkv · attention, and the new key and value into the cache · out, added · norm, up and GELU · down, added

and attention reads the slots that are filled, not all there are. Sums are taken in float32 whatever the weights are in.
`graphed_step` records it as a CUDA graph; the modules' own computation, which it has to agree with, stands there beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from minigpt.inference import plain_pass
from minigpt.inference.block_functions import BlockWeights, Layer, Norm

# Shapes below:  B rows · N slots of the cache · D n_embd · V vocab_size

SLOTS = 128  # of the cache, that are read at once
MANY_OUTPUTS, MANY_INPUTS = 1 << 14, 1 << 11  # those of the head, and of the MLP's second layer


class Weights(NamedTuple):
    """All that a model is made of."""

    token_embedding: Tensor  # (V, D)
    position_embedding: Tensor  # (n_positions, D)
    blocks: Sequence[BlockWeights]
    final_norm: Norm
    head: Tensor  # (V, D)

    @classmethod
    def of(cls, model: Any) -> Weights:
        """A model's own, as they lie."""
        return cls(
            model.token_embedding.weight,
            model.position_embedding.weight,
            plain_pass.weights(model.blocks),
            plain_pass.norm(model.final_norm),
            getattr(model.head, "weight", model.token_embedding.weight),  # a tied head has none
        )


def next_logits(weights: Weights, slots: Tensor, tokens: Tensor, new_slot: Tensor, pad: Tensor) -> Tensor:
    """The logits of what follows; the new keys and values go to the slot that `new_slot` names.

    Args:
        pad: how many of each row's first slots are padding.

    Shapes: slots (layer, key | value, B, H, N, K), tokens (B, 1), new_slot (1,), pad (B,)  ->  (B, V)
    """
    x = embedding(tokens, new_slot, pad, weights)  # (B, D)
    for block, its_slots in zip(weights.blocks, slots, strict=True):
        qkv = linear(x, block.qkv, norm=block.attn_norm)
        y = attention(qkv, its_slots, new_slot, pad, block.scale)
        linear(y, block.attn_out, add_to=x)
        hidden = linear(x, block.mlp_up, norm=block.mlp_norm, gelu=block.gelu)
        linear(hidden, block.mlp_down, add_to=x)
    return product(x, weights.head.t(), norm=weights.final_norm)


def embedding(tokens: Tensor, new_slot: Tensor, pad: Tensor, weights: Weights) -> Tensor:
    """What enters the first block, where each token's position is counted from its row's padding on: (B, D)."""
    n_embd = weights.token_embedding.size(1)
    x = weights.token_embedding.new_empty(len(tokens), n_embd)
    _embedding[(len(tokens),)](
        tokens, new_slot, pad, weights.token_embedding, weights.position_embedding, x, *weights.token_embedding.shape,
        WIDTH=triton.next_power_of_2(n_embd),
    )  # fmt: skip
    return x


def linear(x: Tensor, layer: Layer, **more: Any) -> Tensor:
    """`product` with a layer's weight and bias."""
    assert layer.weight is not None
    return product(x, layer.weight, layer.bias, **more)


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    gelu: str = "",
    add_to: Tensor | None = None,
) -> Tensor:
    """The product x · weight + bias, of x after `norm`; then GELU, or added to another tensor in place.

    Args:
        gelu: which form of it, in the word of `F.gelu`.

    Shapes: (B, in), (in, out)  ->  (B, out)
    """
    n_in, n_out = weight.shape
    y = x.new_empty(len(x), n_out) if add_to is None else add_to
    inputs, outputs, warps = tile(n_in, n_out)
    _product[(triton.cdiv(n_out, outputs),)](
        x, weight, bias, *(norm or (None, None, 0.0)), y, len(x), n_in, n_out, *weight.stride(),
        NORM=norm is not None, BIAS=bias is not None, GELU=gelu, ADD=add_to is not None,
        INPUTS=inputs, OUTPUTS=outputs, num_warps=warps, **launch_options(x.device),
    )  # fmt: skip
    return y


def tile(n_in: int, n_out: int) -> tuple[int, int, int]:
    """What a program of a product computes: all inputs, as a power of two, for how many outputs, in how many warps.

    The fastest for GPT-2's sizes, as measured on an H200.
    """
    inputs = triton.next_power_of_2(n_in)
    if n_out > MANY_OUTPUTS:  # the head
        return inputs, 8, 4
    if inputs > MANY_INPUTS:  # out of the MLP
        return inputs, 1, 4
    return inputs, 4, 8 if n_out <= MANY_INPUTS else 4


def attention(qkv: Tensor, slots: Tensor, new_slot: Tensor, pad: Tensor, scale: float) -> Tensor:
    """What the heads give, and the new keys and values to their slot.

    Shapes: qkv (B, 3 * D), slots (key | value, B, H, N, K), new_slot (1,), pad (B,)  ->  (B, D)
    """
    _, n_rows, n_head, _, head_dim = slots.shape
    y = qkv.new_empty(n_rows, n_head * head_dim)
    _attention[n_rows, n_head](
        qkv, slots, new_slot, pad, y, scale, n_head, *slots.stride()[:-1],
        HEAD=head_dim, DIMS=triton.next_power_of_2(head_dim), SLOTS=SLOTS, **launch_options(slots.device),
    )  # fmt: skip
    return y


def launch_options(device: torch.device) -> dict[str, bool]:
    """How a kernel begins before the one before it has ended, where the GPU can do that: it fetches weights meanwhile.

    Source: NVIDIA's CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
    """
    if not _can_begin_early(device):
        return {"EARLY": False}
    return {"EARLY": True, "launch_pdl": True}


@cache
def _can_begin_early(device: torch.device) -> bool:
    hopper = (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )
    return hopper and hasattr(tl.extra.cuda, "gdc_wait")


# In the language of Triton: each program computes a part of the result, and where it is in the grid says which.


@triton.jit
def _embedding(
    tokens, new_slot, pad, token_embedding, position_embedding, x, vocab_size, n_embd, WIDTH: tl.constexpr
):
    """One row. An id outside the vocabulary gives NaN, which reaches the logits."""
    row, d = tl.program_id(0), tl.arange(0, WIDTH)
    token, position = tl.load(tokens + row), tl.maximum(tl.load(new_slot) - tl.load(pad + row), 0)
    known = tl.minimum(tl.maximum(token, 0), vocab_size - 1)
    its_own = tl.load(token_embedding + known * n_embd + d, d < n_embd, 0.0).to(tl.float32)
    its_own = tl.where(known == token, its_own, float("nan"))
    its_position = tl.load(position_embedding + position * n_embd + d, d < n_embd, 0.0).to(tl.float32)
    tl.store(x + row * n_embd + d, its_own + its_position, d < n_embd)


@triton.jit
def _product(
    x, weight, bias, norm_weight, norm_bias, eps, y, n_rows, n_in, n_out, in_stride, out_stride,
    NORM: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, ADD: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """`OUTPUTS` outputs of all rows; `INPUTS` is the next power of two from `n_in` on."""
    i = tl.arange(0, INPUTS)
    o = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_in, is_out = i < n_in, o < n_out
    # First of all the weights: they do not depend on the kernel before, and all else is computed while they come.
    there = is_out[:, None] & is_in[None, :]
    weights = tl.load(weight + o[:, None] * out_stride + i[None, :] * in_stride, there, 0.0)
    if EARLY:
        tl.extra.cuda.gdc_wait()  # for the kernel before
        tl.extra.cuda.gdc_launch_dependents()  # the one after may begin
    for row in range(n_rows):
        values = tl.load(x + row * n_in + i, is_in, 0.0).to(tl.float32)
        if NORM:
            mean = tl.sum(values, 0) / n_in
            centred = tl.where(is_in, values - mean, 0.0)
            values = centred * tl.rsqrt(tl.sum(centred * centred, 0) / n_in + eps)
            values *= tl.load(norm_weight + i, is_in, 0.0).to(tl.float32)
            values += tl.load(norm_bias + i, is_in, 0.0).to(tl.float32)
        result = tl.sum(weights.to(tl.float32) * values[None, :], 1)
        if BIAS:
            result += tl.load(bias + o, is_out, 0.0).to(tl.float32)
        if GELU == "tanh":
            # 0.5 * (1 + tanh(z)) is the logistic function of 2 * z.
            result *= tl.sigmoid(1.5957691216057308 * (result + 0.044715 * result * result * result))
        elif GELU == "none":
            result *= 0.5 * (1.0 + tl.erf(result * 0.7071067811865476))
        target = y + row * n_out + o
        if ADD:
            result += tl.load(target, is_out, 0.0).to(tl.float32)
        tl.store(target, result, is_out)


@triton.jit
def _attention(
    qkv, slots, new_slot, pad, y, scale, n_head, part_stride, row_stride, head_stride, slot_stride,
    HEAD: tl.constexpr, DIMS: tl.constexpr, SLOTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head of one row. It begins with the new token, which sees itself, and goes through those before it.

    `DIMS` is the next power of two from `HEAD` on.

    Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".
    """
    row, head = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, DIMS)
    is_dim = d < HEAD
    width = n_head * HEAD
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    own = qkv + row * 3 * width + head * HEAD + d
    q, k, v = (
        tl.load(own, is_dim, 0.0),
        tl.load(own + width, is_dim, 0.0),
        tl.load(own + 2 * width, is_dim, 0.0),
    )
    end = tl.load(new_slot)
    keys = slots + row * row_stride + head * head_stride + d
    tl.store(keys + end * slot_stride, k, is_dim)
    tl.store(keys + part_stride + end * slot_stride, v, is_dim)
    q = q.to(tl.float32) * scale
    most = tl.sum(q * k.to(tl.float32), 0)  # the largest score so far
    total = most * 0.0 + 1.0  # of exp(score - most)
    result = v.to(tl.float32)  # the sum of exp(score - most) * value
    for begin in range(tl.load(pad + row), end, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        there = (slot < end)[:, None] & is_dim[None, :]
        old_at = keys[None, :] + slot[:, None] * slot_stride
        old_keys = tl.load(old_at, there, 0.0).to(tl.float32)
        old_values = tl.load(old_at + part_stride, there, 0.0).to(tl.float32)
        scores = tl.where(slot < end, tl.sum(q[None, :] * old_keys, 1), float("-inf"))
        larger = tl.maximum(most, tl.max(scores, 0))
        shrink, weights = tl.exp(most - larger), tl.exp(scores - larger)
        total = total * shrink + tl.sum(weights, 0)
        result = result * shrink + tl.sum(weights[:, None] * old_values, 0)
        most = larger
    tl.store(y + row * width + head * HEAD + d, result / total, is_dim)
