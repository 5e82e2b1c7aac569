"""The automaton of a regular expression: reads bytes, and knows whether a text matches, or still can.

It works on bytes because GPT-2's tokens are pieces of UTF-8 that may cut a character in two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple, TypeVar

from minigpt.lazy import numpy as np
from minigpt.sampler.regex.pattern import Alternation, Characters, Concatenation, Node, Repetition, parse

Place = TypeVar("Place", bound=Hashable)
ByteRange = tuple[int, int]  # both ends included
# The first and last code points whose UTF-8 is 1, 2, 3 and 4 bytes long.
LENGTHS = ((0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))
MAX_STATES = 20_000

DEAD, START = 0, 1  # states of an automaton: nothing can match any more; nothing has been read
MATCH = 0  # the state of a network in which the text matches


class Automaton:
    """A regular expression as a deterministic automaton, whose states are made when they are reached.

    States are numbers. From each but DEAD some text leads to a match, because it is so in the network.

    Raises:
        ValueError: the pattern is not well-formed (see `pattern.parse`) or too large (see `Network`).

    Source: Rabin and Scott 1959 (the subset construction).

    >>> automaton = Automaton("gr[ae]y|é+")
    >>> read = [automaton.read(START, text.encode()) for text in ("gray", "éé", "gr", "grow")]
    >>> [automaton.accepts(state) for state in read], [state != DEAD for state in read]
    ([True, True, False, False], [True, True, True, False])
    """

    def __init__(self, pattern: str) -> None:
        self._network = Network(pattern)
        self.forget()

    def forget(self) -> None:
        """Drops all states, of which there may be very many; DEAD and START alone keep their numbers."""
        # A state is the set of all states in which the network may be.
        self._sets = [frozenset[int](), self._network.start]
        self._numbers = {places: number for number, places in enumerate(self._sets)}
        self._row = cache(self._follow)

    def __len__(self) -> int:
        """How many states there are so far."""
        return len(self._sets)

    @property
    def alphabet(self) -> set[int]:
        """Every byte that is in some matching text."""
        return {byte for low, high, _ in self._network.edges for byte in range(low, high + 1)}

    def accepts(self, state: int) -> bool:
        """Whether what has been read matches."""
        return MATCH in self._sets[state]

    def row(self, state: int) -> np.typing.NDArray[np.int64]:
        """The state after each of the 256 bytes."""
        return self._row(state)

    def read(self, state: int, text: bytes) -> int:
        """The state after some more bytes."""
        for byte in text:
            state = int(self._row(state)[byte])
        return state

    def _follow(self, state: int) -> np.typing.NDArray[np.int64]:
        edges = [self._network.edge(place) for place in self._sets[state] if place != MATCH]
        borders = sorted({0, 256, *(edge.low for edge in edges), *(edge.high + 1 for edge in edges)})
        row = np.empty(256, dtype=np.int64)
        for first, end in pairwise(borders):  # bytes that no edge tells apart
            reached = [self._network.after(edge) for edge in edges if edge.low <= first <= edge.high]
            row[first:end] = self._number(frozenset().union(*reached))
        return row

    def _number(self, places: frozenset[int]) -> int:
        if places not in self._numbers:
            self._numbers[places] = len(self._sets)
            self._sets.append(places)
        return self._numbers[places]


class Edge(NamedTuple):
    """A state of a network that reads one byte."""

    low: int
    high: int
    goes_to: int


class Network:
    """A regular expression as a nondeterministic automaton: it may be in several states at once.

    It is built from the end of the pattern to its beginning, each state in front of those it leads to, so
    from every state some text leads to MATCH.

    Raises:
        ValueError: there would be more than 20,000 states, because {m,n} is written out.

    Source: Thompson 1968.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._states: list[Edge | list[int]] = [[]]  # a list goes to all of these at once, reading nothing
        self.edges: dict[Edge, int] = {}
        self._settled = cache(self._without_reading)
        self.start = self._settled(self._build(parse(pattern), MATCH))

    def edge(self, state: int) -> Edge:
        edge = self._states[state]
        assert isinstance(edge, Edge)
        return edge

    def after(self, edge: Edge) -> frozenset[int]:
        """Edges, and MATCH, that may come next."""
        return self._settled(edge.goes_to)

    def _build(self, node: Node, then: int) -> int:
        """Adds the states that read what the node describes and go on to `then`; returns the first."""
        match node:
            case Characters(ranges):
                return self._any([self._spelled(spelling, then) for r in ranges for spelling in utf8(*r)])
            case Concatenation(parts):
                for part in reversed(parts):
                    then = self._build(part, then)
                return then
            case Alternation(options):
                return self._any([self._build(option, then) for option in options])
            case Repetition(part, least, most):
                return self._repeated(part, least, most, then)

    def _repeated(self, part: Node, least: int, most: int | None, then: int) -> int:
        if most is None:
            loop = self._any([then, then])
            self._states[loop] = [self._build(part, loop), then]
            first = loop
        else:
            first = then
            for _ in range(most - least):
                first = self._any([self._build(part, first), then])
        for _ in range(least):
            before = self._build(part, first)
            if before == first:  # an empty part, and a million of them are still nothing
                break
            first = before
        return first

    def _spelled(self, spelling: Iterable[ByteRange], then: int) -> int:
        for low, high in reversed(list(spelling)):
            edge = Edge(low, high, then)  # shared: most characters end in the same ranges
            if edge not in self.edges:
                self.edges[edge] = self._add(edge)
            then = self.edges[edge]
        return then

    def _any(self, options: list[int]) -> int:
        return options[0] if len(options) == 1 else self._add(options)

    def _add(self, state: Edge | list[int]) -> int:
        require_room(len(self._states), self.pattern)
        self._states.append(state)
        return len(self._states) - 1

    def _without_reading(self, state: int) -> frozenset[int]:
        """Edges, and MATCH, where one may be in this state before the next byte is read."""

        def next_to(place: int) -> Iterable[int]:
            found = self._states[place]
            return () if isinstance(found, Edge) else found

        around = reachable([state], next_to)
        return frozenset(p for p in around if p == MATCH or isinstance(self._states[p], Edge))


