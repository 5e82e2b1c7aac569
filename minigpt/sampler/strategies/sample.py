"""Sampling: each next token is sampled from the model's distribution, reshaped as asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.sampler.choosing import Sampling
from minigpt.sampler.engine.decode_loop import decode_loop
from minigpt.sampler.engine.reader import ModelReader
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.strategy import num_return_sequences_option


@dataclass(frozen=True, kw_only=True)
class Sample(Sampling):
    """Samples each next token: diverse, but sometimes picks low-probability tokens.

    Text j of a prompt has a random stream of its own, seeded by (seed, the prompt's ids, j): its place in the
    batch and what else is in it change nothing. Two equal prompts give equal texts; for different ones ask for
    several sequences.
    """

    num_return_sequences: int = num_return_sequences_option()

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        return decode_loop(model, requests, self, copies=self.num_return_sequences)

    def row_reader(self, model: LanguageModel) -> ModelReader:
        return ModelReader(model)
