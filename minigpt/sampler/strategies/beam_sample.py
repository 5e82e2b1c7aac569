"""Beam sampling: beam search that samples its candidates."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.sampler.choosing import Sampling
from minigpt.sampler.engine.beam_search import Choose
from minigpt.sampler.engine.random_stream import RandomStream, sample_distinct
from minigpt.sampler.events import Request
from minigpt.sampler.strategies.beam import Beam, same_options
from minigpt.sampler.strategies.sample import Sample
from minigpt.sampler.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class BeamSample(Beam, Sampling):
    """Beam search that samples its candidates: between beam search and sampling."""

    def chooser(self, request: Request) -> Choose:
        if not self.samples:
            return super().chooser(request)
        stream = RandomStream(self.seed_of(request.seed), request.random_name, purpose="beams")
        return lambda totals, n, position: sample_distinct(totals, n, stream.key(position))

    def alone(self) -> Strategy:
        return same_options(self, Sample)
