"""Against going round in circles: DRY."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.sampler.processors.processor import require

LONGEST = 50  # tokens; a longer match counts as one of these, or the penalty would leave the range of floats


@dataclass(frozen=True)
class DRY:
    """A token loses the more, the longer the run of tokens that it would repeat: "don't repeat yourself".

    Where the text ends in n tokens that it holds already, the token that followed them there loses
    multiplier * base ** (n - allowed_length), if n reaches the allowed length. No match goes across one of
    the `breakers`, nor does a breaker lose anything: what comes after a line's end or a colon begins anew.

    Source: p-e-w, "DRY", text-generation-webui pull request 5677.

    >>> DRY(1.0, base=2.0, allowed_length=1)(torch.zeros(1, 4), torch.tensor([[0, 1, 2, 3, 0, 1]]))
    tensor([[ 0.,  0., -2.,  0.]])
    """

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    breakers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        require(0 < self.multiplier < math.inf, "dry_multiplier", self.multiplier, "above 0 (0 is off)")
        require(1 <= self.base < math.inf, "dry_base", self.base, "at least 1")
        whole = isinstance(self.allowed_length, int) and self.allowed_length >= 1
        require(whole, "dry_allowed_length", self.allowed_length, "a whole number of at least 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        breaks = torch.isin(tokens, tokens.new_tensor(sorted(self.breakers)))
        lengths = match_lengths(tokens, breaks)
        beyond = (lengths - self.allowed_length).to(logits.dtype)
        penalty = self.multiplier * torch.pow(self.base, beyond)
        penalty = penalty.masked_fill((beyond < 0) | breaks[:, 1:], 0)
        return logits - torch.zeros_like(logits).scatter_reduce(1, tokens[:, 1:], penalty, "amax")


def match_lengths(tokens: Tensor, breaks: Tensor) -> Tensor:
    """For each place but the last, how many tokens that end there equal those at the text's end.

    Shapes: (B, S), (B, S) where matches break off  ->  (B, S - 1), at most LONGEST

    >>> tokens = torch.tensor([[0, 1, 2, 3, 0, 1]])
    >>> match_lengths(tokens, tokens == 9)
    tensor([[0, 2, 0, 0, 0]])
    """
    last = tokens.size(1) - 1
    lengths = torch.zeros_like(tokens[:, :last])
    matching = torch.ones_like(breaks[:, :last])
    for back in range(min(LONGEST, last)):
        matching[:, :back] = False  # the text begins here
        at_end = tokens[:, last - back, None]
        matching[:, back:] &= (tokens[:, : last - back] == at_end) & ~breaks[:, last - back, None]
        if not matching.any():
            break
        lengths += matching
    return lengths
