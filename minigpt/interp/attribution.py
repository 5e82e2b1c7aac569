"""Direct logit attribution: which part of the model wrote how much of a logit into the residual stream."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from minigpt.interp.dense import bias, exact, head_weights, unembedding
from minigpt.interp.lens import last_point, position_in, recorded_logits
from minigpt.interp.points import expand
from minigpt.interp.recording import Recording
from minigpt.interp.token_id import token_id
from minigpt.model import GPT2

# Shapes below:  C components · K head dimension · D n_embd


@dataclass(frozen=True)
class Attribution:
    """A number and the parts that sum to it.

    `values` (C,) float64 belong to `names`; `total` is what they explain, computed from the last layer's stream.
    """

    names: list[str]
    values: Tensor
    total: float

    @property
    def remainder(self) -> float:
        """What the parts leave unexplained: the rounding of the model's own arithmetic."""
        return self.total - float(self.values.sum())

    @property
    def heads(self) -> Tensor:
        """The values of all heads: (n_layer, n_head)."""
        heads = [i for i, name in enumerate(self.names) if ".attn.head." in name]
        n_layer = sum(name.endswith(".attn.bias") for name in self.names)
        return self.values[heads].view(n_layer, -1)

    def largest(self, n: int = 10) -> list[tuple[str, float]]:
        """The parts that matter most, whatever their sign."""
        order = self.values.abs().argsort(descending=True)[:n].tolist()
        return [(self.names[i], float(self.values[i])) for i in order]

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {value:+.3f}" for name, value in self.largest(3))
        return f"Attribution({self.total:+.3f} in {len(self.names)} parts: {parts}, ...)"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{value:+.3f}</td></tr>" for name, value in self.largest()
        )
        return f"<table><tr><th>part of {self.total:+.3f}</th><th>largest</th></tr>{rows}</table>"


def direct_attribution(
    model: GPT2,
    seen: Recording,
    target: int,
    minus: int | None = None,
    *,
    row: int = 0,
    position: int | None = None,
) -> Attribution:
    """What every head, MLP, embedding and bias adds to a logit, or to the difference of two.

    logit_t = sum over components c of ((c - mean c) * weight / sigma) . W_U[t]  +  bias . W_U[t]

    with weight, bias and sigma of the final norm, sigma being that of the whole stream ("frozen"): so the
    parts sum to the logit but for the model's rounding. It is the *direct* effect: what later layers make of a
    component, and what they would do without it, is not in it (see `ablate`).

    What an edit changed in `attn.z` or `mlp.out` counts as that head or MLP. What one added to the stream itself
    (at `embed`, `attn.out` or a `resid` point) is the part "edits", which is there only where it exceeds rounding.

    Args:
        model: that was recorded, with plain weights.
        seen: a recording with every `attn.z` and `mlp.out`, and the last `resid_post`.
        target: the token whose logit is explained.
        minus: the token whose logit is subtracted from it.
        row: which text of the batch.
        position: of which prediction, counted from the row's first token; the last unless given.

    Raises:
        KeyError: a point was not recorded.
        IndexError: there is no such row, position or token.
        ValueError: a token is no id, the weights are quantised, the recording holds some heads only, or its logits
            are not what this model makes of its stream: it was recorded under an edit of `final_norm` or
            `logits`, or from another model.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".

    >>> import minigpt
    >>> from minigpt.interp import record_text
    >>> model, tokenizer = minigpt.load()
    >>> seen = record_text(model, tokenizer.encode("Once upon a"))
    >>> (time,) = tokenizer.encode(" time")
    >>> parts = direct_attribution(model, seen, time)
    >>> abs(parts.remainder) < 1e-3, len(parts.names)
    (True, 67)
    """
    seen.require_whole(*expand(model.config, ["blocks.*.attn.z", "blocks.*.mlp.out"]), last_point(model))
    alone, weights = seen.row(row), unembedding(model)
    at = position_in(alone, position)
    chosen = [token_id("target", target, len(weights))]
    if minus is not None:
        chosen.append(token_id("minus", minus, len(weights)))
    unembed = exact(weights[chosen])  # these rows alone: a whole vocabulary in float64 takes long
    direction = unembed[0] - unembed[1:].sum(0)
    norm, stream = model.final_norm, exact(alone[last_point(model)][0, at])
    weight, offset = exact(norm.weight), exact(norm.bias)
    sigma = (stream.var(unbiased=False) + norm.eps).sqrt()
    normed = _centred(stream) * weight / sigma + offset
    total = float(normed @ direction)
    names, parts = components(model, alone, at)
    to_logit = weight / sigma * direction
    values = [*(_centred(parts) @ to_logit).tolist(), float(offset @ direction)]
    names.append("final_norm.bias")
    precision = _precision(alone)
    size = _size(stream) * weight.abs() / sigma + offset.abs()
    _require_near(total, _recorded(alone, at, chosen), precision * float(size @ unembed.abs().sum(0)))
    edits = float(_centred(stream - parts.sum(0)) @ to_logit)
    if abs(edits) > precision * float(_size(parts).sum(0) @ to_logit.abs()):
        names.append("edits")
        values.append(edits)
    return Attribution(names, torch.tensor(values, dtype=torch.float64), total)


