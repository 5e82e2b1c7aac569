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
        """One-sided p-value: how often a text without a watermark has such a z-score or a higher one."""
        return 0.5 * math.erfc(self.z / math.sqrt(2))


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
