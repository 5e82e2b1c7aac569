"""The weights that analyses of weights need, as plain matrices; the one place that knows where they are."""

from __future__ import annotations

from typing import NamedTuple, cast

from torch import Tensor

from minigpt.linear import Linear
from minigpt.model import GPT2, Block, UntiedHead

# Shapes below:  H heads · K head dimension · D n_embd · V vocab_size


class HeadWeights(NamedTuple):
    """One attention head: what it reads by, and what it writes."""

    q: Tensor  # (D, K)
    k: Tensor  # (D, K)
    v: Tensor  # (D, K)
    out: Tensor  # (K, D)


def exact(tensor: Tensor) -> Tensor:
    """In float64, without a graph, and on the CPU, for not every device has it."""
    return tensor.detach().cpu().double()


def dense_weight(model: GPT2, name: str) -> Tensor:
    """The matrix of a linear layer, such as "blocks.0.attn.qkv": (in, out).

    Raises:
        ValueError: its weights are of another kind, as after `quantize`.
    """
    return _plain(model, name).weight.detach()


def bias(model: GPT2, name: str) -> Tensor:
    """What a linear layer adds whatever it reads: (out,)."""
    return _plain(model, name).bias.detach()


def _plain(model: GPT2, name: str) -> Linear:
    linear = model.get_submodule(name)
    if isinstance(linear, Linear):
        return linear
    way = (
        "load the model without quantize="
        if model.quantization
        else "of a model with an adapter, analyse the merged one, minigpt.training.merge(model)"
    )
    raise ValueError(
        f"this analysis reads plain weights, and {name} ({type(linear).__name__}) has none: {way}"
    )


def block_of(model: GPT2, layer: int) -> Block:
    return cast(Block, model.blocks[layer])


def head_weights(model: GPT2, layer: int, head: int) -> HeadWeights:
    """The weights of one head; the norm before it is not in them."""
    name, size = f"blocks.{layer}.attn", model.config.head_dim
    here = slice(head * size, (head + 1) * size)
    q, k, v = dense_weight(model, f"{name}.qkv").chunk(3, 1)
    return HeadWeights(q[:, here], k[:, here], v[:, here], dense_weight(model, f"{name}.out")[here])


def unembedding(model: GPT2) -> Tensor:
    """The matrix of the head, tied or not: (V, D)."""
    head = model.head
    if model.quantization:
        raise ValueError(
            f"this analysis reads weights of float32, not of {model.quantization}: load the model without quantize="
        )
    return (head.weight if isinstance(head, UntiedHead) else model.token_embedding.weight).detach()
