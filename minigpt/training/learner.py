"""One training step: read windows, compute the loss and its gradients, update the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minigpt.data.windows import Windows
from minigpt.model import GPT2
from minigpt.training import optimiser as optim
from minigpt.training.distributed import Processes, Replicated, Sharded
from minigpt.training.hardware import autocast
from minigpt.training.schedule import cosine, wsd
from minigpt.training.settings import Settings
from minigpt.training.validation import sum_loss

MAX_GRAD_NORM = 1.0  # gradient clipping norm; GPT-3 (Brown et al. 2020, appendix B) and its followers


def next_tokens(rows: Tensor) -> Tensor:
    """What is to be predicted of some rows: each token but the first, (B, T + 1)  ->  (B, T)."""
    return rows[:, 1:]


class Learner:
    """A model and its optimisers, trained on windows of a text.

    Everything random in a step follows from the seed and the step's number, and so does what is read. That
    is why weights, optimiser states and the number of steps are all that a checkpoint needs.

    Args:
        model: on the device to train on.
        windows: the text.
        settings: with every default filled in.
        dtype: of matrix products.
        processes: which of how many this one is.
        targets: what is to be predicted of some rows: tokens, or the distributions of a `Distillation`.
    """

    def __init__(
        self,
        model: GPT2,
        windows: Windows,
        settings: Settings,
        dtype: str,
        processes: Processes,
        targets: Callable[[Tensor], Tensor] = next_tokens,
    ) -> None:
        self.windows, self.settings, self.processes, self.targets = windows, settings, processes, targets
        self.device = model.device
        self.autocast = partial(autocast, self.device, dtype)
        if settings.gradient_checkpointing:
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if settings.compile:
            model.compile()
        self.parallel = Sharded(model) if settings.shard else Replicated(model, processes)
        self.model = self.parallel.model
        self.optimisers = _optimisers(self.model, settings)
        self.model.train()

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """Trains on the windows of one step, counted from 0; this process's loss, and the gradient norm."""
        s = self.settings
        torch.manual_seed(_seed(s.seed, step, self.processes.rank))  # for dropout
        optim.set_learning_rate(self.optimisers, _lr_factor(step, s))
        loss = torch.zeros((), device=self.device)
        for part in range(s.accumulate):
            first = (step * s.accumulate + part) * s.batch_size
            rows = self.windows.rows(self.processes.share(range(first, first + s.batch_size)))
            with self.parallel.last_of_step(part == s.accumulate - 1):
                loss += self._learn(self._moved(rows))
        norm = torch.nn.utils.clip_grad_norm_(optim.trainable(self.model), MAX_GRAD_NORM)
        for optimiser in self.optimisers:
            optimiser.step()
        self.model.zero_grad()
        return loss, norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _moved(self, rows: Tensor) -> Tensor:
        """Rows on the device; to a GPU from pinned memory, so that it need not be waited for."""
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True)

    def _learn(self, rows: Tensor) -> Tensor:
        """Accumulates gradients; the share of these rows in the step's loss. Shapes: (B, T + 1)."""
        targets = self.targets(rows)
        with self.autocast():
            logits = self.parallel.forward(rows[:, :-1])
        loss = sum_loss(logits, targets) / rows[:, 1:].numel() / self.settings.accumulate
        torch.autograd.backward(loss)
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold, by reference; frozen weights are the base's and stay there."""
        weights = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return {"model": weights, "optimiser": optim.state_by_name(self.model, self.optimisers)}


def _optimisers(model: GPT2, s: Settings) -> optim.Optimisers:
    assert s.lr is not None
    if s.optimizer == "adamw":
        return [optim.adamw(optim.trainable(model), s.lr, s.weight_decay, s.beta2)]
    assert s.adamw_lr is not None
    return optim.muon_and_adamw(model, s.lr, s.weight_decay, s.adamw_lr, s.beta2)


def _lr_factor(step: int, s: Settings) -> float:
    """The share of the peak learning rates that a step is given."""
    assert s.warmup is not None
    if s.schedule == "cosine":
        return cosine(step, s.steps, s.warmup)
    assert s.decay is not None
    return wsd(step, s.steps, s.warmup, s.decay)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1  # torch takes 63 bits
