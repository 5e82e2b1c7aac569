"""Reading the texts side by side: what a reader is, and the one that most strategies have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.events import Cache, LanguageModel, Request

# Shapes below:  B rows (texts in progress) · T tokens of the longest prompt · V vocabulary


@dataclass(frozen=True)
class Prediction:
    """What follows each text: the model's own logits, and the scores that a strategy makes of them.

    The processors act on the scores. Where they rule out all that the scores leave, they act on `fallback_scores`
    instead, if there is such.

    Shapes: (B, V) all
    """

    logits: Tensor
    scores: Tensor
    fallback_scores: Tensor | None = None

    def select(self, rows: Sequence[int]) -> Prediction:
        logits, rows = self.logits[list(rows)], list(rows)
        scores = logits if self.scores is self.logits else self.scores[rows]
        return Prediction(
            logits, scores, None if self.fallback_scores is None else self.fallback_scores[rows]
        )


class Reader(Protocol):
    """What reads the texts and predicts how they go on; a strategy may have one of its own.

    `decode_loop` calls in this order: `read_prompts` once, with one text for each prompt; `select` if each
    prompt has several texts; then for every token the processors, `pick`, `select` if a text is finished,
    and `read_next`. A strategy that looks ahead is both reader and picker: `pick` is given the processed
    scores and the texts before any of them is read on, see `minigpt.sampler.engine.look_ahead`.

    Each sequence has its prompt and its limit (`sequence.request`) and its tokens, so what is read for one text can
    be made to depend on that text alone.
    """

    def read_prompts(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        """Reads the prompts."""

    def read_next(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        """Reads the last token of each text; all before it have been read."""

    def select(self, rows: Sequence[int]) -> None:
        """Text i from now on is what text `rows[i]` was."""


class RowReader(Reader, Protocol):
    """A reader whose rows are replaced one by one, for many prompts; see `minigpt.sampler.engine.scheduler`."""

    def reserve(self, n_max: int, rows: int) -> None:
        """Makes room for `n_max` tokens in each of `rows` rows, or more room in the rows that there are."""

    def bytes_per_token(self) -> int:
        """The memory that one token of one text takes."""

    def replace(
        self, rows: Sequence[int], sequences: Sequence[ActiveSequence], known: Sequence[SharedPrefix]
    ) -> Prediction:
        """Reads the prompts of new texts; text i takes row `rows[i]`, and `known[i]` of it has been read."""

    def make_room(self) -> None:
        """Makes room to read one token more of each text."""


@dataclass(frozen=True)
class SharedPrefix:
    """The first `n` tokens of a prompt have been read: they are the first ones of this row, too."""

    row: int = 0
    n: int = 0


class ModelReader:
    """Reads the texts side by side; the scores are the model's own logits."""

    cache: Any = None  # the model's own

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def read_prompts(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        tokens, self.cache = left_padded_batch(self.model, [sequence.request for sequence in sequences])
        return self.predict(tokens, self.cache)

    def read_next(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        return self.predict(last_tokens(sequences, self.model), self.cache)

    def predict(self, tokens: Tensor, cache: Any) -> Prediction:
        """Reads tokens (B, T) into the cache; what follows."""
        logits = self.model.next_logits(tokens, cache).float()
        return Prediction(logits, logits)

    def select(self, rows: Sequence[int]) -> None:
        self.cache.select(rows)

    def reserve(self, n_max: int, rows: int) -> None:
        if self.cache is None:
            self.cache = self.model.new_cache(n_max, rows)
        else:
            self.cache.grow(n_max)

    def bytes_per_token(self) -> int:
        n_bytes: int = cast(Any, self.model.new_cache(1)).nbytes
        return n_bytes

    def replace(
        self, rows: Sequence[int], sequences: Sequence[ActiveSequence], known: Sequence[SharedPrefix]
    ) -> Prediction:
        prompts = [sequence.request.prompt for sequence in sequences]
        pads, longest = padding(prompts), max(map(len, prompts))
        pad = torch.tensor(pads, device=self.model.device) if any(pads) else None
        fresh: Any = self.model.new_cache(longest, rows=len(rows), pad=pad)
        # All read as many tokens as the one that has most to read, if they have so many.
        begin = longest - max(len(prompt) - has.n for prompt, has in zip(prompts, known, strict=True))
        fresh.begin_with(self.cache, [has.row for has in known], begin)
        texts = [([0] * n + list(prompt))[begin:] for n, prompt in zip(pads, prompts, strict=True)]
        prediction = self.predict(ids(texts, self.model), fresh)
        self.cache.replace_rows(rows, fresh)
        return prediction

    def make_room(self) -> None:
        self.cache.make_room()


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


def padding(rows: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens each text is short of the longest."""
    longest = max(map(len, rows))
    return [longest - len(row) for row in rows]


def last_tokens(sequences: Sequence[ActiveSequence], model: LanguageModel) -> Tensor:
    """The last token of each text, where the model is: (B, 1)."""
    return ids([sequence.tokens[-1:] for sequence in sequences], model)


def ids(rows: list[list[int]], model: LanguageModel) -> Tensor:
    """Token ids where the model is."""
    return torch.tensor(rows, device=model.device)
