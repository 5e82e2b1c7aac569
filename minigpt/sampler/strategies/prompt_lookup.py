"""Prompt lookup: drafts are n-grams that repeat in the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.options import HUGE, option
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.drafting import DraftOptions, decode_with_drafts, room
from minigpt.sampler.events import Event, LanguageModel, Request


@dataclass(frozen=True, kw_only=True)
class PromptLookup(DraftOptions):
    """Lossless speculative decoding that drafts repeated n-grams and verifies them: same text, fewer passes.

    The draft is what followed the last occurrence of the text's last n tokens, the longest n first, in the
    prompt or the text so far; where that runs into the end, it starts over. The model verifies all draft
    tokens of a text in one pass. Pays off for texts that repeat themselves or their prompt.

    The text is that of `Greedy`, or with `do_sample` that of `Sample` with the same seed.

    Source: Saxena 2023, "Prompt Lookup Decoding"; Leviathan et al. 2023 for checking in one pass.
    """

    num_draft_tokens: int = option(
        15,
        "maximum number of draft tokens per step, verified in one pass",
        group="strategy",
        least=1,
        below=HUGE,
    )
    max_ngram: int = option(3, "longest n-gram to match in the context", group="strategy", least=1, most=64)

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        return decode_with_drafts(model, requests, self, lambda sequences: Lookup(self.max_ngram, sequences))


class Lookup:
    """Drafts what followed before."""

    costly = False

    def __init__(self, max_ngram: int, sequences: list[ActiveSequence]) -> None:
        self._pasts = {sequence.prompt_index: Past(max_ngram) for sequence in sequences}

    def propose(self, sequences: list[ActiveSequence], n: int) -> list[list[int]]:
        drafts = []
        for sequence in sequences:
            past = self._pasts[sequence.prompt_index]
            past.extend(sequence.token_ids[len(past.tokens) :])
            drafts.append(past.continuation(min(n, room(sequence))))
        return drafts


class Past:
    """What followed each n-gram of a text when it last occurred.

    >>> past = Past(max_ngram=2)
    >>> past.extend([1, 2, 3, 9, 2, 4, 1, 2])
    >>> past.continuation(9)                                  # of "1 2"; then from there again
    [3, 9, 2, 4, 1, 2, 3, 9, 2]
    """

    def __init__(self, max_ngram: int) -> None:
        self.tokens: list[int] = []
        self._max_ngram = max_ngram
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> the place of what followed it last

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            for n in range(1, min(self._max_ngram, len(self.tokens)) + 1):
                self._after[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)

    def continuation(self, n_tokens: int) -> list[int]:
        """The next tokens if the text repeats itself; none where not even its last token is known."""
        for n in range(min(self._max_ngram, len(self.tokens)), 0, -1):
            start = self._after.get(tuple(self.tokens[-n:]))
            if start is not None:
                period = len(self.tokens) - start
                return [self.tokens[start + i % period] for i in range(n_tokens)]
        return []
