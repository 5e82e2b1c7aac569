"""Holding a text at one level of surprise: Mirostat."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from minigpt.sampler.processors.processor import RULED_OUT, require

REMEMBERED = 64  # texts for each row: a beam or a draft goes back a few tokens, never so many


@dataclass(frozen=True)
class Mirostat:
    """Cuts off what is too surprising, and moves the limit until the text is as surprising as asked.

    Tokens of more than mu bits of surprise are dropped. Each token chosen moves mu by eta times its distance
    from tau bits, its surprise being that among the tokens left: after dull ones mu grows, after wild ones it
    shrinks. A text begins with mu = 2 tau.

    What is remembered belongs to the text, not to the order of calls: under its tokens lie its mu and what
    was offered there, from which the mu of the text one token longer follows. So beams may fork and drafts
    be taken back.

    Source: Basu et al. 2021, algorithm 2 (Mirostat 2.0).
    """

    tau: float
    eta: float = 0.1
    keep: int = 1
    _offers: dict[tuple[int, ...], tuple[float, dict[int, float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # text: (mu, {token: its surprise in bits})

    def __post_init__(self) -> None:
        require(0 < self.tau < math.inf, "mirostat_tau", self.tau, "above 0")
        require(0 < self.eta < math.inf, "mirostat_eta", self.eta, "above 0")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        texts = [tuple(text) for text in tokens.tolist()]
        limits = [self._limit(text) for text in texts]
        dropped = _surprise(logits) > logits.new_tensor(limits)[:, None]
        kept = logits.topk(min(self.keep, logits.size(-1))).indices
        out = logits.masked_fill(dropped.scatter(-1, kept, False), RULED_OUT)
        for text, limit, row in zip(texts, limits, out, strict=True):
            self._remember(text, limit, row)
        while len(self._offers) > REMEMBERED * len(texts):
            del self._offers[next(iter(self._offers))]  # the oldest
        return out

    def _limit(self, text: tuple[int, ...]) -> float:
        """The mu of this text, from that of the text one token shorter."""
        mu, offered = self._offers.get(text[:-1], (2 * self.tau, {}))
        # What was not on offer is a draft that will be taken back, or the beginning: no news.
        surprise = offered.get(text[-1], self.tau)
        return mu - self.eta * (surprise - self.tau)

    def _remember(self, text: tuple[int, ...], mu: float, logits: Tensor) -> None:
        offered = (logits > RULED_OUT).nonzero()[:, 0]
        surprise = _surprise(logits[offered])
        self._offers.pop(text, None)  # it is the youngest again
        self._offers[text] = mu, dict(zip(offered.tolist(), surprise.tolist(), strict=True))


def _surprise(logits: Tensor) -> Tensor:
    """In bits: -log2 of the probability."""
    return -logits.log_softmax(-1) / math.log(2)