def components(model: GPT2, alone: Recording, at: int) -> tuple[list[str], Tensor]:
    """All that was added to the stream at one place of one text: names, and float64 (C, D)."""
    token = int(alone.tokens[0, at])
    parts = {
        "token_embedding": model.token_embedding.weight[token],
        "position_embedding": model.position_embedding.weight[alone.start + at],
    }
    for layer in range(model.config.n_layer):
        name = f"blocks.{layer}."
        for head, z in enumerate(alone[name + "attn.z"][0, :, at]):
            parts[f"{name}attn.head.{head}"] = exact(z) @ exact(head_weights(model, layer, head).out)
        parts[name + "attn.bias"] = bias(model, name + "attn.out")
        mlp_bias = bias(model, name + "mlp.down")
        parts[name + "mlp"] = exact(alone[name + "mlp.out"][0, at]) - exact(mlp_bias)
        parts[name + "mlp.bias"] = mlp_bias
    return list(parts), torch.stack([exact(part) for part in parts.values()])


def _centred(parts: Tensor) -> Tensor:
    """Less their mean, as the norm takes it: (..., D)."""
    return parts - parts.mean(-1, keepdim=True)


def _size(parts: Tensor) -> Tensor:
    """Of what `_centred` adds up, and rounding is a share of: (..., D)."""
    return parts.abs() + parts.abs().mean(-1, keepdim=True)


def _precision(seen: Recording) -> float:
    """How far a sum that was recorded may be from the exact one, as a share of the sizes of what was added.

    Each number is rounded to its dtype; sums are in float32, and products, too, unless torch was told otherwise.
    """
    eps = [torch.finfo(chunk.dtype).eps for name in seen.names for chunk in seen.steps(name)]
    products = {"highest": 0.0, "high": 2**-10, "medium": 2**-7}[torch.get_float32_matmul_precision()]
    return 1e-5 + 2 * max(products, *eps)


def _require_near(total: float, recorded: float, allowed: float) -> None:
    """Raises ValueError where the recorded logit is another than the stream's; NaN, of one that was not recorded, passes."""
    if abs(recorded - total) > allowed:
        raise ValueError(
            f"the recorded logit is {recorded:.4g}, and this model makes {total:.4g} of the recorded stream: it was "
            "recorded under an edit of final_norm or logits, or from another model; give the model that was "
            "recorded, and a recording without that edit"
        )


def _recorded(alone: Recording, at: int, chosen: list[int]) -> float:
    """The logit as it was recorded, or the difference of two; NaN where it was not."""
    logits, last = recorded_logits(alone), alone.tokens.size(1) - 1
    if logits is None or at < last + 1 - logits.size(1):
        return math.nan
    here = exact(logits[0, at - last - 1, chosen])
    return float(here[0] - here[1:].sum())
