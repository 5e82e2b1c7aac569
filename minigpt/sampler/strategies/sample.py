"""Sampling: each next token is drawn from the model's distribution, reshaped as asked."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.options import option
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.sampler.engine.random_stream import RandomStream


@dataclass(frozen=True, kw_only=True)
class Sampling(Strategy):
    """The options of every strategy that draws lots."""

    temperature: float = option(
        1.0, "below 1 plays safe, above 1 takes risks (0.7 to 1.2)", group="sampling", metavar="T"
    )
    top_k: int = option(
        0,
        "draw from the K likeliest tokens (40 is usual); 0 is off",
        group="sampling",
        parse=int,
        metavar="K",
    )
    top_p: float = option(
        1.0, "draw from the likeliest tokens that hold P of the probability (0.9 to 0.95)",
        group="sampling", metavar="P",
    )  # fmt: skip
    min_p: float | None = option(
        None,
        "drop tokens less than P times as likely as the best (0.05 to 0.1)",
        group="sampling",
        metavar="P",
    )
    typical_p: float = option(
        1.0, "draw from tokens of average surprise that hold P of the probability (0.2 to 0.95)",
        group="sampling", metavar="P",
    )  # fmt: skip
    epsilon_cutoff: float = option(
        0.0, "drop tokens less likely than E (3e-4 to 9e-4); 0 is off", group="sampling", metavar="E"
    )
    eta_cutoff: float = option(
        0.0, "the same, with less than E where the model is of many minds (3e-4 to 4e-3); 0 is off",
        group="sampling", metavar="E",
    )  # fmt: skip
    top_n_sigma: float = option(
        0.0, "draw from the tokens within N standard deviations of the best logit (1 is usual); 0 is off",
        group="sampling", metavar="N",
    )  # fmt: skip
    xtc_probability: float = option(
        0.0, "at a share P of the tokens, leave out the likeliest ones (0.5 is usual); 0 is off",
        group="sampling", metavar="P",
    )  # fmt: skip
    xtc_threshold: float = option(
        0.1, "with --xtc-probability: likely means at least P (0.1 unless given)",
        group="sampling", needs="xtc_probability", metavar="P",
    )  # fmt: skip
    mirostat_tau: float | None = option(
        None, "hold the text at BITS of surprise a token, by a cut-off that follows it (3 to 5)",
        group="sampling", metavar="BITS",
    )  # fmt: skip
    mirostat_eta: float = option(
        0.1, "with --mirostat-tau: how fast the cut-off follows (0.1 unless given)",
        group="sampling", needs="mirostat_tau", metavar="RATE",
    )  # fmt: skip
    seed: int | None = option(
        None, "the same seed gives the same text; without one a fresh one is drawn and printed",
        group="sampling", parse=int, metavar="N",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.seed is None and self.draws:
            object.__setattr__(self, "seed", secrets.randbits(32))  # known from now on, so it can be repeated
        elif self.seed is not None and self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        super().__post_init__()

    @property
    def draws(self) -> bool:
        """Whether lots are drawn at all."""
        return True

    def random_stream(self, request: Request, index: int) -> RandomStream | None:
        from minigpt.sampler.engine.random_stream import RandomStream

        return (
            RandomStream(self.seed, request.random_name, index)
            if self.seed is not None and self.draws
            else None
        )


SAMPLING = frozenset(option.name for option in fields(Sampling)) - {
    option.name for option in fields(Strategy)
}


@dataclass(frozen=True, kw_only=True)
class Sample(Sampling):
    """Draws each next token: varied and lively, at the price of an unlikely word now and then.

    Text j of a prompt is sampled by random numbers of its own, which (seed, prompt, j) fix: its place in the
    batch and what else is in it change nothing. Different prompts are independent; two equal prompts give
    equal texts: for different ones ask for several sequences.
    """

    implied_by = SAMPLING

    num_return_sequences: int = option(
        1, "how many texts for each prompt", group="beams", parse=int, metavar="N"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_return_sequences < 1:
            raise ValueError(f"num_return_sequences must be at least 1, got {self.num_return_sequences}")

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.engine.decode_loop import decode_loop

        return decode_loop(model, requests, self, copies=self.num_return_sequences)
