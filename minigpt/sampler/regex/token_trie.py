"""The tokens of a vocabulary as one tree, which an automaton reads at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from minigpt.lazy import numpy as np
from minigpt.sampler.regex.automaton import DEAD, Automaton

Numbers: TypeAlias = "np.typing.NDArray[np.int64]"


class Level(NamedTuple):
    """All beginnings of tokens that are so many bytes long; each is one of the level before and a byte."""

    before: Numbers  # which one: (beginnings,)
    byte: Numbers  # (beginnings,)
    tokens: Numbers  # the ids of those that end here: (tokens,)
    ends: Numbers  # the beginning that each of them is: (tokens,)


class TokenTrie:
    """The tokens of a vocabulary as a tree of their beginnings, so that what many begin with is read once.

    The tree lies in arrays, level by level: that of GPT-2's 50,257 tokens is built in 0.1 s and takes 2 MB.

    Args:
        token_bytes: what each id spells; None or nothing for one that cannot be written.

    >>> from minigpt.sampler.regex.automaton import START
    >>> trie = TokenTrie([b"yes", b"y", None, b"no"])
    >>> automaton = Automaton("yes|yay")
    >>> [automaton.accepts(state) for state in trie.read(automaton, START).tolist()]
    [True, False, False, False]
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self.vocab_size = len(token_bytes)
        ids = np.array([token for token, text in enumerate(token_bytes) if text], dtype=np.int64)
        texts = [text for text in token_bytes if text]
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        longest = max(map(len, texts), default=1)
        columns = np.array(texts, dtype=f"S{longest}").view(np.uint8).reshape(-1, longest).T
        beginnings = np.zeros_like(ids)  # of each token, the number in the level reached
        self._levels: list[Level] = []
        for length, column in enumerate(columns, start=1):
            left, ends = lengths >= length, lengths == length
            pairs, beginnings[left] = np.unique(beginnings[left] * 256 + column[left], return_inverse=True)
            self._levels.append(Level(pairs // 256, pairs % 256, ids[ends], beginnings[ends]))

    def read(self, automaton: Automaton, state: int) -> Numbers:
        """The state in which each token, read in this state, leaves the automaton.

        Shapes: (vocab_size,), DEAD where the id spells nothing.
        """
        after = np.full(self.vocab_size, DEAD)
        states = np.array([state])
        for level in self._levels:
            found = np.flatnonzero(np.bincount(states))  # as np.unique, without sorting
            rows = np.stack([automaton.row(number) for number in found.tolist()])
            states = rows[np.searchsorted(found, states)[level.before], level.byte]
            after[level.tokens] = states[level.ends]
            if not states.any():  # all DEAD
                break
        return after
