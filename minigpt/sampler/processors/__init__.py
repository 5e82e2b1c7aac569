"""Logits processors.

A processor is a callable (logits (B, V), tokens (B, S)) -> logits (B, V), where `tokens` is the text so
far, prompt included. It returns new logits and leaves its input alone; a token is ruled out by -inf.
Any such callable is a processor. Each file holds the processors of one family with their options, and how the
options make them (`for_text`); `order` fixes the order in which they act.

Each gives the scores that transformers 5.23 gives, bit for bit, if that has it; a row that is -inf
throughout stays so.
"""

from __future__ import annotations

from minigpt.sampler.processors.cutoffs import (
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from minigpt.sampler.processors.dry import DRY
from minigpt.sampler.processors.grammar_mask import GrammarMask
from minigpt.sampler.processors.healing import Healer, Healing
from minigpt.sampler.processors.mirostat import Mirostat
from minigpt.sampler.processors.order import ORDER, chain
from minigpt.sampler.processors.penalties import (
    BadWords,
    ExponentialLengthDecay,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
)
from minigpt.sampler.processors.processor import RULED_OUT, Processor, Stage, TextContext, name_of_stage
from minigpt.sampler.processors.watermark import Watermark
from minigpt.sampler.processors.xtc import XTC

__all__ = [
    "DRY",
    "ORDER",
    "RULED_OUT",
    "XTC",
    "BadWords",
    "EpsilonCutoff",
    "EtaCutoff",
    "ExponentialLengthDecay",
    "FrequencyPenalty",
    "GrammarMask",
    "Healer",
    "Healing",
    "LogitBias",
    "MinNewTokens",
    "MinP",
    "Mirostat",
    "NoRepeatNGram",
    "PresencePenalty",
    "Processor",
    "RepetitionPenalty",
    "Stage",
    "Temperature",
    "TextContext",
    "TopK",
    "TopNSigma",
    "TopP",
    "Typical",
    "Watermark",
    "chain",
    "name_of_stage",
]
