"""Decoding several texts side by side, one token each at a time: what most strategies have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from minigpt.errors import InvalidRequest
from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.random_stream import RandomStream, sample
from minigpt.sampler.engine.sliding_window import Sliding
from minigpt.sampler.events import (
    Cache,
    Completion,
    Event,
    Finished,
    LanguageModel,
    PrefillDone,
    Request,
    TokenGenerated,
)
from minigpt.sampler.processors import Processor, chain
from minigpt.sampler.strategy import Strategy

# Shapes below:  B rows (texts in progress) · T tokens of the longest prompt · V vocabulary


@dataclass
class Text:
    """One text in progress."""

    request: Request
    prompt_index: int
    index: int  # which of its prompt's texts
    processors: list[Processor]
    random_stream: RandomStream | None = None  # None takes the likeliest tokens
    tokens: list[int] = field(default_factory=list)  # new ones only
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    finish_reason: str | None = None

    @classmethod
    def begin(cls, strategy: Strategy, request: Request, prompt_index: int, index: int = 0) -> Text:
        """A text of which nothing is written yet."""
        processors = chain(strategy, request, index)
        return cls(request, prompt_index, index, processors, strategy.random_stream(request, index))

    @property
    def token_ids(self) -> list[int]:
        """Prompt and new tokens."""
        return [*self.request.prompt, *self.tokens]

    def processed(self, logits: Tensor) -> Tensor:
        """The logits after this text's processors: (V,)  ->  (V,)."""
        return apply(self.processors, logits[None], [self.token_ids])[0]

    def add(self, token: int, logprob: float, top: list[tuple[int, float]]) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.top_logprobs.append(top)
        self.finish_reason = self.request.finish_reason(self.tokens)

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        top = self.top_logprobs if self.request.top_logprobs else []
        return Completion(self.tokens, self.logprobs, sum(self.logprobs), self.finish_reason, top)


@dataclass(frozen=True)
class Prediction:
    """What follows each text: the model's own logits, and the scores that a strategy makes of them.

    Shapes: (B, V) both
    """

    logits: Tensor
    scores: Tensor

    def select(self, rows: Sequence[int]) -> Prediction:
        logits = self.logits[list(rows)]
        return Prediction(logits, logits if self.scores is self.logits else self.scores[list(rows)])


class Reads(Protocol):
    """What `decode_loop` asks of a reader; a strategy that looks at more than the last logits has its own.

    A protocol, so that strategies need not import this file, and with it torch, to define theirs.
    """

    def prompts(self, requests: Sequence[Request]) -> Prediction: ...
    def next(self, tokens: Tensor) -> Prediction: ...
    def select(self, rows: Sequence[int]) -> None: ...


class Reader:
    """Reads the texts side by side; the scores are the model's own logits."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def prompts(self, requests: Sequence[Request]) -> Prediction:
        logits, self.cache = read_prompts(self.model, requests)
        return Prediction(logits, logits)

    def next(self, tokens: Tensor) -> Prediction:
        """Reads one more token of each text: (B,)."""
        logits = self.model.next_logits(tokens[:, None], self.cache).float()
        return Prediction(logits, logits)

    def select(self, rows: Sequence[int]) -> None:
        """Text i from now on is what text `rows[i]` was."""
        self.cache.select(rows)


def decode_loop(
    model: LanguageModel,
    requests: Sequence[Request],
    strategy: Strategy,
    pick: Callable[[Tensor, list[Text]], Tensor] | None = None,
    copies: int = 1,
    reads: Callable[[LanguageModel], Reads] = Reader,
) -> Iterator[Event]:
    """Continues every prompt by the token that `pick` chooses, until each of its `copies` is finished.

    Each prompt is read once, however many copies continue it; a finished text leaves the batch.

    Args:
        pick: (processed scores (B, V), the texts they belong to) -> the chosen ids (B,); `choose` unless given.
        reads: makes the reader, whose scores are the model's own logits unless a strategy has another.
    """
    running = texts = [
        Text.begin(strategy, request, i, j) for i, request in enumerate(requests) for j in range(copies)
    ]
    reader = reads(model)
    seen = reader.prompts(requests)
    yield PrefillDone()
    if copies > 1:
        rows = [text.prompt_index for text in texts]
        reader.select(rows)
        seen = seen.select(rows)
    while True:
        chosen = (pick or choose)(_processed(seen, running, strategy), running)
        yield from _add(chosen, seen.logits, running, texts)
        going = [i for i, text in enumerate(running) if text.finish_reason is None]
        if not going:
            return
        if len(going) < len(running):
            running = [running[i] for i in going]
            chosen = chosen[going]
            reader.select(going)
        seen = reader.next(chosen)


def _processed(seen: Prediction, texts: list[Text], strategy: Strategy) -> Tensor:
    """The scores after each text's own processors, for they see its own tokens: (B, V)."""
    if strategy.watch and seen.scores is not seen.logits:
        for text, before, after in zip(texts, seen.logits, seen.scores, strict=True):
            strategy.watch(tuple(text.token_ids), type(strategy).__name__, before, after)
    if not any(text.processors for text in texts):
        return seen.scores
    processed = torch.stack([text.processed(row) for text, row in zip(texts, seen.scores, strict=True)])
    require_possible(processed.amax(-1).tolist(), [text.request for text in texts])
    return processed


