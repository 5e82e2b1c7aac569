"""Steps that look at the text so far: what was said loses, what must not be said is ruled out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.sampler.processors.processor import RULED_OUT, require


@dataclass(frozen=True)
class LogitBias:
    """Adds a number to the logits of chosen tokens; -inf rules a token out.

    >>> LogitBias({2: 5.0})(torch.zeros(1, 4), torch.tensor([[0]]))
    tensor([[0., 0., 5., 0.]])
    """

    biases: Mapping[int, float]

    def __post_init__(self) -> None:
        wrong = [bias for bias in self.biases.values() if not bias < float("inf")]
        require(not wrong, "logit_bias", wrong, "a number, or -inf")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        outside = [token for token in self.biases if not 0 <= token < logits.size(-1)]
        require(not outside, "logit_bias ids", outside, f"from 0 to {logits.size(-1) - 1}")
        bias = logits.new_zeros(logits.size(-1))
        bias[list(self.biases)] = logits.new_tensor(list(self.biases.values()))
        return logits + bias


@dataclass(frozen=True)
class RepetitionPenalty:
    """Tokens already in the text lose, whichever sign their logit has.

    Source: Keskar et al. 2019 (CTRL), section 4.1.

    >>> RepetitionPenalty(2.0)(torch.tensor([[4.0, -4.0, 4.0]]), torch.tensor([[0, 1]]))
    tensor([[ 2., -8.,  4.]])
    """

    penalty: float

    def __post_init__(self) -> None:
        require(self.penalty > 0, "repetition_penalty", self.penalty, "above 0 (1 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        seen = logits.gather(-1, tokens)
        seen = torch.where(seen < 0, seen * self.penalty, seen / self.penalty)
        return logits.scatter(-1, tokens, seen)


@dataclass(frozen=True)
class PresencePenalty:
    """Tokens that were written once or more lose the same; those of the prompt do not count.

    Source: OpenAI's API reference, presence_penalty; vLLM counts the same way.

    >>> PresencePenalty(0.5, prompt_length=1)(torch.zeros(1, 4), torch.tensor([[0, 2, 2, 3]]))
    tensor([[ 0.0000,  0.0000, -0.5000, -0.5000]])
    """

    penalty: float
    prompt_length: int

    def __post_init__(self) -> None:
        require(-2 <= self.penalty <= 2, "presence_penalty", self.penalty, "from -2 to 2 (0 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits - self.penalty * (_counts(logits, tokens[:, self.prompt_length :]) > 0)


@dataclass(frozen=True)
class FrequencyPenalty:
    """Each time that a token was written takes the same from it; those of the prompt do not count.

    Source: OpenAI's API reference, frequency_penalty; vLLM counts the same way.

    >>> FrequencyPenalty(0.5, prompt_length=1)(torch.zeros(1, 4), torch.tensor([[0, 2, 2, 3]]))
    tensor([[ 0.0000,  0.0000, -1.0000, -0.5000]])
    """

    penalty: float
    prompt_length: int

    def __post_init__(self) -> None:
        require(-2 <= self.penalty <= 2, "frequency_penalty", self.penalty, "from -2 to 2 (0 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits - self.penalty * _counts(logits, tokens[:, self.prompt_length :])


def _counts(logits: Tensor, tokens: Tensor) -> Tensor:
    """How often each token of the vocabulary occurs in its row: (B, V), (B, S)  ->  (B, V)."""
    return torch.zeros_like(logits).scatter_add(1, tokens, torch.ones_like(tokens, dtype=logits.dtype))


@dataclass(frozen=True)
class NoRepeatNGram:
    """Rules out every token that would complete a run of `size` tokens that the text already holds.

    >>> NoRepeatNGram(2)(torch.zeros(1, 4), torch.tensor([[1, 2, 3, 1]]))       # "1 2" was said
    tensor([[0., 0., -inf, 0.]])
    """

    size: int

    def __post_init__(self) -> None:
        require(self.size >= 1, "no_repeat_ngram_size", self.size, "at least 1 (0 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if tokens.size(1) < self.size:
            return logits
        runs = tokens.unfold(1, self.size, 1)  # (B, runs, size)
        start = tokens[:, tokens.size(1) - self.size + 1 :]  # (B, size - 1)
        said = (runs[..., :-1] == start[:, None]).all(-1)  # (B, runs)
        out = logits.clone()
        for row in range(len(out)):
            out[row, runs[row, said[row], -1]] = RULED_OUT
        return out


@dataclass(frozen=True)
class BadWords:
    """Rules out the last token of each sequence where the text holds the tokens before it.

    Of sequences of one token, those that are end tokens are left out, as in transformers: to keep a text
    from ending, use `MinNewTokens`.
    """

    sequences: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        require(all(map(len, self.sequences)), "bad_words", self.sequences, "sequences of at least one token")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        out = logits.clone()
        for *start, last in self.sequences:
            require(0 <= last < logits.size(-1), "bad_words ids", last, f"from 0 to {logits.size(-1) - 1}")
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

    def __post_init__(self) -> None:
        require(self.n >= 0, "min_new_tokens", self.n, "at least 0")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if tokens.size(1) - self.prompt_length >= self.n:
            return logits
        out = logits.clone()
        # A config may name an end token that the vocabulary does not hold: it can never be written.
        out[:, [token for token in self.end_tokens if token < logits.size(-1)]] = RULED_OUT
        return out


@dataclass(frozen=True)
class ExponentialLengthDecay:
    """Lifts the end tokens, `factor` times as much with each new token after the first `start` ones.

    An end token of logit x gets x + |x| (factor ** n - 1), n tokens after the start.
    """

    start: int
    factor: float
    prompt_length: int
    end_tokens: frozenset[int]

    def __post_init__(self) -> None:
        name = "exponential_decay_length_penalty"
        whole = isinstance(self.start, int) and self.start >= 0
        require(whole, f"{name}'s start", self.start, "a whole number of at least 0")
        require(1 < self.factor < math.inf, f"{name}'s factor", self.factor, "above 1")

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
