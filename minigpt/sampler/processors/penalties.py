"""Processors that depend on the text so far: repetition penalties, banned and biased tokens, minimum length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from minigpt.errors import InvalidRequest
from minigpt.lazy import Tensor, torch
from minigpt.options import HUGE, option, require_in_range
from minigpt.sampler.option_values import (
    BIASES,
    START_AND_FACTOR,
    TOKEN_SEQUENCES,
    spellings,
)
from minigpt.sampler.processors.processor import RULED_OUT, Processor, TextContext


@dataclass(frozen=True, kw_only=True)
class PenaltyOptions:
    """Repetition penalties, banned and biased tokens, minimum length: for every strategy."""

    # fmt: off
    repetition_penalty: float = option(1.0, "logits of tokens already in the text are divided by this if positive, else "
        "multiplied; 1.1 to 1.3 is usual", group="control", least=1e-4, most=1e4, off=1.0, metavar="F")
    presence_penalty: float = option(0.0, "subtract P from the logits of generated tokens, prompt "
        "excluded; 0.1 to 1 is usual", group="control", least=-2, most=2, off=0.0, metavar="P")
    frequency_penalty: float = option(0.0, "subtract P from the logits of generated tokens for each occurrence, prompt "
        "excluded; 0.1 to 1 is usual", group="control", least=-2, most=2, off=0.0, metavar="P")
    no_repeat_ngram_size: int = option(0, "no repeated n-grams of N tokens; 3 is usual", group="control", least=1,
        below=HUGE, off=0)
    bad_words: Sequence[Sequence[int]] = option((), "banned text, with a space before it and without; repeatable",
        in_python="token ids never to be generated one after the other, a list for each text: [tokenizer.encode(\" king\")]",
        group="control", kind=TOKEN_SEQUENCES, collect=spellings, metavar="TEXT")
    logit_bias: Mapping[int, float] = option({}, "add BIAS to the logit of token ID (--json shows ids), -inf bans it; "
        "repeatable", in_python="biases to add to logits, by token id: {262: -5.0}; -inf bans a token",
        group="control", kind=BIASES, collect=lambda pairs, _: dict(pairs))
    min_new_tokens: int = option(0, "no end-of-text token before N new tokens", group="length", least=0, below=HUGE)
    exponential_decay_length_penalty: tuple[int, float] | None = option(None, "exponentially boost the end-of-text token, by "
        "FACTOR per token after START new tokens (20,1.1)",
        in_python="a pair (start, factor), as (20, 1.1): exponentially boost the end-of-text token, by `factor` per token "
        "after `start` new tokens", group="length", kind=START_AND_FACTOR)
    # fmt: on


@dataclass(frozen=True)
class LogitBias:
    """Adds a number to the logits of chosen tokens; -inf bans a token.

    >>> LogitBias({2: 5.0})(torch.zeros(1, 4), torch.tensor([[0]]))
    tensor([[0., 0., 5., 0.]])
    """

    biases: Mapping[int, float]

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, logit_bias=self.biases)

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        if options.logit_bias:
            yield cls(options.logit_bias)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        _require_known("logit_bias", self.biases, logits)
        bias = logits.new_zeros(logits.size(-1))
        bias[list(self.biases)] = logits.new_tensor(list(self.biases.values()))
        return logits + bias


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides the logits of tokens already in the text if they are positive, and multiplies them if not.

    Source: Keskar et al. 2019 (CTRL), section 4.1.

    >>> RepetitionPenalty(2.0)(torch.tensor([[4.0, -4.0, 4.0]]), torch.tensor([[0, 1]]))
    tensor([[ 2., -8.,  4.]])
    """

    penalty: float

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, repetition_penalty=self.penalty)

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        if options.repetition_penalty != 1:
            yield cls(options.repetition_penalty)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        seen = logits.gather(-1, tokens)
        seen = torch.where(seen < 0, seen * self.penalty, seen / self.penalty)
        return logits.scatter(-1, tokens, seen)


@dataclass(frozen=True)
class PresencePenalty:
    """Subtracts a constant from the logits of generated tokens; those of the prompt do not count.

    Source: OpenAI's API reference, presence_penalty; vLLM counts the same way.

    >>> PresencePenalty(0.5, prompt_length=1)(torch.zeros(1, 4), torch.tensor([[0, 2, 2, 3]]))
    tensor([[ 0.0000,  0.0000, -0.5000, -0.5000]])
    """

    penalty: float
    prompt_length: int

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, presence_penalty=self.penalty)

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        if options.presence_penalty:
            yield cls(options.presence_penalty, context.prompt_length)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits - self.penalty * (_counts(logits, tokens[:, self.prompt_length :]) > 0)


