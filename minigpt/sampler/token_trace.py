"""Why each token was written: what the model predicted, and what every stage of the processing made of that.

    requests = prepare(model, prompts, trace=True)
    for event in run(model, requests, strategy): ...      # TokenGenerated, BeamExtension: .trace
    completion.traces                                      # one for each of its tokens

A trace is made with its token and goes where the token goes. It holds numbers only, so whoever gets it can
change nothing of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from minigpt.lazy import Tensor

# Shapes below:  V vocabulary


@dataclass(frozen=True)
class TokenRank:
    """Where a token stands in a distribution.

    `rank` is 1 for the most likely token. `entropy` is the distribution's own, in bits: 2 ** entropy equally likely
    tokens would leave as much open.
    """

    probability: float
    rank: int
    entropy: float


@dataclass(frozen=True)
class StageTrace:
    """One stage: what a processor did to the logits.

    `removed` tokens were ruled out, which had the probability `mass` before it; after it the token that was
    chosen in the end has the probability `probability`.
    """

    stage: str
    removed: int
    mass: float
    probability: float


@dataclass(frozen=True)
class TokenTrace:
    """One token, before all stages and after the last; what they leave is renormalised."""

    before: TokenRank
    after: TokenRank
    stages: tuple[StageTrace, ...] = ()


def explain(logits: Tensor, stages: Sequence[tuple[str, Tensor]], token: int) -> TokenTrace:
    """The trace of a token that was chosen where the model's logits were these.

    Args:
        logits: the model's own, (V,).
        stages: the name of each stage in their order, and the logits that it left, (V,).
        token: the token that was chosen.

    >>> import torch
    >>> trace = explain(torch.tensor([2.0, 1.0, 1.0]), [("TopK", torch.tensor([2.0, 1.0, float("-inf")]))], 1)
    >>> trace.stages[0].removed, round(trace.before.probability, 2), round(trace.after.probability, 2)
    (1, 0.21, 0.27)
    """
    befores = [logits, *(after for _, after in stages)]
    traces = tuple(
        _stage(name, before, after, token) for (name, after), before in zip(stages, befores, strict=False)
    )
    return TokenTrace(rank(logits, token), rank(befores[-1], token), traces)


def rank(logits: Tensor, token: int) -> TokenRank:
    """Where a token stands in the distribution that the logits (V,) mean.

    >>> import torch
    >>> third = rank(torch.tensor([0.5, 0.25, 0.25]).log(), 2)
    >>> round(third.probability, 3), third.rank, round(third.entropy, 3)
    (0.25, 2, 1.5)
    """
    logprobs = logits.float().log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum().item() / math.log(2)  # 0 * -inf is NaN; it counts as 0
    place = 1 + int((logits > logits[token]).sum())
    return TokenRank(logprobs[token].exp().item(), place, abs(entropy))  # -0.0 would look odd


def _stage(name: str, before: Tensor, after: Tensor, token: int) -> StageTrace:
    gone = (before > float("-inf")) & (after == float("-inf"))
    mass = before.float().softmax(-1)[gone].sum().item()
    return StageTrace(name, int(gone.sum()), mass, after.float().log_softmax(-1)[token].exp().item())


def flag_style(stage: str) -> str:
    """A stage's name as the command line would write it.

    >>> flag_style("TopNSigma"), flag_style("XTC"), flag_style("my_own_stage")
    ('top-n-sigma', 'xtc', 'my-own-stage')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", "-", stage).lower()
