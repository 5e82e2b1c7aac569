"""Decoding several texts side by side, one token each at a time: what most strategies have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from minigpt.errors import InvalidRequest
from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.random_stream import RandomStream, sample
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
from minigpt.sampler.processors import Processor, chain, name_of_step
from minigpt.sampler.registry import name_of
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.token_trace import TokenTrace, explain

# Shapes below:  B rows (texts in progress) · T tokens of the longest prompt · V vocabulary


@dataclass
class Text:
    """One text in progress."""

    request: Request
    prompt_index: int
    index: int  # which of its prompt's texts
    processors: list[Processor]
    random_stream: RandomStream | None = None  # None takes the most likely tokens
    tokens: list[int] = field(default_factory=list)  # new ones only
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    traces: list[TokenTrace] = field(default_factory=list)  # of each token, if the request asks for them
    steps: list[tuple[str, Tensor]] = field(default_factory=list)  # for the next token's trace
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

    def imagine(self, *tokens: int) -> Text:
        """The text as it would be with these tokens added: for strategies that look ahead."""
        new = [*self.tokens, *tokens]
        reason = self.request.finish_reason(new) if new else None
        return replace(self, request=replace(self.request, trace=False), tokens=new, finish_reason=reason)

    def processed(self, logits: Tensor) -> Tensor:
        """The logits after this text's processors: (V,)  ->  (V,)."""
        steps: list[tuple[str, Tensor]] | None = [] if self.request.trace else None
        scores = apply(self.processors, logits[None], [self.token_ids], steps)[0]
        self.steps += [(name, rows[0]) for name, rows in steps or ()]
        return scores

    def record(self, step: str, scores: Tensor) -> None:
        """Keeps what a step made of the scores (V,), for the trace of the token that is chosen next."""
        if self.request.trace:
            self.steps.append((step, scores.clone()))

    def add(self, token: int, logits: Tensor, logprob: float, top: list[tuple[int, float]]) -> None:
        """Adds the chosen token; `logits` (V,) are the model's own."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.top_logprobs.append(top)
        if self.request.trace:
            self.traces.append(explain(logits, self.steps, token))
            self.steps.clear()
        self.finish_reason = self.request.finish_reason(self.tokens)

    def last_event(self) -> TokenGenerated:
        """That the last token was added."""
        trace = self.traces[-1] if self.traces else None
        return TokenGenerated(self.prompt_index, self.index, self.tokens[-1], self.logprobs[-1], trace)

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        top = self.top_logprobs if self.request.top_logprobs else []
        score = sum(self.logprobs)
        return Completion(self.tokens, self.logprobs, score, self.finish_reason, top, traces=self.traces)


@dataclass(frozen=True)
class Prediction:
    """What follows each text: the model's own logits, and the scores that a strategy makes of them.

    The processors act on the scores. Where they rule out all that the scores leave, they act on `otherwise`
    instead, if there is such.

    Shapes: (B, V) all
    """

    logits: Tensor
    scores: Tensor
    otherwise: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Prediction:
        logits, rows = self.logits[list(rows)], list(rows)
        scores = logits if self.scores is self.logits else self.scores[rows]
        return Prediction(logits, scores, None if self.otherwise is None else self.otherwise[rows])


class Reader(Protocol):
    """What reads the texts and predicts how they go on; a strategy may have one of its own.

    `decode_loop` calls in this order: `read_prompts` once, with one text for each prompt; `select` if each
    prompt has several texts; then for every token the processors, `pick`, `select` if a text is finished,
    and `read_next`. A strategy that looks ahead is both reader and picker: `pick` is given the processed
    scores and the texts before any of them is read on, see `minigpt.sampler.engine.look_ahead`.

    Each text tells its prompt, its tokens and its limit (`text.request`), so what is read for one text can
    be made to depend on that text alone.
    """

    def read_prompts(self, texts: Sequence[Text]) -> Prediction:
        """Reads the prompts."""

    def read_next(self, texts: Sequence[Text]) -> Prediction:
        """Reads the last token of each text; all before it have been read."""

    def select(self, rows: Sequence[int]) -> None:
        """Text i from now on is what text `rows[i]` was."""


Pick = Callable[[Tensor, Sequence[Text]], Tensor]  # (processed scores (B, V), B texts) -> the chosen ids (B,)


class ModelReader:
    """Reads the texts side by side; the scores are the model's own logits."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def read_prompts(self, texts: Sequence[Text]) -> Prediction:
        logits, self.cache = read_prompts(self.model, [text.request for text in texts])
        return Prediction(logits, logits)

    def read_next(self, texts: Sequence[Text]) -> Prediction:
        logits = self.model.next_logits(last_tokens(texts, self.model), self.cache).float()
        return Prediction(logits, logits)

    def select(self, rows: Sequence[int]) -> None:
        self.cache.select(rows)


