"""The one place that fixes which processors there are and in which order they act; it is part of their meaning."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from minigpt.sampler.events import Request
from minigpt.sampler.processors.custom import Custom, CustomOptions
from minigpt.sampler.processors.cutoffs import (
    CutoffOptions,
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from minigpt.sampler.processors.dry import DRY, DRYOptions
from minigpt.sampler.processors.grammar_mask import GrammarMask, GrammarOptions
from minigpt.sampler.processors.healing import Healing
from minigpt.sampler.processors.mirostat import Mirostat, MirostatOptions
from minigpt.sampler.processors.penalties import (
    BadWords,
    ExponentialLengthDecay,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    NoRepeatNGram,
    PenaltyOptions,
    PresencePenalty,
    RepetitionPenalty,
)
from minigpt.sampler.processors.processor import Checked, Processor, Stage, TextContext
from minigpt.sampler.processors.watermark import Watermark, WatermarkOptions
from minigpt.sampler.processors.xtc import XTC, XTCOptions

ORDER: tuple[type[Stage], ...] = (
    LogitBias,
    RepetitionPenalty,
    PresencePenalty,
    FrequencyPenalty,
    DRY,
    NoRepeatNGram,
    BadWords,
    MinNewTokens,
    ExponentialLengthDecay,
    GrammarMask,  # after the decay, which would lift an end token that is ruled out to NaN
    Healing,
    Custom,
    Temperature,
    TopNSigma,
    TopK,
    TopP,
    MinP,
    Typical,
    EpsilonCutoff,
    EtaCutoff,
    XTC,
    Mirostat,
    Watermark,
)


@dataclass(frozen=True, kw_only=True)
class CommonOptions(CustomOptions, WatermarkOptions, GrammarOptions, DRYOptions, PenaltyOptions):
    """The options of the processors that every strategy has; the last base comes first in `--help`."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(MirostatOptions, XTCOptions, CutoffOptions):
    """The options of the processors that strategies have beside these if they sample."""


class HasProcessors(Protocol):
    """What `chain` asks of a strategy, beside the options of the stages that it has."""

    def own_processors(self, context: TextContext) -> Iterable[tuple[type[Stage], Processor]]: ...


def chain(strategy: HasProcessors, request: Request, index: int = 0, keep: int = 1) -> list[Processor]:
    """The processors that a strategy's options ask for, in the one order in which they act.

    One text, or the beams of one prompt, need one chain from beginning to end: Mirostat remembers.

    Args:
        strategy: takes part in the stages whose options it has: one that never samples has no temperature.
        request: the prompt, and what ends its texts.
        index: which of its prompt's texts this is.
        keep: how many tokens the cut-offs leave at least.

    Raises:
        TypeError: the strategy puts a processor of its own before something that is no stage.
    """
    context = TextContext(request, index, keep)
    own = list(strategy.own_processors(context))
    if misplaced := [place for place, _ in own if place not in ORDER]:
        raise TypeError(
            f"{type(strategy).__name__}.own_processors: {misplaced[0]} is no stage of the order; name one of ORDER"
        )
    processors: list[Processor] = []
    for stage in ORDER:
        processors += [Checked(processor) for place, processor in own if place is stage]
        if isinstance(strategy, stage.options):
            processors += stage.for_text(strategy, context)
    return processors
