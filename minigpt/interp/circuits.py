"""What heads do by their weights alone: whom they look for, what they copy, which heads they build on.

Every norm subtracts the stream's mean before anything reads it. So that is part of each matrix here, as the norm's
weight is, and the mean of what a head writes, which nothing can read, counts nowhere; nor does what is added to all
logits alike, which changes no probability. So models that compute the same have the same circuits and scores.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section "Handling layer normalization".
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from minigpt.interp.dense import HeadWeights, block_of, exact, head_weights, unembedding
from minigpt.interp.points import as_indices
from minigpt.model import GPT2

EPSILON = 1e-13  # what is smaller, of the size of its factors, is rounding

# Shapes below:  L layers · H heads · K head dimension · D n_embd


def qk_circuit(model: GPT2, layer: int, head: int) -> Tensor:
    """Whom the head looks for: score(i, j) = x_i @ this @ x_j, times the attention scale, but for biases.

    x is the stream divided by its standard deviation; the rest of the norm is in the matrix.

    Shapes: (D, D), float64

    Raises:
        IndexError: there is no such layer or head.
        ValueError: the weights are quantised.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
    """
    weights = _folded(model, layer, head)
    return weights.q @ weights.k.T


def ov_circuit(model: GPT2, layer: int, head: int) -> Tensor:
    """What the head writes of what it sees: x_j @ this, for a key that gets all attention, without its mean.

    Otherwise as `qk_circuit`.

    Shapes: (D, D), float64
    """
    weights = _folded(model, layer, head)
    return weights.v @ weights.out


def copying_score(model: GPT2, layer: int, head: int) -> float:
    """Whether the head raises the logits of the tokens it sees: from -1 (lowers them) to 1 (copies).

    sum of λ / sum of |λ| over the eigenvalues λ of W_E W_V W_O W_U, the map from tokens seen to logits (less their
    mean). Those that are not zero are also the eigenvalues of the K x K matrix W_O W_U W_E W_V, which is what is
    computed. 0 for a head that writes nothing into the logits.

    Raises:
        IndexError: there is no such layer or head.
        ValueError: the weights are quantised.

    Source: Elhage et al. 2021, section "Summarizing OV/QK matrices".

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> -1 <= copying_score(model, layer=3, head=1) <= 1
    True
    """
    weights = _folded(model, layer, head)
    unembed = _centred(exact(unembedding(model)) * exact(model.final_norm.weight))  # (V, D)
    embed = exact(model.token_embedding.weight)
    small = weights.out @ (unembed.T @ embed) @ weights.v  # (K, K)
    values = torch.linalg.eigvals(small)
    size = values.abs().sum()
    rounding = EPSILON * weights.out.norm() * unembed.norm() * embed.norm() * weights.v.norm()
    return float(values.real.sum() / size) if size > rounding else 0.0


def composition_score(
    model: GPT2, sender: tuple[int, int], receiver: tuple[int, int], through: Literal["q", "k", "v"]
) -> float:
    """How much a head reads of what an earlier head has written: ||W_OV W|| / (||W_OV|| ||W||), Frobenius norms.

    W is the receiver's W_QK, entered by its query side ("q") or its key side ("k"), or its W_OV ("v"). What two
    random heads would have is about 1 / sqrt(D): see `composition_baseline`.

    Args:
        model: with plain weights.
        sender: (layer, head).
        receiver: (layer, head) of a later layer.
        through: what of the receiver the sender's output becomes part of.

    Raises:
        IndexError: there is no such layer or head.
        ValueError: the receiver is not in a later layer, `through` is not known, or the weights are quantised.

    Source: Elhage et al. 2021, section "Composition of attention heads".

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> 0 <= composition_score(model, (0, 1), (2, 3), through="k") <= 1
    True
    """
    if sender[0] >= receiver[0]:
        raise ValueError(f"the receiver (layer {receiver[0]}) must come after the sender (layer {sender[0]})")
    if through not in ("q", "k", "v"):
        raise ValueError(f'through must be "q", "k" or "v", got {through!r}')
    first, then = _folded(model, *sender), _folded(model, *receiver)
    return _composition((first.v, first.out), {
        "q": (then.q, then.k.T), "k": (then.k, then.q.T), "v": (then.v, then.out),
    }[through])  # fmt: skip


def composition_baseline(model: GPT2, samples: int = 20, seed: int = 0) -> float:
    """The mean composition score of heads with random normal weights of this model's shape."""
    generator = torch.Generator().manual_seed(seed)
    width, size = model.config.n_embd, model.config.head_dim

    def random() -> Tensor:
        return _centred(torch.randn(width, size, dtype=torch.float64, generator=generator))

    scores = [_composition((random(), random().T), (random(), random().T)) for _ in range(samples)]
    return sum(scores) / samples


def _composition(first: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor]) -> float:
    """||A B|| / (||A|| ||B||) of two products A = a1 a2 and B = b1 b2 of low rank.

    Only the factors' triangles of a QR decomposition matter to a norm, and they are small.
    """
    left, right = torch.linalg.qr(first[0])[1], torch.linalg.qr(then[1].T)[1].T  # (K, K) each
    both = (left @ first[1] @ then[0] @ right).norm()
    sizes = (left @ first[1]).norm() * (then[0] @ right).norm()
    return float(both / sizes) if sizes > 0 else 0.0


def _folded(model: GPT2, layer: int, head: int) -> HeadWeights:
    """A head's weights in float64, with the norm before it in those that read, and without the mean of what it writes."""
    as_indices("layer", [layer], model.config.n_layer)
    as_indices("head", [head], model.config.n_head)
    q, k, v, out = (exact(weight) for weight in head_weights(model, layer, head))
    scale = exact(block_of(model, layer).attn_norm.weight)[:, None]
    return HeadWeights(_centred(scale * q), _centred(scale * k), _centred(scale * v), _centred(out.T).T)


def _centred(matrix: Tensor) -> Tensor:
    """Each column less its mean: what reads or writes a stream without a mean, (D, K), or logits, (V, D)."""
    return matrix - matrix.mean(0)
