"""AdamW as GPT-2-like models are trained with it, and its learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def adamw(model: nn.Module, lr: float, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """AdamW over all that is trainable; only matrices decay, not biases and norms.

    Its state exists from the start, so that a checkpoint can be read straight into it.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101); the groups as in Radford et al. 2018, section 4.1.
    """
    learned = list(trainable(model))
    groups = [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)
    for p in learned:
        optimiser.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimiser


def state_by_name(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What the optimiser remembers of each parameter, under the parameter's name; shared, not copied."""
    return {name: optimiser.state[p] for name, p in model.named_parameters() if p.requires_grad}


def learning_rate(step: int, steps: int, warmup: int, highest: float) -> float:
    """Up in a line over `warmup` steps, then down to zero along a cosine; `step` counts from 0.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5; GPT (Radford et al. 2018) goes to zero, too.

    >>> [round(learning_rate(step, 10, 2, 1.0), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = lr


def trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)
