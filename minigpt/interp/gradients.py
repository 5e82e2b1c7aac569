"""Which tokens of the text a prediction depends on, by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor

from minigpt.interp.edit import edit
from minigpt.interp.record import differentiable, one_text, record
from minigpt.interp.token_id import token_id
from minigpt.json_files import counted
from minigpt.model import GPT2

# Shapes below:  N steps · T tokens · D n_embd

AT_ONCE = 10  # steps of the path that are read side by side


@dataclass(frozen=True)
class TokenAttribution:
    """One number for each token of a text, of a logit `value` that is `baseline` when no token is known."""

    tokens: list[int]
    values: Tensor  # (T,)
    value: float
    baseline: float | None = None

    @property
    def gap(self) -> float | None:
        """|sum - (value - baseline)|: what an exact integral would leave at 0; None where there is no baseline."""
        if self.baseline is None:
            return None
        return abs(float(self.values.sum()) - (self.value - self.baseline))

    def __repr__(self) -> str:
        gap = "" if self.gap is None else f", gap {self.gap:.2g}"
        return f"TokenAttribution({counted(len(self.tokens), 'tokens')}, value {self.value:+.3f}{gap})"

    def _repr_html_(self) -> str:
        """For notebooks: the ten tokens that matter most, whatever their sign."""
        order = self.values.abs().argsort(descending=True)[:10].tolist()
        rows = "".join(
            f"<tr><td>{i}</td><td>{self.tokens[i]}</td><td>{float(self.values[i]):+.3f}</td></tr>"
            for i in order
        )
        head = "<tr><th>position</th><th>token</th><th>contribution</th></tr>"
        return f"<table><caption>{escape(repr(self))}</caption>{head}{rows}</table>"


@differentiable()
def input_x_gradient(
    model: GPT2, tokens: Sequence[int], target: int, minus: int | None = None, *, position: int | None = None
) -> TokenAttribution:
    """How much a logit would change with each token's embedding, to first order: sum_d e_d * df/de_d.

    Args:
        model: whose logit it is.
        tokens: the text.
        target: the token whose logit f is explained.
        minus: the token whose logit is subtracted from it.
        position: of which prediction; the last unless given.

    Raises:
        IndexError: there is no such position or token.
        ValueError: the text is empty or too long, or a token is no id.

    Source: Shrikumar et al. 2016, "Not Just a Black Box".

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> input_x_gradient(model, tokenizer.encode("Once upon a"), target=300).values.shape
    torch.Size([3])
    """
    text = one_text(tokens, model)
    ids = torch.tensor([text], device=model.device)
    logit = _Logit(target, minus, position, ids.size(1), model.config.vocab_size)
    with record(model, "embed", grad=True) as seen:
        f = logit(model(ids)).sum()
        (gradient,) = torch.autograd.grad(f, seen["embed"])
    values = (embeddings(model, ids) * gradient).sum(-1)[0]
    return TokenAttribution(text, values.detach(), float(f.detach()))


@differentiable()
def integrated_gradients(
    model: GPT2,
    tokens: Sequence[int],
    target: int,
    minus: int | None = None,
    *,
    position: int | None = None,
    steps: int = 50,
) -> TokenAttribution:
    """Each token's share of the way from a text without tokens to this one: e . mean of df/de along the way.

    The baseline has token embeddings of zero, with positions kept; the integral is by Gauss-Legendre
    quadrature. The shares sum to value - baseline but for `gap`, which more steps make smaller.

    Args:
        model: whose logit it is.
        tokens: the text.
        target: and `minus`, `position` as for `input_x_gradient`.
        steps: points of the path at which the gradient is taken.

    Raises:
        IndexError: there is no such position or token.
        ValueError: the text is empty or too long, a token is no id, or `steps` is below 1.

    Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks".

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> shares = integrated_gradients(model, tokenizer.encode("Once upon a"), target=300)
    >>> shares.gap < 0.01 * abs(shares.value - shares.baseline)
    True
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    text = one_text(tokens, model)
    ids = torch.tensor([text], device=model.device)
    logit = _Logit(target, minus, position, ids.size(1), model.config.vocab_size)
    embedded = embeddings(model, ids)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    alphas = torch.tensor((nodes + 1) / 2, dtype=embedded.dtype, device=embedded.device)
    shares = torch.tensor(weights / 2, dtype=embedded.dtype, device=embedded.device)
    total = torch.zeros_like(embedded[0])
    for some, share in zip(torch.split(alphas, AT_ONCE), torch.split(shares, AT_ONCE), strict=True):
        gradient = _gradients(model, ids, embedded, some, logit)  # (N, T, D)
        total += (share[:, None, None] * gradient).sum(0)
    with torch.no_grad():
        value = float(logit(model(ids)).sum())
        with edit(model, "embed", lambda x: x - embedded):
            baseline = float(logit(model(ids)).sum())
    return TokenAttribution(text, (total * embedded[0]).sum(-1), value, baseline)


def embeddings(model: GPT2, ids: Tensor) -> Tensor:
    """Of the tokens alone, without their positions: (B, T, D)."""
    embedded: Tensor = model.token_embedding.forward(ids).detach()
    return embedded


def _gradients(model: GPT2, ids: Tensor, embedded: Tensor, alphas: Tensor, logit: _Logit) -> Tensor:
    """df/de where token embeddings are scaled by each alpha: (N, T, D)."""
    missing = (1 - alphas)[:, None, None] * embedded
    with (
        edit(model, "embed", lambda x: x - missing),
        record(model, "embed", grad=True) as seen,
    ):
        f = logit(model(ids.expand(len(alphas), -1))).sum()
        (gradient,) = torch.autograd.grad(f, seen["embed"])
    return gradient


class _Logit:
    """The number that is explained: one logit at one position, or the difference of two."""

    def __init__(self, target: int, minus: int | None, position: int | None, n: int, vocab_size: int) -> None:
        if position is not None and not 0 <= position < n:
            raise IndexError(f"there is no position {position}: the text has 0 to {n - 1}")
        self.target = token_id("target", target, vocab_size)
        self.minus = None if minus is None else token_id("minus", minus, vocab_size)
        self.position = n - 1 if position is None else position

    def __call__(self, logits: Tensor) -> Tensor:
        """Shapes: (B, T, V)  ->  (B,)."""
        here = logits[:, self.position]
        return here[:, self.target] if self.minus is None else here[:, self.target] - here[:, self.minus]
