"""Greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.sampler.engine.decode_loop import decode_loop
from minigpt.sampler.engine.reader import ModelReader
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Greedy(Strategy):
    """Always takes the most likely next token: fast and deterministic, but repetitive."""

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        return decode_loop(model, requests, self)

    def row_reader(self, model: LanguageModel) -> ModelReader:
        return ModelReader(model)
