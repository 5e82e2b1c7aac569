"""Prompt lookup: a text that repeats itself is its own draft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minigpt.sampler.choosing import Choosing
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.options import option
from minigpt.sampler.strategies.sample import SAMPLING

if TYPE_CHECKING:
    from minigpt.sampler.engine.decode_loop import Text


@dataclass(frozen=True, kw_only=True)
class PromptLookup(Choosing):
    """Greedy or sampled text, unchanged but faster: guesses that it goes on as it did before, and checks.

    The guess is what followed the last occurrence of the text's last n tokens, the longest n first, in the
    prompt or the text so far; where that runs into the end, it starts over. The model checks all guesses of
    a text in one pass. Pays off for texts that repeat themselves or their prompt.

    The text is that of `Greedy`, or if an option of sampling is given that of `Sample` with the same seed.

    Source: Saxena 2023, "Prompt Lookup Decoding"; Leviathan et al. 2023 for checking in one pass.
    """

    implied_by = frozenset({"max_ngram"}) | SAMPLING

    num_draft_tokens: int = option(
        15, "the most tokens guessed ahead, to be checked in one pass",
        group="strategy", parse=int, metavar="N",
    )  # fmt: skip
    max_ngram: int = option(
        3, "look for the last N tokens in the text so far; then for fewer",
        group="strategy", parse=int, metavar="N",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_draft_tokens", "max_ngram"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.engine.drafting import drafted

        return drafted(model, requests, self, lambda texts: Lookup(self, texts))


class Lookup:
    """Guesses by what followed before."""

    def __init__(self, strategy: PromptLookup, texts: list[Text]) -> None:
        self._strategy = strategy
        self._pasts = {text.prompt_index: Past(strategy.max_ngram) for text in texts}

    def propose(self, texts: list[Text]) -> list[list[int]]:
        from minigpt.sampler.engine.drafting import room

        drafts = []
        for text in texts:
            past = self._pasts[text.prompt_index]
            past.extend(text.token_ids[len(past.tokens) :])
            drafts.append(past.continuation(room(text, self._strategy.num_draft_tokens)))
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
        """How the text goes on if it goes on as before; none where not even its last token is known."""
        for n in range(self._max_ngram, 0, -1):
            start = self._after.get(tuple(self.tokens[-n:]))
            if start is not None:
                period = len(self.tokens) - start
                return [self.tokens[start + i % period] for i in range(n_tokens)]
        return []