def choose(scores: Tensor, texts: Sequence[Text]) -> Tensor:
    """The next token of each text: sampled by the text's own random numbers if it has some, else the most likely.

    Shapes: (B, V)  ->  (B,)
    """
    streams = [text.random_stream for text in texts]
    keys = [stream.key(len(text.tokens)) for text, stream in zip(texts, streams, strict=True) if stream]
    return sample(scores, keys) if keys else scores.argmax(-1)  # argmax takes the first of equals


def decode_loop(
    model: LanguageModel,
    requests: Sequence[Request],
    strategy: Strategy,
    *,
    pick: Pick = choose,
    reader: Reader | None = None,
    copies: int = 1,
) -> Iterator[Event]:
    """Continues every prompt by the tokens that `pick` chooses, until each of its `copies` is finished.

    Each prompt is read once, however many copies continue it; a finished text leaves the batch.

    Args:
        pick: chooses from the processed scores.
        reader: reads and predicts; the model's own logits are the scores unless there is one.
    """
    reader = reader or ModelReader(model)
    first = [Text.begin(strategy, request, i) for i, request in enumerate(requests)]
    seen = reader.read_prompts(first)
    yield PrefillDone()
    running = texts = first
    if copies > 1:
        rows = [text.prompt_index for text in first for _ in range(copies)]
        running = texts = [
            Text.begin(strategy, text.request, text.prompt_index, j) for text in first for j in range(copies)
        ]
        reader.select(rows)
        seen = seen.select(rows)
    while True:
        chosen = pick(_processed(seen, running, strategy), running)
        yield from _add(chosen, seen.logits, running, texts)
        going = [i for i, text in enumerate(running) if text.finish_reason is None]
        if not going:
            return
        if len(going) < len(running):
            running = [running[i] for i in going]
            reader.select(going)
        seen = reader.read_next(running)


def _processed(seen: Prediction, texts: Sequence[Text], strategy: Strategy) -> Tensor:
    """The scores after each text's own processors, for they see its own tokens: (B, V)."""
    if seen.scores is not seen.logits:
        for text, scores in zip(texts, seen.scores, strict=True):
            text.record(name_of(type(strategy)), scores)
    if not any(text.processors for text in texts):
        return seen.scores
    rows = [text.processed(scores) for text, scores in zip(texts, seen.scores, strict=True)]
    if seen.otherwise is not None:
        for i, text in enumerate(texts):
            if rows[i].max() == float("-inf"):
                text.steps.clear()
                rows[i] = text.processed(seen.otherwise[i])
    processed = torch.stack(rows)
    require_possible(processed.amax(-1).tolist(), [text.request for text in texts])
    return processed


def _add(chosen: Tensor, logits: Tensor, running: Sequence[Text], texts: Sequence[Text]) -> Iterator[Event]:
    """Adds the chosen tokens to the running texts; reports them, and the prompts that are done."""
    logprobs = logits.log_softmax(-1)  # the model's own, whatever the processors did
    reported = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    if any(map(math.isnan, reported)):  # then all of that row's are
        require_possible(reported, [text.request for text in running])
    tops = likeliest(logprobs, running[0].request.top_logprobs)
    added = zip(running, chosen.tolist(), logits, reported, tops, strict=True)
    for text, token, row, logprob, top in added:
        text.add(token, row, logprob, top)
        yield text.last_event()
        group = [other for other in texts if text.finish_reason and other.prompt_index == text.prompt_index]
        if group and all(other.finish_reason for other in group):
            ranked = sorted((other.completion() for other in group), key=lambda done: -done.score)
            yield Finished(text.prompt_index, ranked)


def first_likeliest(scores: Tensor, k: int) -> Tensor:
    """The `k` best of one row, best first; of equals the first come first, as `topk` does not promise.

    Shapes: (V,)  ->  (k,), fewer where there are fewer
    """
    k = min(k, scores.numel())
    ids = (scores >= scores.topk(k).values[-1]).nonzero()[:, 0]  # more than k where several tie with the k-th
    return ids[scores[ids].argsort(descending=True, stable=True)[:k]]


def apply(
    processors: Sequence[Processor],
    logits: Tensor,
    texts: list[list[int]],
    steps: list[tuple[str, Tensor]] | None = None,
) -> Tensor:
    """The logits after all processors; `texts` are all tokens so far, equally many in each row.

    Padding never gets here: prompts of unequal length are processed each by itself.

    Args:
        steps: gets the name of each step, and a copy of the logits that it left, if a trace is asked for.
    """
    if processors:
        tokens = torch.tensor(texts, device=logits.device)
        for processor in processors:
            logits = processor(logits, tokens)
            if steps is not None:
                steps.append((name_of_step(processor), logits.clone()))
    return logits


def last_tokens(texts: Sequence[Text], model: LanguageModel) -> Tensor:
    """The last token of each text, where the model is: (B, 1)."""
    return ids([text.tokens[-1:] for text in texts], model)


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
