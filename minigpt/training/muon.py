"""Muon for the matrices inside GPT-2's blocks: momentum, made orthogonal before it is applied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

QKV = "attn.qkv.weight"


class BlockMuon(torch.optim.Muon):
    """PyTorch's Muon, which takes the one matrix of queries, keys and values as the three that it is.

    Each of the three has a meaning of its own, and gradients of its own size (in a new model of the bundled
    shape, those of the values are 30 to 70 times those of queries and keys): one orthogonal matrix out of all
    three would let the largest decide. Our matrices are (in, out), so the three lie side by side as columns.

    For the update itself it does not matter which way round a matrix is stored: the orthogonal factor of a
    transpose is the transpose of the factor, and the scale below depends on the longer side only.

    Updates have AdamW's typical size (0.2 for each weight, times the learning rate), so that learning rates
    and weight decays found for one serve the other.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale: Liu et
    al. 2025 (arXiv:2502.16982), section 2.2.

    Args:
        matrices: by name; whole or sharded (DTensor, which then exchanges them in each of the five iterations that make
            one orthogonal).
        lr: the learning rate.
        weight_decay: taken off at every step, times the learning rate.

    >>> matrix = nn.Parameter(torch.zeros(2, 2))
    >>> muon = BlockMuon({"up.weight": matrix}, lr=1.0, weight_decay=0.0)
    >>> matrix.grad = torch.tensor([[50.0, 0.0], [0.0, 10.0]])
    >>> muon.step()
    >>> moved = matrix.detach().diagonal()
    >>> [0.15 < -float(one) < 0.35 for one in moved]  # both directions about equally far
    [True, True]
    """

    def __init__(self, matrices: Mapping[str, nn.Parameter], lr: float, weight_decay: float) -> None:
        self.matrices = dict(matrices)
        # Views of the model's own memory: to update a part is to update the matrix.
        self.parts = {
            name: [nn.Parameter(part) for part in matrix.detach().chunk(_n_parts(name), dim=1)]
            for name, matrix in matrices.items()
        }
        params = [part for parts in self.parts.values() for part in parts]
        group: dict[str, Any] = {"params": params, "initial_lr": lr}
        super().__init__([group], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        for part in params:  # from the start, so that a checkpoint can be read straight into it
            self.state[part] = {"momentum_buffer": torch.zeros_like(part)}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every matrix by its gradient."""
        for name, matrix in self.matrices.items():
            assert matrix.grad is not None
            for part, grad in zip(self.parts[name], matrix.grad.chunk(_n_parts(name), dim=1), strict=True):
                part.grad = grad
        super().step(closure)  # type: ignore[no-untyped-call]
        for part in (part for parts in self.parts.values() for part in parts):
            part.grad = None  # or it would keep the memory of the matrix's gradient

    def state_by_name(self) -> dict[str, dict[str, Tensor]]:
        """The momentum of every part, under its matrix's name and the part's number."""
        parts = ((name, i, part) for name, some in self.parts.items() for i, part in enumerate(some))
        return {f"{name}.{i}": self.state[part] for name, i, part in parts}


def block_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable matrices inside the blocks, by name: what Muon is for.

    Embeddings are matrices too, but each row is a token's own, and most rows have no gradient in a step; they are
    left to AdamW, as is the head.

    >>> from minigpt import GPT2, GPT2Config
    >>> list(block_matrices(GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=1, n_head=4))))
    ['blocks.0.attn.qkv.weight', 'blocks.0.attn.out.weight', 'blocks.0.mlp.up.weight', 'blocks.0.mlp.down.weight']
    """
    learned = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: p for name, p in learned if name.startswith("blocks.") and p.dim() == 2}


def _n_parts(name: str) -> int:
    return 3 if name.endswith(QKV) else 1
