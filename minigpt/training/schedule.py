"""The learning rate over a run, as a share of its peak: warm-up, then cosine decay, or a plateau and a decay."""

from __future__ import annotations

import math


def cosine(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate at a step: up in a line, then down to zero along a cosine.

    Args:
        step: counted from 0.
        steps: of the whole run.
        warmup: steps until the share is 1.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5; GPT (Radford et al. 2018) goes to zero, too.

    >>> [round(cosine(step, 10, 2), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def wsd(step: int, steps: int, warmup: int, decay: int) -> float:
    """The share of the peak learning rate at a step: up in a line, constant, at the end down in a line to zero.

    Until the decay begins, nothing depends on `steps`: a run can be ended at any time by a decay, or continued.

    Args:
        step: counted from 0.
        steps: of the whole run.
        warmup: steps until the share is 1.
        decay: steps at the end over which it falls.

    Source: Hu et al. 2024 (arXiv:2404.06395), section 4; a straight decay to zero as Hägele et al. 2024
    (arXiv:2405.18392) measured it.

    >>> [round(wsd(step, 10, 2, 4), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, decay))
