"""Constrained beam search: texts that must contain given phrases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt.errors import InvalidRequest
from minigpt.json_files import counted
from minigpt.lazy import Tensor, torch
from minigpt.options import Kind, option
from minigpt.sampler.engine.beam_search import Hypothesis, Search
from minigpt.sampler.engine.choice import require_possible, top_k_within_rounding
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.option_values import Loaded, are_ids, spelling
from minigpt.sampler.strategies.beam import Beam

Tokens = tuple[int, ...]
Phrase = tuple[Tokens, ...]  # its spellings; one of them is enough

# Shapes below:  R live beams of one prompt · V vocabulary


def _phrases(texts: list[str], loaded: Loaded) -> tuple[Phrase, ...]:
    # GPT-2 writes a word with its space before it, except where a text or a line begins.
    def spelled(text: str) -> Phrase:
        both = dict.fromkeys((text, " " + text.lstrip(" ")))
        return tuple(tokens for way in both if (tokens := spelling(way, loaded.tokenizer)))

    return tuple(spelled(text) if text else () for text in texts)


def _are_phrases(value: Any) -> bool:
    listed = isinstance(value, list | tuple)
    return listed and all(are_ids(p) or (isinstance(p, list | tuple) and all(map(are_ids, p))) for p in value)


PHRASES = Kind(
    "phrases, each of token ids or a list of alternative spellings (tokenizer.encode makes them of a text)",
    _are_phrases,
)


@dataclass(frozen=True, kw_only=True)
class Constrained(Beam):
    """Lexically constrained beam search: the texts contain all given phrases, placed by the search.

    A text counts as finished only when it holds every phrase, in any order, overlaps allowed; an end token
    or stop text that comes before is not taken. The beams are shared evenly among banks, one for each number
    of phrase tokens fulfilled, so that texts that have more of the phrases do not die for being less likely.
    When the tokens left just suffice, only beams that go on with a phrase stay.

    `must_include`: phrases, each a sequence of token ids, or a sequence of its spellings, each of token ids.
    They are looked for in the new tokens, not in the prompt. On the command line each is a text, which may
    be spelled with a space before it or without.

    Source: Hokamp & Liu 2017 (grid beam search), section 3; the banks: Post & Vilar 2018 (dynamic beam
    allocation), section 3.
    """

    must_include: Sequence[Sequence[Any]] = option(
        (), "the text must contain this, with a space before it or without; repeatable",
        in_python="phrases that the text must contain, each a list of token ids or a list of its spellings: "
        '[tokenizer.encode(" king")]',
        group="control", kind=PHRASES, collect=_phrases, metavar="TEXT",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for number, phrase in enumerate(self.must_include, start=1):
            if not phrase or not all(spellings(phrase)):
                raise InvalidRequest(
                    f"must_include (--must-include): phrase {number} has no tokens: it is empty, or the vocabulary"
                    " cannot spell it"
                )

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        if not self.must_include:
            return super().decode(model, requests)
        goal = Goal.of(self.must_include)
        for request in requests:
            goal.check(request, model.config.vocab_size)
        return self._search(model, requests)

    def new_search(self, prompt_index: int, request: Request) -> Search:
        if not self.must_include:
            return super().new_search(prompt_index, request)
        return ConstrainedSearch(self, prompt_index, request, goal=Goal.of(self.must_include))


def spellings(phrase: Sequence[Any]) -> Phrase:
    """A phrase's spellings, where it may be written as the only one.

    >>> spellings([5, 6]), spellings([[5, 6], [7]])
    (((5, 6),), ((5, 6), (7,)))
    """
    return tuple(map(tuple, phrase)) if isinstance(phrase[0], Sequence) else (tuple(phrase),)


@dataclass(frozen=True)
class Goal:
    """What a text must contain, and how far it is from that.

    >>> goal = Goal.of([[1, 2], [3]])
    >>> [goal.missing(text) for text in [(), (1,), (1, 3), (1, 3, 1, 2)]]
    [(2, 3), (1, 2), (2, 2), (0, 0)]
    """

    phrases: tuple[Phrase, ...]

    @classmethod
    def of(cls, must_include: Sequence[Sequence[Any]]) -> Goal:
        """The phrases, without those that come for free with another."""
        phrases = list(dict.fromkeys(map(spellings, must_include)))
        free = {p for p in phrases for q in phrases if p != q and all(_holds(tokens, p) for tokens in q)}
        return cls(tuple(phrase for phrase in phrases if phrase not in free))

    def check(self, request: Request, vocab_size: int) -> None:
        """Raises InvalidRequest where no text can contain the phrases."""
        if request.taken_back:
            raise InvalidRequest(
                "heal (--heal) and must_include (--must-include) cannot be combined: phrases are looked for in the new"
                " tokens, which would begin within the prompt; leave one of them out"
            )
        tokens = [token for phrase in self.phrases for spelling in phrase for token in spelling]
        if unknown := [token for token in tokens if not 0 <= token < vocab_size]:
            raise InvalidRequest(f"must_include ids must be from 0 to {vocab_size - 1}, got {unknown[:5]}")
        if ends := [token for token in tokens if token in request.end_tokens]:
            raise InvalidRequest(
                f"must_include (--must-include) holds the end token {ends[0]}, at which a text ends"
            )
        if self.at_least() > request.max_new_tokens:
            raise self.no_room(request)

    def at_least(self) -> int:
        """A number of tokens with fewer of which no text contains the phrases, though it may take more.

        >>> Goal.of([[1, 2], [2, 3]]).at_least(), Goal.of([[1, 2], [2, 1]]).at_least()
        (3, 2)
        """
        needed = {token for phrase in self.phrases for token in set.intersection(*map(set, phrase))}
        return max(len(needed), self.missing(())[0])

    def no_room(self, request: Request) -> InvalidRequest:
        """What to say where no text of the length that is asked for contains the phrases."""
        _, together = self.missing(())
        return InvalidRequest(
            f"must_include (--must-include): the phrases are {together} tokens together, more than fit the"
            f" {counted(request.max_new_tokens, 'new ones')} that there is room for (--max-new-tokens)"
        )

    def unmet(self, tokens: Tokens) -> list[Phrase]:
        return [phrase for phrase in self.phrases if not _holds(tokens, phrase)]

    def missing(self, tokens: Tokens) -> tuple[int, int]:
        """How many more tokens it takes at least, and how many suffice.

        At least the rest of the longest phrase; the rest of the phrase that is furthest and then the others
        whole suffice, though fewer may do where phrases overlap.
        """
        unmet = self.unmet(tokens)
        whole = [min(map(len, phrase)) for phrase in unmet]
        rest = [min(len(spelling) - _begun(tokens, spelling) for spelling in phrase) for phrase in unmet]
        saved = max((a - b for a, b in zip(whole, rest, strict=True)), default=0)
        return max(rest, default=0), sum(whole) - saved

    def next_tokens(self, tokens: Tokens) -> set[int]:
        """The tokens with which a phrase goes on or begins."""
        return {spelling[_begun(tokens, spelling)] for phrase in self.unmet(tokens) for spelling in phrase}


def _holds(tokens: Tokens, phrase: Phrase) -> bool:
    return any(
        tokens[start : start + len(spelling)] == spelling
        for spelling in phrase
        for start, token in enumerate(tokens)
        if token == spelling[0]
    )


def _begun(tokens: Tokens, spelling: Tokens) -> int:
    """With how many of a spelling's tokens, but not all, the text ends."""
    ends = range(min(len(spelling) - 1, len(tokens)), 0, -1)
    return next((n for n in ends if tokens[-n:] == spelling[:n]), 0)


