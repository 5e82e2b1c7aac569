"""Beam sampling: beams that draw lots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt.sampler.events import Request
from minigpt.sampler.strategies.beam import Beam, same_options
from minigpt.sampler.strategies.sample import SAMPLING, Sample, Sampling
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.sampler.engine.beam_search import Choose


@dataclass(frozen=True, kw_only=True)
class BeamSample(Beam, Sampling):
    """Beams that draw their continuations by lot: livelier than beam search, likelier than sampling."""

    implied_by = Beam.implied_by | SAMPLING

    def chooser(self, request: Request) -> Choose:
        from minigpt.sampler.engine.random_stream import RandomStream, sample_distinct

        assert self.seed is not None
        stream = RandomStream(self.seed, request.random_name, purpose="beams")
        return lambda totals, n, position: sample_distinct(totals, n, stream.key(position))

    def alone(self) -> Strategy:
        return same_options(self, Sample)
