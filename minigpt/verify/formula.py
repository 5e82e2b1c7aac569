"""GPT-2 written out as its papers have it: no fused kernel, no cache, no batch, nothing shared with the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.verify.stored import StoredModel

# Shapes below:  T tokens · H heads · K head dimension · D n_embd


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu": exact_gelu,
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "relu": lambda x: x.clamp_min(0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Precision:
    """The numbers that a computation is made in, and what its results and its weights are rounded to on the way."""

    computed: torch.dtype
    kept: torch.dtype
    rounds_inputs: bool = False  # of products, to 8 bits and what these carry

    def of(self, x: Tensor) -> Tensor:
        return x.to(self.kept).to(self.computed)

    def product(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Shapes: (T, in), (in, out)  ->  (T, out)."""
        return (_rounded(x) if self.rounds_inputs else x) @ self.of(matrix)


def _rounded(x: Tensor) -> Tensor:
    """To whole numbers of a row's step, of which 127 are four times its mean magnitude.

    But no more than its largest, and no less than a 254th of that. (Numbers above 127 carry into a second one.)
    """
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-12)
    typical = 4 * x.abs().mean(-1, keepdim=True)
    step: Tensor = typical.clamp(largest / 254, largest) / 127
    return (x / step).round() * step


EXACT = Precision(torch.float64, torch.float64)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Source: Ba et al. 2016, with the variance divided by the width, as GPT-2 has it."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + epsilon) * weight + bias


def attention(q: Tensor, k: Tensor, v: Tensor, n_head: int, scale: float, visible: Tensor) -> Tensor:
    """Each token's mixture of the values that it may see, head beside head.

    Shapes: q, k, v (T, D), visible bool (T, T)  ->  (T, D)

    Source: Vaswani et al. 2017, equation 1.
    """
    q, k, v = (x.reshape(len(x), n_head, -1).transpose(0, 1) for x in (q, k, v))  # (H, T, K)
    scores = (q @ k.mT * scale).masked_fill(~visible, -math.inf)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ v).transpose(0, 1).flatten(1)


def scale_of(stored: StoredModel, layer: int) -> float:
    """What the scores of a layer (0 is the first) are multiplied by."""
    width = stored.field("n_embd") // stored.field("n_head")
    scale = 1 / math.sqrt(width) if stored.field("scale_attn_weights") else 1.0
    return scale / (layer + 1) if stored.field("scale_attn_by_inverse_layer_idx") else scale


def triangle(n: int) -> Tensor:
    """Every token sees itself and all before it: bool (n, n)."""
    places = torch.arange(n)
    return places[None, :] <= places[:, None]


@torch.no_grad()
def compute(stored: StoredModel, tokens: list[int], precision: Precision = EXACT) -> dict[str, Tensor]:
    """What a GPT-2 has at each point of one pass over `tokens`, first to last, by the point's name.

    Shapes: (T, width of the point) each; "logits" (T, V)
    """
    near = precision.of

    def weight(name: str) -> Tensor:
        return near(stored.tensor(name))

    def linear(x: Tensor, name: str) -> Tensor:
        return near(precision.product(x, stored.tensor(f"{name}.weight")) + weight(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        epsilon = stored.field("layer_norm_epsilon")
        return near(layer_norm(x, weight(f"{name}.weight"), weight(f"{name}.bias"), epsilon))

    n_head, activation = stored.field("n_head"), ACTIVATIONS[stored.field("activation_function")]
    x = near(near(stored.embedding()[tokens]) + weight("wpe.weight")[: len(tokens)])
    points = {"embedding": x}
    for layer in range(stored.field("n_layer")):
        h, at = f"h.{layer}", f"layer {layer}: "
        normed = points[f"{at}attention norm"] = norm(x, f"{h}.ln_1")
        q, k, v = linear(normed, f"{h}.attn.c_attn").chunk(3, -1)
        points |= {f"{at}queries": q, f"{at}keys": k, f"{at}values": v}
        mixed = near(attention(q, k, v, n_head, scale_of(stored, layer), triangle(len(tokens))))
        points[f"{at}attention"] = mixed
        points[f"{at}attention output"] = linear(mixed, f"{h}.attn.c_proj")
        x = points[f"{at}residual stream after attention"] = near(x + points[f"{at}attention output"])
        normed = points[f"{at}mlp norm"] = norm(x, f"{h}.ln_2")
        points[f"{at}mlp input"] = linear(normed, f"{h}.mlp.c_fc")
        points[f"{at}activation"] = near(activation(points[f"{at}mlp input"]))
        points[f"{at}mlp output"] = linear(points[f"{at}activation"], f"{h}.mlp.c_proj")
        x = points[f"{at}residual stream"] = near(x + points[f"{at}mlp output"])
    points["final norm"] = norm(x, "ln_f")
    points["logits"] = precision.product(points["final norm"], stored.head().mT)
    return points
