"""Text that must match a regular expression: tokens after which it no longer could are masked.

Source: Willard and Louf 2023 (Efficient guided generation for large language models), section 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from minigpt.lazy import Tensor, torch
from minigpt.lazy import numpy as np
from minigpt.sampler.regex.automaton import DEAD, MAX_STATES, START, Automaton, reachable, require_room
from minigpt.sampler.regex.token_trie import Numbers, TokenTrie

# Shapes below:  B rows · S tokens so far, prompt included · V vocabulary

REMEMBERED = 500  # masks, and texts; with GPT-2's vocabulary a mask takes 50 kB


class Regex:
    """A regular expression that the generated text is to match as a whole, in terms of tokens.

    A token may be written if with further tokens some match can be completed: whatever is chosen, the text
    never runs into a dead end, even where the vocabulary cannot spell all that the pattern allows.

    Args:
        pattern: in the syntax of `minigpt.sampler.regex.pattern`. A text that goes on after a word begins
            with a space in GPT-2's tokens: allow for it, as in " ?(yes|no)".
        token_bytes: what each id of the vocabulary spells, which may be a part of a character; None for one
            that spells nothing: special and end tokens, and ids without a token.

    Raises:
        ValueError: the pattern is not well-formed, unsupported or too large (see `Automaton`), or no tokens
            spell a text that matches it.

    >>> regex = Regex("ab*", [b"a", b"b", b"abb", b"ba", None])
    >>> regex.mask([]).tolist(), regex.mask([0]).tolist()
    ([True, False, True, False, False], [False, True, False, False, False])
    >>> regex.matches([0, 1]), regex.complete([0, 1])  # it matches, but may go on
    (True, False)
    """

    def __init__(self, pattern: str, token_bytes: Sequence[bytes | None]) -> None:
        self.pattern = pattern
        self._token_bytes = tuple(token_bytes)
        self._automaton = Automaton(pattern)
        self._trie = TokenTrie(token_bytes)
        self._masks: dict[int, Tensor] = {}
        self._states: dict[tuple[int, ...], int] = {}
        self._live = None if self._spells_all() else self._live_states()
        if not self.mask([]).any():
            raise ValueError(
                f"regex {pattern!r}: the tokens of this vocabulary spell no text that matches it"
                + " but the empty one" * self.matches([])
            )

    def mask(self, new_tokens: Sequence[int]) -> Tensor:
        """Which tokens may follow a text: bool, (V,). None may follow one that cannot match any more."""
        state = self._state(tuple(new_tokens))
        if state not in self._masks:
            after = self._trie.read(self._automaton, state)
            allowed = after != DEAD if self._live is None else np.isin(after, self._live)
            _make_room(self._masks)
            self._masks[state] = torch.from_numpy(allowed)
        return self._masks[state]

    def matches(self, new_tokens: Sequence[int]) -> bool:
        """Whether a text matches as it is."""
        return self._automaton.accepts(self._state(tuple(new_tokens)))

    def complete(self, new_tokens: Sequence[int]) -> bool:
        """Whether a text matches and nothing can follow, so that it ends there."""
        return self.matches(new_tokens) and not self.mask(new_tokens).any()

    def __repr__(self) -> str:
        return f"Regex({self.pattern!r})"

    def _state(self, tokens: tuple[int, ...]) -> int:
        """The state after a text, found from that of the text without its last token if it is known."""
        if len(self._automaton) > MAX_STATES:  # "[ab]*a[ab]{40}" has 2 ** 40 of them
            self._automaton.forget()
            self._masks.clear()
            self._states.clear()
        known = tokens if tokens in self._states else tokens[:-1]
        state = self._states.get(known)
        if state is None:
            known, state = (), START
        for token in tokens[len(known) :]:
            state = self._read(state, token)
        _make_room(self._states)
        self._states[tokens] = state
        return state

    def _read(self, state: int, token: int) -> int:
        spelled = self._token_bytes[token] if token < len(self._token_bytes) else None
        return self._automaton.read(state, spelled) if spelled else DEAD

    def _spells_all(self) -> bool:
        """Whether tokens can spell whatever matches, byte by byte if need be."""
        return {bytes([byte]) for byte in self._automaton.alphabet} <= set(self._token_bytes)

    def _live_states(self) -> Numbers:
        """All states from which tokens lead to a match; no text reaches any that is not seen here."""
        before: dict[int, set[int]] = defaultdict(set)

        def after(state: int) -> Iterable[int]:
            require_room(len(self._automaton), self.pattern)
            found: list[int] = np.unique(self._trie.read(self._automaton, state)).tolist()
            for other in found:
                before[other].add(state)
            return found

        states = reachable([START], after)
        matching = [state for state in states if self._automaton.accepts(state)]
        return np.array(sorted(reachable(matching, before.__getitem__)), dtype=np.int64)


def _make_room(memory: dict[int, Tensor] | dict[tuple[int, ...], int]) -> None:
    if len(memory) >= REMEMBERED:  # rare, and quickly found again
        memory.clear()
