"""Marking a text as written by a model, unseen by readers, and finding the mark again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from minigpt.sampler.processors.processor import require
from minigpt.sampler.strategy import WATERMARK_KEY, WATERMARK_RATIO


def green_tokens(last: int, vocab_size: int, ratio: float, key: int) -> Tensor:
    """The tokens that a watermark favours after token `last`: a random share of the vocabulary.

    Drawn on the CPU whatever the device, so that a text written on a GPU is recognised anywhere, and as
    transformers draws them there.

    Source: Kirchenbauer et al. 2023, algorithm 2, with the hash key * last.

    >>> green_tokens(5, vocab_size=12, ratio=0.25, key=7).shape
    torch.Size([3])
    """
    chance = torch.Generator("cpu").manual_seed(key * last % (2**64 - 1))
    return torch.randperm(vocab_size, generator=chance, device="cpu")[: int(vocab_size * ratio)]


def _check(ratio: float, key: int) -> None:
    require(0 < ratio < 1, "watermark_ratio", ratio, "above 0 and below 1")
    require(isinstance(key, int) and key >= 1, "watermark_key", key, "a whole number of at least 1")


@dataclass(frozen=True)
class Watermark:
    """Adds `bias` to the green tokens, a random share of the vocabulary that the last token and a key fix.

    The text then has more green tokens than chance would give it, which `WatermarkDetector` counts.

    Source: Kirchenbauer et al. 2023, algorithm 2 (a soft red list).
    """

    bias: float = 2.0
    ratio: float = WATERMARK_RATIO
    key: int = WATERMARK_KEY

    def __post_init__(self) -> None:
        require(0 < self.bias < math.inf, "watermark_bias", self.bias, "above 0")
        _check(self.ratio, self.key)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        out = logits.clone()
        for row, last in enumerate(tokens[:, -1].tolist()):
            green = green_tokens(last, logits.size(-1), self.ratio, self.key)
            out[row, green.to(logits.device)] += self.bias
        return out


@dataclass(frozen=True)
class Detection:
    """How many of a text's tokens are green, and how unlikely that is without a watermark."""

    n_scored: int
    n_green: int
    ratio: float

    @property
    def green_fraction(self) -> float:
        return self.n_green / self.n_scored if self.n_scored else math.nan

    @property
    def z(self) -> float:
        """By how many standard deviations the green tokens exceed what chance gives; NaN for no tokens.

        Source: Kirchenbauer et al. 2023, equation 3.

        >>> round(Detection(n_scored=100, n_green=50, ratio=0.25).z, 3)
        5.774
        """
        deviation = math.sqrt(self.n_scored * self.ratio * (1 - self.ratio))
        return (self.n_green - self.ratio * self.n_scored) / deviation if self.n_scored else math.nan

    @property
    def p_value(self) -> float:
        """How often a text without a watermark has such a z or a higher one."""
        return 0.5 * math.erfc(self.z / math.sqrt(2))


@dataclass(frozen=True)
class WatermarkDetector:
    """Counts a text's green tokens, and says how unlikely so many are without a watermark.

    Ratio and key must be those of the `Watermark`, the vocabulary size that of the model.

    Each pair of a token and the one before it counts once, unless `count_repeats`: a phrase said again has
    its colours again, which is no further evidence.

    Source: Kirchenbauer et al. 2023, section 4.
    """

    vocab_size: int
    ratio: float = WATERMARK_RATIO
    key: int = WATERMARK_KEY
    count_repeats: bool = False

    def __post_init__(self) -> None:
        _check(self.ratio, self.key)

    def __call__(self, tokens: Sequence[int]) -> Detection:
        """Judges a text by all its tokens but the first."""
        pairs = list(pairwise(tokens))
        followers = defaultdict(list)
        for last, token in pairs if self.count_repeats else dict.fromkeys(pairs):
            followers[last].append(token)
        n_green = 0
        for last, found in followers.items():
            green = green_tokens(last, self.vocab_size, self.ratio, self.key)
            n_green += int(torch.isin(torch.tensor(found), green).sum())
        return Detection(sum(map(len, followers.values())), n_green, self.ratio)
