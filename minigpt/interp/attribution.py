"""Direct logit attribution: which part of the model wrote how much of a logit into the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from minigpt.interp.dense import bias, block_of, exact, head_weights, unembedding
from minigpt.interp.lens import last_point, position_in
from minigpt.interp.points import expand
from minigpt.interp.recording import Recording
from minigpt.interp.token_id import token_id
from minigpt.model import GPT2

# Shapes below:  C components · K head dimension · D n_embd


@dataclass(frozen=True)
class Attribution:
    """A number and the parts that sum to it.

    `values` (C,) float64 belong to `names`; `total` is what they explain, as the model computed it.
    """

    names: list[str]
    values: Tensor
    total: float

    @property
    def remainder(self) -> float:
        """What the parts leave unexplained: the rounding of the model's own arithmetic, and nothing else."""
        return self.total - float(self.values.sum())

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
    parts sum to the logit exactly. It is the *direct* effect: what later layers make of a component, and
    what they would do without it, is not in it (see `ablate`).

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
        ValueError: a token is no id, the weights are quantised, or the recording holds some heads only.

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
    alone, unembed = seen.row(row), exact(unembedding(model))
    at = position_in(alone, position)
    direction = unembed[token_id("target", target, len(unembed))]
    if minus is not None:
        direction = direction - unembed[token_id("minus", minus, len(unembed))]
    names, parts = components(model, alone, at)
    norm = model.final_norm
    stream = exact(alone[last_point(model)][0, at])
    weight, offset = exact(norm.weight), exact(norm.bias)
    sigma = (stream.var(unbiased=False) + norm.eps).sqrt()
    centred = parts - parts.mean(-1, keepdim=True)
    values = (centred * weight / sigma) @ direction
    rest = offset @ direction
    normed = (stream - stream.mean()) * weight / sigma + offset
    return Attribution(
        [*names, "final_norm.bias"], torch.cat([values, rest[None]]), float(normed @ direction)
    )


def components(model: GPT2, alone: Recording, at: int) -> tuple[list[str], Tensor]:
    """All that was added to the stream at one place of one text: names, and float64 (C, D)."""
    token = int(alone.tokens[0, at])
    parts = {
        "token_embedding": model.token_embedding.weight[token],
        "position_embedding": model.position_embedding.weight[alone.start + at],
    }
    for layer in range(model.config.n_layer):
        block = block_of(model, layer)
        name = f"blocks.{layer}."
        for head, z in enumerate(alone[name + "attn.z"][0, :, at]):
            parts[f"{name}attn.head.{head}"] = exact(z) @ exact(head_weights(model, layer, head).out)
        parts[name + "attn.bias"] = bias(block.attn.out)
        mlp_bias = bias(block.mlp.down)
        parts[name + "mlp"] = exact(alone[name + "mlp.out"][0, at]) - exact(mlp_bias)
        parts[name + "mlp.bias"] = mlp_bias
    return list(parts), torch.stack([exact(part) for part in parts.values()])
