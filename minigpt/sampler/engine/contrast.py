"""Subtracting a worse prediction from a better one, among the tokens that the better one finds plausible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from minigpt.lazy import Tensor
from minigpt.options import option
from minigpt.sampler.choosing import Choosing
from minigpt.sampler.engine.decode_loop import Reads, decode_loop
from minigpt.sampler.events import Event, LanguageModel, Request

IMPLAUSIBLE = (
    1e4  # nats, by which implausible tokens stand behind; no score comes near it, and exp(-IMPLAUSIBLE) is 0
)


@dataclass(frozen=True, kw_only=True)
class ContrastMixin(Choosing):
    """The option and the loop of every strategy that contrasts two predictions."""

    relative_top: float = option(
        0.1, "plausibility constraint of contrasting strategies: keep tokens at least A times as likely as the most"
        " likely one", group="strategy", least=0, most=1, metavar="A",
    )  # fmt: skip

    def contrasted(
        self,
        model: LanguageModel,
        requests: Sequence[Request],
        reads: Callable[[LanguageModel], Reads],
    ) -> Iterator[Event]:
        """Continues every prompt by a reader whose scores are made by `contrast`."""
        # After the penalties, for only then is it known whether they leave a plausible token.
        cutting = replace(self, processors=(*self.processors, plausible_only))
        return decode_loop(model, requests, cutting, reads=reads)


def contrast(better: Tensor, worse: Tensor, relative_top: float) -> Tensor:
    """How much likelier the better prediction finds each plausible token; the others stand far behind.

    ContrastMixin are tokens at least `relative_top` times as likely as the best. Without that cut the winner
    would be some token that both find absurd, one a little less than the other. The others are not ruled
    out yet, but ranked by the better prediction: the options may rule out every plausible one.

    Shapes: log-probabilities (B, V) twice  ->  (B, V), in nats

    Source: Li et al. 2022, "Contrastive Decoding", section 3.3.

    >>> import torch
    >>> better, worse = torch.tensor([[[0.5, 0.48, 0.02]], [[0.8, 0.199, 0.001]]]).log()
    >>> plausible_only(contrast(better, worse, 0.1), torch.tensor([[0]]))
    tensor([[-0.4700,  0.8805,    -inf]])
    """
    probabilities = better.exp()
    plausible = probabilities >= relative_top * probabilities.amax(-1, keepdim=True)
    return (better - worse).where(plausible, better - IMPLAUSIBLE)


def plausible_only(logits: Tensor, tokens: Tensor) -> Tensor:
    """Rules out implausible tokens, unless nothing else is left: a processor of what `contrast` gives."""
    far = logits < -IMPLAUSIBLE / 2
    return logits.masked_fill(far & ~far.all(-1, keepdim=True), float("-inf"))
