"""Beam sampling: beams that draw lots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt.sampler.strategies.beam import Beam, same_options
from minigpt.sampler.strategies.sample import SAMPLING, Sample, Sampling
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.sampler.engine.beam_search import Choose


@dataclass(frozen=True, kw_only=True)
class BeamSample(Beam, Sampling):
    """Beams that draw their continuations by lot: livelier than beam search, likelier than sampling."""

    implied_by = Beam.implied_by | SAMPLING

    def chooser(self) -> Choose:
        from minigpt.sampler.engine.random_stream import RandomStream

        assert self.seed is not None
        # One stream a prompt, so that two equal prompts give equal texts wherever they stand.
        return RandomStream(self.seed, 0).draw_distinct

    def alone(self) -> Strategy:
        return same_options(self, Sample)