def require_room(n_states: int, pattern: str) -> None:
    """Raises ValueError where no state may be added."""
    if n_states >= MAX_STATES:
        raise ValueError(
            f"regex {pattern!r} takes more than {MAX_STATES:,} states: lower the numbers in its {{m,n}}"
        )


def reachable(places: Iterable[Place], next_to: Callable[[Place], Iterable[Place]]) -> set[Place]:
    """All places to which steps lead from some of these, themselves included."""
    found = set(places)
    unvisited = list(found)
    while unvisited:
        new = set(next_to(unvisited.pop())) - found
        found |= new
        unvisited += new
    return found


def utf8(low: int, high: int) -> Iterator[list[ByteRange]]:
    """How UTF-8 spells the code points from `low` to `high`, as sequences of byte ranges.

    >>> list(utf8(0x41, 0x5A)), list(utf8(0xE9, 0x17F))
    ([[(65, 90)]], [[(195, 195), (169, 191)], [(196, 197), (128, 191)]])
    """
    for first, last in LENGTHS:
        if max(low, first) <= min(high, last):
            yield from _between(chr(max(low, first)).encode(), chr(min(high, last)).encode())


def _between(low: bytes, high: bytes) -> Iterator[list[ByteRange]]:
    """The spellings of one length from `low` to `high`."""
    if len(low) == 1:
        yield [(low[0], high[0])]
    elif low[0] == high[0]:
        yield from ([(low[0], low[0]), *rest] for rest in _between(low[1:], high[1:]))
    else:
        lowest, highest = b"\x80" * (len(low) - 1), b"\xbf" * (len(low) - 1)
        first, last = low[0], high[0]
        if low[1:] != lowest:
            yield from ([(first, first), *rest] for rest in _between(low[1:], highest))
            first += 1
        tail = _between(lowest, high[1:]) if high[1:] != highest else ()
        last -= high[1:] != highest
        if first <= last:
            yield [(first, last), *[(0x80, 0xBF)] * len(lowest)]
        yield from ([(high[0], high[0]), *rest] for rest in tail)
