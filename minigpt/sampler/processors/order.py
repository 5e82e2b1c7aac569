"""The one place that fixes the order in which processors act; it is part of their meaning."""

from __future__ import annotations

from collections.abc import Iterator

from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.events import Request
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
from minigpt.sampler.processors.mirostat import Mirostat
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
from minigpt.sampler.processors.processor import Processor, Watched, unchanged
from minigpt.sampler.processors.watermark import Watermark
from minigpt.sampler.processors.xtc import XTC
from minigpt.sampler.regex.mask import RegexMask
from minigpt.sampler.strategies.sample import Sampling
from minigpt.sampler.strategy import Strategy


def chain(options: Strategy, request: Request, index: int = 0, keep: int = 1) -> list[Processor]:
    """The processors that a strategy's options ask for, in the one order in which they act.

    One text, or the beams of one prompt, need one chain from beginning to end: Mirostat remembers.

    Args:
        options: a strategy; one that draws no lots has no temperature and no cut-offs.
        request: the prompt, and what ends its texts.
        index: which of its prompt's texts this is.
        keep: how many tokens the cut-offs leave at least.
    """
    steps = [*_penalties(options, len(request.prompt), request.end_tokens), *options.processors]
    if isinstance(options, Sampling):
        steps += _cut_offs(options, request, index, keep)
    if options.watermark:
        steps.append(Watermark(options.watermark_bias, options.watermark_ratio, options.watermark_key))
    return steps if options.watch is None else [Watched(step, options.watch) for step in (unchanged, *steps)]


def _penalties(options: Strategy, prompt_length: int, end_tokens: frozenset[int]) -> Iterator[Processor]:
    if options.logit_bias:
        yield LogitBias(options.logit_bias)
    if options.repetition_penalty != 1:
        yield RepetitionPenalty(options.repetition_penalty)
    if options.presence_penalty:
        yield PresencePenalty(options.presence_penalty, prompt_length)
    if options.frequency_penalty:
        yield FrequencyPenalty(options.frequency_penalty, prompt_length)
    if options.dry_multiplier:
        breakers = frozenset(options.dry_sequence_breakers)
        yield DRY(options.dry_multiplier, options.dry_base, options.dry_allowed_length, breakers)
    if options.no_repeat_ngram_size:
        yield NoRepeatNGram(options.no_repeat_ngram_size)
    if bad := [word for word in options.bad_words if not (len(word) == 1 and word[0] in end_tokens)]:
        yield BadWords(bad)
    if options.min_new_tokens and end_tokens:
        yield MinNewTokens(options.min_new_tokens, prompt_length, end_tokens)
    if options.exponential_decay_length_penalty and end_tokens:
        yield ExponentialLengthDecay(*options.exponential_decay_length_penalty, prompt_length, end_tokens)
    if options.regex:  # after the decay, which would lift an end token that is ruled out to NaN
        yield RegexMask(options.regex, prompt_length, end_tokens)


def _cut_offs(options: Sampling, request: Request, index: int, keep: int) -> Iterator[Processor]:
    if options.temperature not in (None, 1):
        yield Temperature(options.temperature)
    if options.top_n_sigma:
        yield TopNSigma(options.top_n_sigma, keep)
    if options.top_k:
        yield TopK(options.top_k, keep)
    if options.top_p != 1:
        yield TopP(options.top_p, keep)
    if options.min_p is not None:
        yield MinP(options.min_p, keep)
    if options.typical_p != 1:
        yield Typical(options.typical_p, keep)
    if options.epsilon_cutoff:
        yield EpsilonCutoff(options.epsilon_cutoff, keep)
    if options.eta_cutoff:
        yield EtaCutoff(options.eta_cutoff, keep)
    if options.xtc_probability:
        assert options.seed is not None
        coins = RandomStream(options.seed, request.random_name, index, purpose="xtc")
        yield XTC(options.xtc_probability, options.xtc_threshold, coins, len(request.prompt), keep)
    if options.mirostat_tau is not None:
        yield Mirostat(options.mirostat_tau, options.mirostat_eta, keep)
