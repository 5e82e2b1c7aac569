"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Greedy(Strategy):
    """Always the likeliest next token: fast and the same every time, but soon repeats itself."""

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.engine.decode_loop import decode_loop

        return decode_loop(model, requests, self)
