"""The DRY repetition penalty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from minigpt.lazy import Tensor, torch
from minigpt.options import option, require_in_range
from minigpt.sampler.option_values import TOKEN_IDS, containing
from minigpt.sampler.processors.processor import Processor, TextContext

LONGEST = 50  # tokens; a longer match counts as one of these, or the penalty would leave the range of float32


@dataclass(frozen=True, kw_only=True)
class DRYOptions:
    """The DRY repetition penalty, for every strategy."""

    # fmt: off
    dry_multiplier: float = option(0.0, "subtract M * BASE ** (n - LENGTH) from the logit of a token that would extend a "
        "repetition of n tokens (DRY); 0.8 is usual", group="control", above=0, most=1e4, off=0, metavar="M")
    dry_base: float = option(1.75, "growth of the penalty with each repeated token",
        group="control", least=1, most=5, needs="dry_multiplier", metavar="BASE")
    dry_allowed_length: int = option(2, "repetitions shorter than this are not penalized",
        group="control", least=1, below=2**31, needs="dry_multiplier", metavar="LENGTH")
    dry_sequence_breakers: Sequence[int] = option((), "no repetition extends across a token that "
        'contains this; a newline, ":", \'"\' and "*" are usual; repeatable',
        in_python='token ids across which no repetition extends; those of a newline, ":", \'"\' and "*" are usual', group="control", kind=TOKEN_IDS,
        collect=containing, needs="dry_multiplier", metavar="TEXT")
    # fmt: on


@dataclass(frozen=True)
class DRY:
    """Penalizes a token the more, the longer the repetition that it would extend ("don't repeat yourself").

    Where the last n tokens of the text occurred before, multiplier * base ** (n - allowed_length) is
    subtracted from the logit of the token that followed them there, if n is at least the allowed length. No
    match extends across one of the `breakers`, and breakers are not penalized: after a newline or a colon,
    counting starts again.

    Source: p-e-w, "DRY", text-generation-webui pull request 5677.

    >>> DRY(1.0, base=2.0, allowed_length=1)(torch.zeros(1, 4), torch.tensor([[0, 1, 2, 3, 0, 1]]))
    tensor([[ 0.,  0., -2.,  0.]])
    """

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    breakers: frozenset[int] = frozenset()

    options: ClassVar[type] = DRYOptions

    def __post_init__(self) -> None:
        require_in_range(
            DRYOptions,
            dry_multiplier=self.multiplier,
            dry_base=self.base,
            dry_allowed_length=self.allowed_length,
        )

    @classmethod
    def for_text(cls, options: DRYOptions, context: TextContext) -> Iterator[Processor]:
        if options.dry_multiplier:
            breakers = frozenset(options.dry_sequence_breakers)
            yield cls(options.dry_multiplier, options.dry_base, options.dry_allowed_length, breakers)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        breaks = torch.isin(tokens, tokens.new_tensor(sorted(self.breakers)))
        lengths = match_lengths(tokens, breaks)
        beyond = (lengths - self.allowed_length).to(logits.dtype)
        penalty = self.multiplier * torch.pow(self.base, beyond)
        penalty = penalty.masked_fill((beyond < 0) | breaks[:, 1:], 0)
        return logits - torch.zeros_like(logits).scatter_reduce(1, tokens[:, 1:], penalty, "amax")


def match_lengths(tokens: Tensor, breaks: Tensor) -> Tensor:
    """For each place but the last, how many tokens that end there equal those at the text's end.

    Shapes: (B, S), (B, S) where matches break off  ->  (B, S - 1), at most LONGEST

    >>> tokens = torch.tensor([[0, 1, 2, 3, 0, 1]])
    >>> match_lengths(tokens, tokens == 9)
    tensor([[0, 2, 0, 0, 0]])
    """
    last = tokens.size(1) - 1
    lengths = torch.zeros_like(tokens[:, :last])
    matching = torch.ones_like(breaks[:, :last])
    for back in range(min(LONGEST, last)):
        matching[:, :back] = False  # the text begins here
        at_end = tokens[:, last - back, None]
        matching[:, back:] &= (tokens[:, : last - back] == at_end) & ~breaks[:, last - back, None]
        if not matching.any():
            break
        lengths += matching
    return lengths
