"""Detecting the watermark of a text by counting its green tokens."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from minigpt.lazy import torch
from minigpt.options import require_in_range
from minigpt.sampler.processors.watermark import (
    WATERMARK_KEY,
    WATERMARK_RATIO,
    WatermarkOptions,
    green_tokens,
)


@dataclass(frozen=True)
class Detection:
    """How many of a text's tokens are on the green list, and how unlikely that is without a watermark."""

    n_scored: int
    n_green: int
    ratio: float

    @property
    def green_fraction(self) -> float:
        return self.n_green / self.n_scored if self.n_scored else math.nan

    @property
    def z(self) -> float:
        """The z-score of the number of green tokens: standard deviations above chance; NaN for no tokens.

        Source: Kirchenbauer et al. 2023, equation 3.

        >>> round(Detection(n_scored=100, n_green=50, ratio=0.25).z, 3)
        5.774
        """
        deviation = math.sqrt(self.n_scored * self.ratio * (1 - self.ratio))
        return (self.n_green - self.ratio * self.n_scored) / deviation if self.n_scored else math.nan

    @property
    def p_value(self) -> float:
        """How often a text without a watermark has so many green tokens or more; NaN for no tokens.

        By the binomial distribution. The normal one, by which the paper and transformers go from z to this number, has
        thinner tails: 8 green tokens of 10 are by chance 14 times as frequent as it says, 25 of 50 five times.

        >>> f"{Detection(n_scored=10, n_green=8, ratio=0.25).p_value:.2g}"
        '0.00042'
        """
        return _binomial_tail(self.n_green, self.n_scored, self.ratio) if self.n_scored else math.nan


def _binomial_tail(least: int, n: int, p: float) -> float:
    """How often at least so many of n independent trials succeed, each with probability p."""
    if least <= 0:
        return 1.0
    if least <= n * p:  # the other tail is the smaller one
        return 1 - _binomial_tail(n - least + 1, n, 1 - p)
    choices = math.lgamma(n + 1) - math.lgamma(least + 1) - math.lgamma(n - least + 1)
    term = math.exp(choices + least * math.log(p) + (n - least) * math.log1p(-p))
    total = 0.0
    for successes in range(least, n + 1):
        total += term
        term *= (n - successes) / (successes + 1) * p / (1 - p)
    return total


@dataclass(frozen=True)
class WatermarkDetector:
    """Counts a text's green tokens, and tests whether they are more than expected by chance.

    Ratio and key must be those of the `Watermark`, the vocabulary size that of the model.

    Repeated bigrams count once, unless `count_repeats`: a phrase that repeats has the same green tokens
    again, which is no further evidence.

    Source: Kirchenbauer et al. 2023, section 4.
    """

    vocab_size: int
    ratio: float = WATERMARK_RATIO
    key: int = WATERMARK_KEY
    count_repeats: bool = False

    def __post_init__(self) -> None:
        require_in_range(WatermarkOptions, watermark_ratio=self.ratio, watermark_key=self.key)

    def __call__(self, tokens: Sequence[int]) -> Detection:
        """Scores all tokens of a text but the first."""
        pairs = list(pairwise(tokens))
        followers = defaultdict(list)
        for last, token in pairs if self.count_repeats else dict.fromkeys(pairs):
            followers[last].append(token)
        n_green = 0
        for last, following in followers.items():
            green = green_tokens(last, self.vocab_size, self.ratio, self.key)
            n_green += int(torch.isin(torch.tensor(following), green).sum())
        return Detection(sum(map(len, followers.values())), n_green, self.ratio)
