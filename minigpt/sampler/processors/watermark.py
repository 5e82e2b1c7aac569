"""A watermark: a statistical mark that readers do not notice; `minigpt.evaluation.watermark` detects it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from minigpt.lazy import Tensor, torch
from minigpt.options import option, require_in_range
from minigpt.sampler.processors.processor import Processor, TextContext

WATERMARK_RATIO = 0.25
WATERMARK_KEY = 15485863  # the millionth prime; use a secret key of your own so that only you can detect it


@dataclass(frozen=True, kw_only=True)
class WatermarkOptions:
    """A watermark, for every strategy."""

    # fmt: off
    watermark: bool = option(False, "add a watermark detectable by minigpt detect-watermark", group="control")
    watermark_bias: float = option(2.0, "logit bias delta of the green list; larger is easier to detect "
        "and worse text", group="control", above=0, most=1e4, needs="watermark", metavar="BIAS")
    watermark_ratio: float = option(WATERMARK_RATIO, "green-list fraction gamma of the vocabulary",
        group="control", above=0, below=1, needs="watermark", metavar="SHARE")
    watermark_key: int = option(WATERMARK_KEY, "secret key, needed for detection",
        group="control", least=1, needs="watermark", metavar="N")
    # fmt: on


def green_tokens(last: int, vocab_size: int, ratio: float, key: int) -> Tensor:
    """The green list after token `last`: the random fraction of the vocabulary that a watermark favours.

    Sampled on the CPU whatever the device, so that text from a GPU is detected anywhere, and as
    transformers does there.

    Source: Kirchenbauer et al. 2023, algorithm 2, with the hash key * last.

    >>> green_tokens(5, vocab_size=12, ratio=0.25, key=7).shape
    torch.Size([3])
    """
    generator = torch.Generator("cpu").manual_seed(key * last % (2**64 - 1))
    return torch.randperm(vocab_size, generator=generator, device="cpu")[: int(vocab_size * ratio)]


@dataclass(frozen=True)
class Watermark:
    """Adds `bias` to the green list, a random fraction of the vocabulary that a hash of key and last token selects.

    The text then has more green tokens than expected by chance, which `WatermarkDetector` counts.

    Source: Kirchenbauer et al. 2023, algorithm 2 (a soft red list).
    """

    bias: float = 2.0
    ratio: float = WATERMARK_RATIO
    key: int = WATERMARK_KEY

    options: ClassVar[type] = WatermarkOptions

    def __post_init__(self) -> None:
        require_in_range(
            WatermarkOptions,
            watermark_bias=self.bias,
            watermark_ratio=self.ratio,
            watermark_key=self.key,
        )

    @classmethod
    def for_text(cls, options: WatermarkOptions, context: TextContext) -> Iterator[Processor]:
        if options.watermark:
            yield cls(options.watermark_bias, options.watermark_ratio, options.watermark_key)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        out = logits.clone()
        for row, last in enumerate(tokens[:, -1].tolist()):
            green = green_tokens(last, logits.size(-1), self.ratio, self.key)
            out[row, green.to(logits.device)] += self.bias
        return out