@dataclass(frozen=True)
class FrequencyPenalty:
    """Subtracts a constant for each occurrence from the logits of generated tokens; the prompt does not count.

    Source: OpenAI's API reference, frequency_penalty; vLLM counts the same way.

    >>> FrequencyPenalty(0.5, prompt_length=1)(torch.zeros(1, 4), torch.tensor([[0, 2, 2, 3]]))
    tensor([[ 0.0000,  0.0000, -1.0000, -0.5000]])
    """

    penalty: float
    prompt_length: int

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, frequency_penalty=self.penalty)

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        if options.frequency_penalty:
            yield cls(options.frequency_penalty, context.prompt_length)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits - self.penalty * _counts(logits, tokens[:, self.prompt_length :])


def _counts(logits: Tensor, tokens: Tensor) -> Tensor:
    """How often each token of the vocabulary occurs in its row: (B, V), (B, S)  ->  (B, V)."""
    return torch.zeros_like(logits).scatter_add(1, tokens, torch.ones_like(tokens, dtype=logits.dtype))


@dataclass(frozen=True)
class NoRepeatNGram:
    """Rules out every token that would repeat an n-gram of `size` tokens.

    >>> NoRepeatNGram(2)(torch.zeros(1, 4), torch.tensor([[1, 2, 3, 1]]))       # "1 2" occurred
    tensor([[0., 0., -inf, 0.]])
    """

    size: int

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, no_repeat_ngram_size=self.size)

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        if options.no_repeat_ngram_size:
            yield cls(options.no_repeat_ngram_size)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if tokens.size(1) < self.size:
            return logits
        runs = tokens.unfold(1, self.size, 1)  # (B, runs, size)
        start = tokens[:, tokens.size(1) - self.size + 1 :]  # (B, size - 1)
        repeated = (runs[..., :-1] == start[:, None]).all(-1)  # (B, runs)
        out = logits.clone()
        for row in range(len(out)):
            out[row, runs[row, repeated[row], -1]] = RULED_OUT
        return out


@dataclass(frozen=True)
class BadWords:
    """Rules out the last token of each sequence where the text ends in the tokens before it.

    Of sequences of one token, those that are end tokens are left out, as in transformers: to keep a text
    from ending, use `MinNewTokens`.
    """

    sequences: Sequence[Sequence[int]]

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, bad_words=self.sequences)

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        ends = [[token] for token in context.end_tokens]
        if banned := [word for word in options.bad_words if list(word) not in ends]:
            yield cls(banned)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        _require_known("bad_words", list(chain.from_iterable(self.sequences)), logits)
        out = logits.clone()
        for *start, last in self.sequences:
            if len(start) <= tokens.size(1):
                tail = tokens[:, tokens.size(1) - len(start) :]
                out[(tail == tail.new_tensor(start)).all(-1), last] = RULED_OUT
        return out


@dataclass(frozen=True)
class MinNewTokens:
    """Rules out the end tokens until `n` tokens follow the prompt."""

    n: int
    prompt_length: int
    end_tokens: frozenset[int]

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, min_new_tokens=self.n)

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        if options.min_new_tokens and context.end_tokens:
            yield cls(options.min_new_tokens, context.prompt_length, context.end_tokens)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if tokens.size(1) - self.prompt_length >= self.n:
            return logits
        out = logits.clone()
        # A config may name an end token that the vocabulary does not hold: it can never be written.
        out[:, [token for token in self.end_tokens if token < logits.size(-1)]] = RULED_OUT
        return out


@dataclass(frozen=True)
class ExponentialLengthDecay:
    """Boosts the end tokens exponentially, by `factor` for each new token after the first `start` ones.

    An end token of logit x gets x + |x| (factor ** n - 1), n tokens after the start.
    """

    start: int
    factor: float
    prompt_length: int
    end_tokens: frozenset[int]

    options: ClassVar[type] = PenaltyOptions

    def __post_init__(self) -> None:
        require_in_range(PenaltyOptions, exponential_decay_length_penalty=(self.start, self.factor))

    @classmethod
    def for_text(cls, options: PenaltyOptions, context: TextContext) -> Iterator[Processor]:
        if options.exponential_decay_length_penalty and context.end_tokens:
            start, factor = options.exponential_decay_length_penalty
            yield cls(start, factor, context.prompt_length, context.end_tokens)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        late = tokens.size(1) - self.prompt_length - self.start
        if late <= 0:
            return logits
        ends = [token for token in self.end_tokens if token < logits.size(-1)]
        # e^80 is nearly all that a float32 holds: +inf would leave a softmax without a number.
        lift = self.factor ** min(late, 80 / math.log(self.factor)) - 1
        out = logits.clone()
        out[:, ends] += (logits[:, ends].abs() * lift).masked_fill(logits[:, ends] == RULED_OUT, 0)
        return out


def _require_known(name: str, ids: Iterable[int], logits: Tensor) -> None:
    if unknown := [token for token in ids if not 0 <= token < logits.size(-1)]:
        raise InvalidRequest(f"{name} ids must be from 0 to {logits.size(-1) - 1}, got {unknown[:5]}")
