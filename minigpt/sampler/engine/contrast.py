"""Subtracting a worse prediction from a better one, among the tokens that the better one finds plausible."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.lazy import Tensor
from minigpt.options import option
from minigpt.sampler.choosing import Choosing
from minigpt.sampler.engine.reader import Prediction


@dataclass(frozen=True, kw_only=True)
class ContrastMixin(Choosing):
    """The option of every strategy that contrasts two predictions."""

    relative_top: float = option(
        0.1, "plausibility constraint of contrasting strategies: keep tokens at least A times as likely as the most"
        " likely one", group="strategy", least=0, most=1, metavar="A",
    )  # fmt: skip


def contrast(logits: Tensor, better: Tensor, worse: Tensor, relative_top: float) -> Prediction:
    """How much likelier the better prediction finds each plausible token; the others are ruled out.

    Plausible are tokens at least `relative_top` times as likely as the best. Without that constraint the
    winner would be some token that both find absurd, one a little less than the other. Where the options
    rule out every plausible token, the better prediction ranks the others.

    Shapes: the model's own logits (B, V), log-probabilities (B, V) twice; the scores are in nats

    Source: Li et al. 2022, "Contrastive Decoding", section 3.3.

    >>> import torch
    >>> better, worse = torch.tensor([[[0.5, 0.48, 0.02]], [[0.8, 0.199, 0.001]]]).log()
    >>> contrast(better, better, worse, relative_top=0.1).scores
    tensor([[-0.4700,  0.8805,    -inf]])
    """
    probabilities = better.exp()
    implausible = probabilities < relative_top * probabilities.amax(-1, keepdim=True)
    scores = (better - worse).masked_fill(implausible, float("-inf"))
    return Prediction(logits, scores, fallback_scores=better)
