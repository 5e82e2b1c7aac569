"""Mirostat 2.0: a target surprise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from minigpt.lazy import Tensor
from minigpt.options import option, require_in_range
from minigpt.sampler.processors.processor import RULED_OUT, Processor, TextContext
from minigpt.sampler.seed import Seeded

REMEMBERED = 64  # texts for each row: a beam or a draft goes back a few tokens, never so many


@dataclass(frozen=True, kw_only=True)
class MirostatOptions(Seeded):
    """Mirostat 2.0, for strategies that sample."""

    # fmt: off
    mirostat_tau: float | None = option(None, "target surprise tau in bits per token, kept by an adaptive cutoff (Mirostat "
        "2.0); 3 to 5 is usual", group="sampling", kind=float, above=0, most=1000, metavar="BITS")
    mirostat_eta: float = option(0.1, "learning rate eta of the cutoff",
        group="sampling", above=0, most=1000, needs="mirostat_tau", metavar="RATE")
    # fmt: on


@dataclass(frozen=True)
class Mirostat:
    """Drops tokens above a surprise of mu bits, and adapts mu until the text's mean surprise is tau bits.

    Each token chosen moves mu by eta times its distance from tau bits: after predictable tokens mu grows, after
    surprising ones it shrinks. A text begins with mu = 2 tau. A token's surprise is that before the cutoff, so
    that it is the perplexity of the text which is held, at 2 ** tau; among the tokens that the cutoff leaves, as
    llama.cpp counts it, each surprises less, and the text would be more surprising than was asked for.

    The state belongs to the text, not to the order of calls: for each text, by its tokens, mu and the
    surprise of the tokens that are left are kept, from which the mu of the text one token longer follows. So
    beams may fork and drafts may be rejected.

    Source: Basu et al. 2021, algorithm 2 (Mirostat 2.0).
    """

    tau: float
    eta: float = 0.1
    keep: int = 1
    # By text: (mu, {token: its surprise in bits}).
    _offers: dict[tuple[int, ...], tuple[float, dict[int, float]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    options: ClassVar[type] = MirostatOptions

    def __post_init__(self) -> None:
        require_in_range(MirostatOptions, mirostat_tau=self.tau, mirostat_eta=self.eta)

    @classmethod
    def for_text(cls, options: MirostatOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.mirostat_tau is not None:
            yield cls(options.mirostat_tau, options.mirostat_eta, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        rows = [tuple(row) for row in tokens.tolist()]
        limits = [self._limit(row) for row in rows]
        surprise = -logits.log_softmax(-1) / math.log(2)  # in bits
        dropped = surprise > logits.new_tensor(limits)[:, None]
        kept = logits.topk(min(self.keep, logits.size(-1))).indices
        out = logits.masked_fill(dropped.scatter(-1, kept, False), RULED_OUT)
        for row, limit, bits, is_left in zip(rows, limits, surprise, out > RULED_OUT, strict=True):
            self._remember(row, limit, bits, is_left)
        while len(self._offers) > REMEMBERED * len(rows):
            del self._offers[next(iter(self._offers))]  # the oldest
        return out

    def _limit(self, tokens: tuple[int, ...]) -> float:
        """The mu of this text, from that of the text one token shorter."""
        mu, offered = self._offers.get(tokens[:-1], (2 * self.tau, {}))
        # A token that was cut off is a draft that will be rejected, or the prompt ends here: mu stays.
        surprise = offered.get(tokens[-1], self.tau)
        return mu - self.eta * (surprise - self.tau)

    def _remember(self, tokens: tuple[int, ...], mu: float, surprise: Tensor, is_left: Tensor) -> None:
        offered = is_left.nonzero()[:, 0]
        self._offers.pop(tokens, None)  # move to the end (LRU)
        self._offers[tokens] = mu, dict(zip(offered.tolist(), surprise[offered].tolist(), strict=True))
