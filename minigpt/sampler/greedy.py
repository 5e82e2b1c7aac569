"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.sampler.strategy import Event, LanguageModel, Request, Strategy


@dataclass(frozen=True, kw_only=True)
class Greedy(Strategy):
    """Always the likeliest next token: fast and the same every time, but soon repeats itself."""

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.steps import one_by_one

        return one_by_one(model, requests, self, lambda logits, texts: logits.max(-1).indices)
