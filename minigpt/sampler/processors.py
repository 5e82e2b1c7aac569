"""Reshaping the next-token distribution, one step at a time.

A processor is a callable (logits (B, V), tokens (B, S)) -> logits (B, V), where `tokens` is the text so
far, prompt included. It returns new logits and leaves its input alone; a token is ruled out by -inf.
Bring your own: any such callable will do. Order is part of the meaning, so `chain` fixes it in one place.

Each gives the scores that transformers 5.23 gives, bit for bit; a row that is -inf throughout stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Processor = Callable[[Tensor, Tensor], Tensor]
RULED_OUT = float("-inf")


def _require(holds: bool, name: str, value: Any, limit: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {limit}, got {value}")


@dataclass(frozen=True)
class LogitBias:
    """Adds a number to the logits of chosen tokens; -inf rules a token out.

    >>> LogitBias({2: 5.0})(torch.zeros(1, 4), torch.tensor([[0]]))
    tensor([[0., 0., 5., 0.]])
    """

    biases: Mapping[int, float]

    def __post_init__(self) -> None:
        wrong = [bias for bias in self.biases.values() if not bias < float("inf")]
        _require(not wrong, "logit_bias", wrong, "a number, or -inf")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        outside = [token for token in self.biases if not 0 <= token < logits.size(-1)]
        _require(not outside, "logit_bias ids", outside, f"from 0 to {logits.size(-1) - 1}")
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
        _require(self.penalty > 0, "repetition_penalty", self.penalty, "above 0 (1 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        seen = logits.gather(-1, tokens)
        seen = torch.where(seen < 0, seen * self.penalty, seen / self.penalty)
        return logits.scatter(-1, tokens, seen)


@dataclass(frozen=True)
class NoRepeatNGram:
    """Rules out every token that would complete a run of `size` tokens that the text already holds.

    >>> NoRepeatNGram(2)(torch.zeros(1, 4), torch.tensor([[1, 2, 3, 1]]))       # "1 2" was said
    tensor([[0., 0., -inf, 0.]])
    """

    size: int

    def __post_init__(self) -> None:
        _require(self.size >= 1, "no_repeat_ngram_size", self.size, "at least 1 (0 is off)")

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
        _require(
            all(map(len, self.sequences)), "bad_words", self.sequences, "sequences of at least one token"
        )

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        out = logits.clone()
        for *start, last in self.sequences:
            _require(0 <= last < logits.size(-1), "bad_words ids", last, f"from 0 to {logits.size(-1) - 1}")
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
        _require(self.n >= 0, "min_new_tokens", self.n, "at least 0")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if tokens.size(1) - self.prompt_length >= self.n:
            return logits
        out = logits.clone()
        # A config may name an end token that the vocabulary does not hold: it can never be written.
        out[:, [token for token in self.end_tokens if token < logits.size(-1)]] = RULED_OUT
        return out


@dataclass(frozen=True)
class Temperature:
    """Divides the logits: below 1 the likely become likelier, above 1 the odds even out."""

    value: float

    def __post_init__(self) -> None:
        _require(self.value > 0, "temperature", self.value, "above 0; for no randomness use greedy")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits / self.value


@dataclass(frozen=True)
class TopK:
    """Only the `k` likeliest tokens stay, and those that tie with the k-th.

    Source: Fan et al. 2018, section 5.

    >>> TopK(2)(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), torch.tensor([[0]]))
    tensor([[-inf, 3., 2., 2.]])
    """

    k: int
    keep: int = 1  # never fewer than these

    def __post_init__(self) -> None:
        _require(
            isinstance(self.k, int) and self.k >= 1,
            "top_k",
            self.k,
            "a whole number of at least 1 (0 is off)",
        )

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        k = min(max(self.k, self.keep), logits.size(-1))
        return logits.masked_fill(logits < logits.topk(k).values[:, -1:], RULED_OUT)


@dataclass(frozen=True)
class TopP:
    """The smallest set of likeliest tokens whose probability reaches `p`; the one that crosses it stays.

    Source: Holtzman et al. 2020 (nucleus sampling), section 3.1.

    >>> TopP(0.6)(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.5000, 0.3000, 0.0000, 0.0000]])
    """

    p: float
    keep: int = 1

    def __post_init__(self) -> None:
        _require(0 <= self.p <= 1, "top_p", self.p, "from 0 to 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        ranked, order = logits.sort()  # from unlikely to likely: the small probabilities add up exactly
        dropped = ranked.softmax(-1).cumsum(-1) <= 1 - self.p
        dropped[:, -self.keep :] = False
        return logits.masked_fill(dropped.scatter(1, order, dropped), RULED_OUT)


@dataclass(frozen=True)
class MinP:
    """Drops tokens less than `p` times as likely as the likeliest.

    Source: Nguyen et al. 2024 (min-p sampling), section 3.
    """

    p: float
    keep: int = 1

    def __post_init__(self) -> None:
        _require(0 <= self.p <= 1, "min_p", self.p, "from 0 to 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        dropped = probabilities < self.p * probabilities.amax(-1, keepdim=True)
        kept = probabilities.topk(min(self.keep, logits.size(-1))).indices
        return logits.masked_fill(dropped.scatter(-1, kept, False), RULED_OUT)


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens about as surprising as the distribution is on average, up to a mass of `p`.

    Source: Meister et al. 2023 (locally typical sampling), section 4.
    """

    p: float
    keep: int = 1

    def __post_init__(self) -> None:
        _require(0 < self.p < 1, "typical_p", self.p, "above 0 and below 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)  # 0 * -inf counts nothing
        distance, order = (-logprobs - entropy).abs().sort()
        mass = logits.gather(-1, order).softmax(-1).cumsum(-1)
        last = (mass < self.p).sum(-1, keepdim=True).clamp_max(logits.size(-1) - 1)
        dropped = distance > distance.gather(-1, last)
        dropped[:, : self.keep] = False
        return logits.masked_fill(dropped.scatter(1, order, dropped), RULED_OUT)


def unchanged(logits: Tensor, tokens: Tensor) -> Tensor:
    """The step before all others: what there was to begin with."""
    return logits


@dataclass(frozen=True)
class Watched:
    """A processor that tells what it did, row by row."""

    processor: Processor
    watch: Callable[[tuple[int, ...], str, Tensor, Tensor], None]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        out = self.processor(logits, tokens)
        name = getattr(self.processor, "__name__", type(self.processor).__name__)
        for text, before, after in zip(tokens.tolist(), logits, out, strict=True):
            self.watch(tuple(text), name, before, after)
        return out


def chain(options: Any, prompt_length: int, end_tokens: frozenset[int], keep: int = 1) -> list[Processor]:
    """The processors that a strategy's options ask for, in the one order in which they act.

    `options` is a strategy; one without a temperature or cut-offs has none. `keep` is how many tokens
    the cut-offs leave at least.
    """

    def given(name: str) -> Any:
        return getattr(options, name, None)

    steps: list[Processor] = []
    if options.logit_bias:
        steps.append(LogitBias(options.logit_bias))
    if options.repetition_penalty != 1:
        steps.append(RepetitionPenalty(options.repetition_penalty))
    if options.no_repeat_ngram_size:
        steps.append(NoRepeatNGram(options.no_repeat_ngram_size))
    if bad := [word for word in options.bad_words if not (len(word) == 1 and word[0] in end_tokens)]:
        steps.append(BadWords(bad))
    if options.min_new_tokens and end_tokens:
        steps.append(MinNewTokens(options.min_new_tokens, prompt_length, end_tokens))
    steps.extend(options.processors)
    if given("temperature") not in (None, 1):
        steps.append(Temperature(options.temperature))
    if given("top_k"):
        steps.append(TopK(options.top_k, keep))
    if given("top_p") not in (None, 1):
        steps.append(TopP(options.top_p, keep))
    if given("min_p") is not None:
        steps.append(MinP(options.min_p, keep))
    if given("typical_p") not in (None, 1):
        steps.append(Typical(options.typical_p, keep))
    return steps if options.watch is None else [Watched(step, options.watch) for step in (unchanged, *steps)]