@dataclass
class ConstrainedSearch(Search):
    """A search for texts that contain the phrases."""

    goal: Goal = field(kw_only=True)

    def candidates(self, totals: Tensor, n: int) -> Tensor:
        """Every beam's best tokens, and those with which a phrase goes on."""
        vocab_size = totals.size(1)
        found = {
            row * vocab_size + token
            for row, beam in enumerate(self.live)
            for token in (*top_k_within_rounding(totals[row], n), *self.goal.next_tokens(beam.tokens))
        }
        chosen = torch.tensor(sorted(found), device=totals.device)
        return chosen[top_k_within_rounding(totals.flatten()[chosen], len(chosen))]

    def ending(self, grown: list[Hypothesis]) -> list[Hypothesis]:
        return super().ending([hypothesis for hypothesis in grown if not self.goal.unmet(hypothesis.tokens)])

    def going_on(self, unfinished: list[Hypothesis]) -> list[Hypothesis]:
        """From each bank in turn its best, the fullest bank first; texts that may run out of room come last.

        They are in the candidates' order, in which rounding decides nothing.
        """
        left = self.request.max_new_tokens - len(self.live[0].tokens) - 1
        places: Counter[int] = Counter()
        in_turn = []
        for order, hypothesis in enumerate(unfinished):
            at_least, enough = self.goal.missing(hypothesis.tokens)
            if at_least <= left:
                in_turn.append((enough > left, places[enough], enough, order))
                places[enough] += 1
        in_turn.sort()
        if not in_turn and not self.finished:
            if self.goal.missing(())[1] > self.request.max_new_tokens:
                raise self.goal.no_room(self.request)
            require_possible([float("-inf")], [self.request])  # a processor forbids what must be written
        return [unfinished[order] for order in sorted(order for *_, order in in_turn[: self.beam.num_beams])]
