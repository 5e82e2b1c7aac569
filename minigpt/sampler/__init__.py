"""Turning next-token predictions into text.

    from minigpt.sampler import Beam, Greedy, Sample, generate, stream

Each strategy is one file in `strategies/`; adding a file adds a strategy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt.lazy import imported_when_used

if TYPE_CHECKING:
    from minigpt.sampler.api import generate, stream
    from minigpt.sampler.events import Completion, PromptTooLong
    from minigpt.sampler.grammar import Grammar
    from minigpt.sampler.many import complete_many
    from minigpt.sampler.strategies.beam import Beam
    from minigpt.sampler.strategies.beam_sample import BeamSample
    from minigpt.sampler.strategies.constrained import Constrained
    from minigpt.sampler.strategies.contrastive import Contrastive
    from minigpt.sampler.strategies.contrastive_decoding import ContrastiveDecoding
    from minigpt.sampler.strategies.diverse_beam import DiverseBeam
    from minigpt.sampler.strategies.dola import DoLa
    from minigpt.sampler.strategies.greedy import Greedy
    from minigpt.sampler.strategies.prompt_lookup import PromptLookup
    from minigpt.sampler.strategies.sample import Sample
    from minigpt.sampler.strategies.speculative import Speculative
    from minigpt.sampler.strategy import Strategy
    from minigpt.sampler.text import complete

_HOMES = {
    "Beam": "strategies.beam", "BeamSample": "strategies.beam_sample", "Completion": "events",
    "Constrained": "strategies.constrained", "Contrastive": "strategies.contrastive",
    "ContrastiveDecoding": "strategies.contrastive_decoding", "DiverseBeam": "strategies.diverse_beam",
    "DoLa": "strategies.dola", "Grammar": "grammar", "Greedy": "strategies.greedy", "PromptLookup": "strategies.prompt_lookup",
    "PromptTooLong": "events", "Sample": "strategies.sample",
    "Speculative": "strategies.speculative", "Strategy": "strategy", "complete": "text", "complete_many": "many", "generate": "api",
    "stream": "api",
}  # fmt: skip
__all__ = [
    "Beam", "BeamSample", "Completion", "Constrained", "Contrastive", "ContrastiveDecoding", "DiverseBeam", "DoLa",
    "Grammar", "Greedy", "PromptLookup", "PromptTooLong", "Sample", "Speculative", "Strategy", "complete", "complete_many",
    "generate", "stream",
]  # fmt: skip
__getattr__ = imported_when_used(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
