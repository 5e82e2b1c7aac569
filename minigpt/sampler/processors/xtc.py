"""Leaving out what everybody would say: XTC."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.processors.processor import RULED_OUT, require


@dataclass(frozen=True)
class XTC:
    """Now and then, drops the likeliest tokens and leaves the least likely of those that would do.

    At each token a coin falls; with `probability` all tokens of at least `threshold` go except the last of
    them. The coin of a text's n-th new token is the n-th number of its stream, so it falls the same way in
    any batch, and again when a text is taken back and written anew. An end token can go, too.

    Source: p-e-w, "Exclude Top Choices", text-generation-webui pull request 6335.

    >>> XTC(1.0, threshold=0.1)(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.0000, 0.0000, 0.2000]])
    """

    probability: float
    threshold: float = 0.1
    coins: RandomStream = field(default_factory=lambda: RandomStream(0, "", purpose="xtc"))
    prompt_length: int = 0
    keep: int = 1

    def __post_init__(self) -> None:
        require(
            0 < self.probability <= 1, "xtc_probability", self.probability, "above 0 and at most 1 (0 is off)"
        )
        require(0 < self.threshold <= 1, "xtc_threshold", self.threshold, "above 0 and at most 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if self.coins.uniform(tokens.size(1) - self.prompt_length) >= self.probability:
            return logits
        ranked, order = logits.sort(descending=True, stable=True)
        likely = ranked.softmax(-1) >= self.threshold  # (B, V), the likely ones first
        dropped = torch.zeros_like(likely)
        dropped[:, :-1] = likely[:, 1:]
        spare = (ranked > RULED_OUT).sum(-1, keepdim=True) - self.keep
        dropped &= torch.arange(logits.size(-1), device=logits.device) < spare
        return logits.masked_fill(dropped.scatter(1, order, dropped), RULED_OUT)
