"""The optimisers that GPT-2-like models are trained with: AdamW, or Muon for the matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from minigpt.training.muon import BlockMuon, block_matrices

Optimisers = Sequence[torch.optim.Optimizer]


def muon_and_adamw(
    model: nn.Module, lr: float, weight_decay: float, adamw_lr: float, beta2: float
) -> Optimisers:
    """Muon over the matrices inside the blocks; AdamW over embeddings, norms, biases and an untied head.

    Args:
        model: a GPT-2, whole or sharded.
        lr: Muon's highest learning rate.
        weight_decay: applied to matrices, in both.
        adamw_lr: AdamW's highest learning rate.
        beta2: of AdamW, the decay rate of its mean of squared gradients.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".

    >>> from minigpt import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=4))
    >>> [type(one).__name__ for one in muon_and_adamw(model, 4e-3, 0.1, 2e-3, 0.95)]
    ['BlockMuon', 'AdamW']
    """
    matrices = block_matrices(model)
    taken = {id(p) for p in matrices.values()}
    rest = [p for p in trainable(model) if id(p) not in taken]
    muon = BlockMuon(matrices, lr, weight_decay)
    return [muon, adamw(rest, adamw_lr, weight_decay, beta2)] if rest else [muon]


def adamw(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, beta2: float
) -> torch.optim.AdamW:
    """AdamW as GPT-2-like models are trained with it: only matrices decay, not biases and norms.

    Its state exists from the start, so that a checkpoint can be read straight into it.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101); the groups as in Radford et al. 2018, section 4.1.

    >>> groups = adamw(nn.Linear(2, 3).parameters(), 1e-3, 0.1, 0.95).param_groups
    >>> [(group["weight_decay"], len(group["params"])) for group in groups]
    [(0.1, 1), (0.0, 1)]
    """
    learned = list(parameters)
    groups = [
        {"params": [p for p in learned if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group | {"initial_lr": lr} for group in groups if group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=True)
    for p in learned:
        optimiser.state[p] = {
            "step": torch.zeros((), dtype=torch.float32, device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    return optimiser


def state_by_name(model: nn.Module, optimisers: Optimisers) -> dict[str, dict[str, Tensor]]:
    """What the optimisers remember of each parameter, under the parameter's name; shared, not copied."""
    named: dict[str, dict[str, Tensor]] = {}
    for optimiser in optimisers:
        if isinstance(optimiser, BlockMuon):
            named |= optimiser.state_by_name()
        else:
            named |= {
                name: optimiser.state[p] for name, p in model.named_parameters() if p in optimiser.state
            }
    return named


def set_learning_rate(optimisers: Optimisers, share: float) -> None:
    """Gives every optimiser this share of its own highest learning rate."""
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["lr"] = share * group["initial_lr"]


def trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters that learn; those of an adapter's base do not."""
    return (p for p in model.parameters() if p.requires_grad)
