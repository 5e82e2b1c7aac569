"""What can be counted in generated texts: how varied they are, how they repeat themselves, how human they look.

Texts are lists of tokens. All of it is plain counting, so that it can be checked by hand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, linear_regression

Tokens = Sequence[int]
Figures = dict[str, float]  # by name; NaN where there is nothing to measure

FLOOR = 0.1  # what stands for no match in BLEU, that one missing order may not make the whole 0
RANKS = 5000  # the rarer tokens are left out of Zipf's line


def ngrams(tokens: Tokens, n: int) -> Iterator[tuple[int, ...]]:
    """Every run of n tokens, in order.

    >>> list(ngrams([1, 2, 3], 2))
    [(1, 2), (2, 3)]
    """
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def distinct(sequences: Iterable[Tokens], n: int) -> float:
    """The share of runs of n tokens, of all texts together, that are new: 1 if none occurs twice.

    It falls as texts grow longer or more, so compare equal amounts only. NaN if there is no such run.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models".

    >>> distinct([[1, 2, 1], [1, 2]], 2)  # (1, 2), (2, 1), and (1, 2) again
    0.6666666666666666
    """
    found = [run for tokens in sequences for run in ngrams(tokens, n)]
    return len(set(found)) / len(found) if found else math.nan


def repetition(sequences: Iterable[Tokens], n: int = 4) -> float:
    """rep-n: the share of a text's runs of n tokens that it had before; the mean over the texts that have any.

    Source: Su et al. 2022, "A Contrastive Framework for Neural Text Generation", section 5.1; after Welleck
    et al. 2020.

    >>> repetition([[1, 2, 1, 2, 1, 2]], n=2)  # five pairs, two different ones
    0.6
    """
    shares = [1 - distinct([tokens], n) for tokens in sequences if len(tokens) >= n]
    return fmean(shares) if shares else math.nan


def ends_in_a_loop(tokens: Tokens) -> bool:
    """Whether the text ends in a phrase of two tokens or more, said three times in a row or more often.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", figure 9.

    >>> ends_in_a_loop([7, 1, 2, 1, 2, 1, 2]), ends_in_a_loop([1, 2, 1, 2])
    (True, False)
    """
    tokens = list(tokens)
    return any(
        tokens[-size:] == tokens[-2 * size : -size] == tokens[-3 * size : -2 * size]
        for size in range(2, len(tokens) // 3 + 1)
    )


def loops(sequences: Sequence[Tokens]) -> float:
    """The share of texts that end in a loop; see `ends_in_a_loop`."""
    return fmean(map(ends_in_a_loop, sequences)) if sequences else math.nan


def zipf(sequences: Iterable[Tokens]) -> float:
    """Zipf's coefficient s, where the token of rank r is r ** -s times as frequent as the first.

    Fitted by least squares on the logarithms of both; about 1 for human text. NaN for fewer than two tokens.

    Source: Holtzman et al. 2020, section 5.2; the ranks are cut off where their published code does it.

    >>> round(zipf([[1] * 12, [2] * 6, [3] * 4, [4] * 3]), 6)
    1.0
    """
    counts = Counter(token for tokens in sequences for token in tokens)
    frequencies = [count for _, count in counts.most_common(RANKS)]
    if len(frequencies) < 2:
        return math.nan
    log_ranks = [math.log(rank) for rank in range(1, len(frequencies) + 1)]
    return -linear_regression(log_ranks, list(map(math.log, frequencies))).slope


# ------------------------------------------------------------------------------ self-BLEU


def self_bleu(sequences: Sequence[Tokens], order: int = 4) -> float:
    """How alike the texts are, from 0 to 1: the mean BLEU of each with all the others as references.

    A text with nothing in it is left out; NaN if fewer than two are left.

    BLEU is the one for single sentences: an order that a text is too short for does not count, and one without
    a match counts as 0.1 matches, if any order has one.

    Sources: Zhu et al. 2018, "Texygen"; Papineni et al. 2002, "BLEU"; for the 0.1, Chen and Cherry 2014.

    >>> self_bleu([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]), self_bleu([[1, 2, 3], [4, 5, 6]])
    (1.0, 0.0)
    """
    sequences = [tokens for tokens in sequences if tokens]
    if len(sequences) < 2:
        return math.nan
    by_order = [_matches(sequences, n) for n in range(1, order + 1)]
    lengths = [len(tokens) for tokens in sequences]
    scores = [
        _bleu(
            [matches[i] for matches in by_order],
            len(tokens),
            _nearest(lengths[:i] + lengths[i + 1 :], len(tokens)),
        )
        for i, tokens in enumerate(sequences)
    ]
    return fmean(scores)


def _matches(sequences: Sequence[Tokens], n: int) -> list[int]:
    """For each text, its runs of n tokens that another has too, as often at most as that other has them."""
    counts = [Counter(ngrams(tokens, n)) for tokens in sequences]
    # Of each run: how often at most, and at second most, one text has it.
    most: dict[tuple[int, ...], tuple[int, int]] = {}
    for count in counts:
        for run, times in count.items():
            first, second = most.get(run, (0, 0))
            most[run] = (times, first) if times > first else (first, max(second, times))

    def elsewhere(run: tuple[int, ...], times: int) -> int:
        first, second = most[run]
        return second if times == first else first

    return [sum(min(times, elsewhere(run, times)) for run, times in count.items()) for count in counts]


def _nearest(lengths: Iterable[int], length: int) -> int:
    """The reference's length that BLEU compares with: the nearest, of two the shorter."""
    return min(lengths, key=lambda other: (abs(other - length), other))


def _bleu(matches: Sequence[int], length: int, reference_length: int) -> float:
    """The geometric mean of the shares that match, order by order; less for a text shorter than its reference."""
    if not any(matches):
        return 0.0
    totals = [length - n for n in range(min(len(matches), length))]
    shares = [(found or FLOOR) / total for found, total in zip(matches, totals, strict=False)]
    brevity = min(0.0, 1 - reference_length / length)
    return math.exp(brevity + fmean(map(math.log, shares)))
