"""How many tokens to draft: as many as pay off, by what is accepted and by what passes cost on this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from time import perf_counter

from minigpt.sampler.engine.prefix import common_prefix

PLAIN = 2  # steps without drafts, to know what they cost
MARGIN = 1.2  # drafts must promise this much more than plain decoding, for what is measured is never exact
EVIDENCE = 3  # draft tokens that must have been judged, where that costs nothing
MEMORY = 0.85  # how much each step leaves of what earlier ones said about a text
FORGETTING = 0.98  # ... where nothing was drafted, so that in time it is tried again
MAX_REMEMBERED = (
    8  # draft tokens that are remembered: long drafts must not outweigh a text that turns to something new
)
ASSUMED_COST = 1 / 16  # of a plain step: what a draft token is assumed to add until that is measured
ASSUMED_WEIGHT = 4  # how strongly what is measured is held to that


@dataclass
class Acceptance:
    """How often the draft tokens of one text are accepted; half of them, as long as nothing is known."""

    accepted: float = 0.5
    offered: float = 1.0

    @property
    def rate(self) -> float:
        return min(0.99, self.accepted / self.offered)

    def add(self, accepted: int, offered: int) -> None:
        """Counts the tokens up to the first that was not accepted; with none offered what is known fades."""
        kept = MEMORY if offered else FORGETTING
        self.accepted = 0.5 * (1 - kept) + kept * self.accepted + accepted
        self.offered = (1 - kept) + kept * self.offered + offered
        excess = max(1.0, self.offered / MAX_REMEMBERED)
        self.accepted, self.offered = self.accepted / excess, self.offered / excess

    def tokens(self, n: int) -> float:
        """How many tokens a step is expected to add with n draft tokens: 1 + rate + ... + rate ** n."""
        return (1 - self.rate ** (n + 1)) / (1 - self.rate)


@dataclass
class StepCost:
    """What steps take, as a function of the number of draft tokens, fitted to the latest ones.

    A step with k > 0 draft tokens takes start + k * slope seconds; one with none is measured by itself, for
    products with a single row have kernels of their own.
    """

    plain: deque[float] = field(default_factory=lambda: deque(maxlen=9))  # seconds of steps without drafts
    drafted: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=9))  # (k, seconds)

    def add(self, k: int, seconds: float) -> None:
        if k == 0:
            self.plain.append(seconds)
        else:
            self.drafted.append((k, seconds))

    def curve(self) -> Callable[[int], float]:
        """What a step is expected to take, by its number of draft tokens; needs a step without drafts to go by.

        No step is expected to take less than one with fewer.
        """
        base = median(self.plain)
        if not self.drafted:
            return lambda k: base * (1 + k * ASSUMED_COST)
        mean_k = fmean(k for k, _ in self.drafted)
        center = median(seconds for _, seconds in self.drafted)
        # Least squares, held near base * ASSUMED_COST as long as all steps had about as many draft tokens.
        squares = ASSUMED_WEIGHT + sum((k - mean_k) ** 2 for k, _ in self.drafted)
        products = ASSUMED_WEIGHT * base * ASSUMED_COST + sum(
            (k - mean_k) * (t - center) for k, t in self.drafted
        )
        slope = max(0.0, products / squares)
        return lambda k: max(base, center + slope * (k - mean_k)) if k else base


@dataclass
class DraftLength:
    """Chooses the number of draft tokens, the same for all texts of a batch, for they are read in one pass.

    The number with the most expected tokens per second is chosen; none unless drafts promise `MARGIN` times the speed of plain decoding. What
    is accepted is measured for each text, what steps cost for each size of the batch anew.

    Args:
        most: how many tokens to draft at most.
        clock: returns seconds.
    """

    most: int
    clock: Callable[[], float] = perf_counter
    _acceptances: dict[int, Acceptance] = field(default_factory=dict)  # by the text's prompt
    _costs: dict[int, StepCost] = field(default_factory=dict)  # by the number of texts

    def choose(self, sequences: Sequence[int], rooms: Sequence[int], *, untried: bool) -> int:
        """How many tokens to draft for these texts, of which each has room for some.

        Args:
            untried: whether what is accepted can only be known by trying.
        """
        longest, cost = min(self.most, max(rooms)), self._cost(len(sequences))
        if len(cost.plain) < PLAIN or longest < 1:
            return 0
        acceptances = [self.acceptance(sequence) for sequence in sequences]
        if not untried and fmean(a.offered for a in acceptances) < EVIDENCE:
            return 0
        seconds = cost.curve()  # fitted once, not for every k: this is asked at every step
        enough = MARGIN * len(acceptances) / seconds(0)  # tokens per second
        if sum(a.tokens(longest) for a in acceptances) < enough * seconds(1):
            return 0  # the tokens of the longest draft would not pay for the shortest

        def speed(k: int) -> float:
            tokens = (a.tokens(min(k, n)) for a, n in zip(acceptances, rooms, strict=True))
            return sum(tokens) / seconds(k)

        best = max(range(1, longest + 1), key=speed)
        return best if speed(best) > enough else 0

    def acceptance(self, sequence: int) -> Acceptance:
        return self._acceptances.setdefault(sequence, Acceptance())

    def record_step(self, n_sequences: int, k: int, seconds: float) -> None:
        """What a step of so many texts with k draft tokens took."""
        self._cost(n_sequences).add(k, seconds)

    def _cost(self, n_sequences: int) -> StepCost:
        return self._costs.setdefault(n_sequences, StepCost())


def matching(draft: Sequence[int], added: Sequence[int]) -> tuple[int, int]:
    """Of the draft tokens that can be judged by the tokens that were added: how many hold, and how many there are.

    They are judged up to the first that does not hold.

    >>> matching([5, 6, 7, 8], [5, 6, 9]), matching([5, 6, 7], [5, 6]), matching([], [5])
    ((2, 3), (2, 2), (0, 0))
    """
    holds = common_prefix(draft, added)
    return holds, min(holds + 1, len(draft), len(added))