def _add(chosen: Tensor, logits: Tensor, running: list[Text], texts: list[Text]) -> Iterator[Event]:
    """Adds the chosen tokens to the running texts, and tells of them, and of prompts that are done."""
    logprobs = logits.log_softmax(-1)  # the model's own, whatever the processors did
    told = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    if any(map(math.isnan, told)):  # then all of that row's are
        require_possible(told, [text.request for text in running])
    tops = likeliest(logprobs, running[0].request.top_logprobs)
    for text, token, logprob, top in zip(running, chosen.tolist(), told, tops, strict=True):
        text.add(token, logprob, top)
        yield TokenGenerated(text.prompt_index, text.index, token, logprob)
        group = [other for other in texts if other.prompt_index == text.prompt_index]
        if all(other.finish_reason for other in group):
            ranked = sorted((other.completion() for other in group), key=lambda done: -done.score)
            yield Finished(text.prompt_index, ranked)


def choose(scores: Tensor, texts: Sequence[Text]) -> Tensor:
    """The next token of each text: sampled by the text's own random numbers if it has some, else the likeliest.

    Shapes: (B, V)  ->  (B,)
    """
    streams = [text.random_stream for text in texts]
    keys = [stream.key(len(text.tokens)) for text, stream in zip(texts, streams, strict=True) if stream]
    return sample(scores, keys) if keys else scores.argmax(-1)  # argmax takes the first of equals


def first_likeliest(scores: Tensor, k: int) -> Tensor:
    """The `k` best of one row, best first; of equals the first come first, as `topk` does not promise.

    Shapes: (V,)  ->  (k,), fewer where there are fewer
    """
    k = min(k, scores.numel())
    ids = (scores >= scores.topk(k).values[-1]).nonzero()[:, 0]  # more than k where several tie with the k-th
    return ids[scores[ids].argsort(descending=True, stable=True)[:k]]


def apply(processors: Sequence[Processor], logits: Tensor, texts: list[list[int]]) -> Tensor:
    """The logits after all processors; `texts` are all tokens so far, equally many in each row.

    Padding never gets here: prompts of unequal length are processed each by itself.
    """
    if processors:
        tokens = torch.tensor(texts, device=logits.device)
        for processor in processors:
            logits = processor(logits, tokens)
    return logits


def ids(rows: list[list[int]], model: LanguageModel) -> Tensor:
    """Token ids where the model is."""
    return torch.tensor(rows, device=model.device)


def read_prompts(model: LanguageModel, requests: Sequence[Request]) -> tuple[Tensor, Cache]:
    """Reads all prompts at once, the shorter ones padded on the left.

    Shapes: the logits of what follows each prompt, float32 (B, V); a cache of B rows with room for the rest
    """
    tokens, cache = left_padded_batch(model, requests)
    return model.next_logits(tokens, cache).float(), cache


def left_padded_batch(
    model: LanguageModel, requests: Sequence[Request], spare: int = 0
) -> tuple[Tensor, Cache]:
    """All prompts in one batch, the shorter ones padded on the left with 0, and a cache to read them into.

    The cache has room for all that is read back, which the last new token is not, and for `spare` tokens more.

    Shapes: (B, T); a cache of B rows
    """
    pads = padding([request.prompt for request in requests])
    rows = [[0] * pad + list(request.prompt) for pad, request in zip(pads, requests, strict=True)]
    room = len(rows[0]) + max(request.max_new_tokens for request in requests) - 1 + spare
    pad = torch.tensor(pads, device=model.device) if any(pads) else None
    return ids(rows, model), model.new_cache(room, rows=len(requests), pad=pad)


def padding(texts: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens each text is short of the longest."""
    longest = max(map(len, texts))
    return [longest - len(text) for text in texts]


def likeliest(logprobs: Tensor, n: int) -> list[list[tuple[int, float]]]:
    """The `n` likeliest tokens of each row and their log-probabilities, best first.  Shape: (B, V)."""
    if not n:
        return [[] for _ in logprobs]
    ranked = [first_likeliest(row, n) for row in logprobs]
    return [
        list(zip(ids.tolist(), row[ids].tolist(), strict=True))
        for ids, row in zip(ranked, logprobs, strict=True)
    ]


def require_possible(best: list[float], requests: Sequence[Request]) -> None:
    """Raises ValueError where even the best score of a row is none: -inf, +inf or NaN."""
    for score, request in zip(best, requests, strict=True):
        if not math.isfinite(score):
            raise InvalidRequest(
                f"no token is left to choose after {len(request.prompt)} prompt tokens: the options rule out every"
                " one (or the logits are not finite numbers, as float16 can cause); loosen them, or use float32"
            )


def without_training(model: LanguageModel, events: Iterator[Event]) -> Iterator[Event]:
    """Passes events on, computing each with dropout off and no graph, and leaving no mode behind."""
    modules = model.modules() if isinstance(model, torch.nn.Module | Sliding) else ()
    training = [module for module in modules if module.training]
    while True:
        with torch.inference_mode(), _evaluating(training):
            event = next(events, None)
        if event is None:
            return
        yield event


@contextmanager
def _evaluating(training: list[torch.nn.Module]) -> Iterator[None]:
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
