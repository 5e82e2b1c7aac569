"""XTC: exclude top choices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from minigpt.lazy import Tensor, torch
from minigpt.options import option, require_in_range
from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.processors.processor import RULED_OUT, Processor, TextContext
from minigpt.sampler.seed import Seeded


@dataclass(frozen=True, kw_only=True)
class XTCOptions(Seeded):
    """Excluding top choices, for strategies that sample."""

    # fmt: off
    xtc_probability: float = option(0.0, "with probability P per step, exclude all top choices but the least likely of them "
        "(XTC); 0.5 is usual", group="sampling", above=0, most=1, off=0, metavar="P")
    xtc_threshold: float = option(0.1, "tokens of at least probability P are top choices",
        group="sampling", above=0, most=1, needs="xtc_probability", metavar="P")
    # fmt: on


@dataclass(frozen=True)
class XTC:
    """With some probability per step, excludes the most likely tokens and keeps the least likely of the top choices.

    At each step, with `probability`, all tokens of at least probability `threshold` are ruled out except the
    least likely of them. For a text's n-th new token that is decided by the n-th number of its random stream,
    so it is the same in any batch, and again when a draft is rejected. End tokens are no exception.

    Source: p-e-w, "Exclude Top Choices", text-generation-webui pull request 6335.

    >>> XTC(1.0, threshold=0.1)(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.0000, 0.0000, 0.2000]])
    """

    probability: float
    threshold: float = 0.1
    stream: RandomStream = field(default_factory=lambda: RandomStream(0, "", purpose="xtc"))
    prompt_length: int = 0
    keep: int = 1

    options: ClassVar[type] = XTCOptions

    def __post_init__(self) -> None:
        require_in_range(XTCOptions, xtc_probability=self.probability, xtc_threshold=self.threshold)

    @classmethod
    def for_text(cls, options: XTCOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.xtc_probability:
            seed, name = options.seed_of(context.request.seed), context.request.random_name
            stream = RandomStream(seed, name, context.index, purpose="xtc")
            yield cls(
                options.xtc_probability, options.xtc_threshold, stream, context.prompt_length, context.keep
            )

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if self.stream.uniform(tokens.size(1) - self.prompt_length) >= self.probability:
            return logits
        ranked, order = logits.sort(descending=True, stable=True)
        likely = ranked.softmax(-1) >= self.threshold  # (B, V), the likely ones first
        dropped = torch.zeros_like(likely)
        dropped[:, :-1] = likely[:, 1:]
        spare = (ranked > RULED_OUT).sum(-1, keepdim=True) - self.keep
        dropped &= torch.arange(logits.size(-1), device=logits.device) < spare
        return logits.masked_fill(dropped.scatter(1, order, dropped), RULED_OUT)
