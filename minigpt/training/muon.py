"""Muon for the matrices inside GPT-2's blocks: momentum, made orthogonal before it is applied."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

QKV = "attn.qkv.weight"
MOMENTUM = 0.95
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # of x, x·xᵀ·x and (x·xᵀ)²·x; Jordan et al. 2024


class BlockMuon(torch.optim.Optimizer):
    """Muon, which takes the one matrix of queries, keys and values as the three that it is.

    Each of the three has a meaning of its own, and gradients of its own size (in a new model of the bundled
    shape, those of the values are 30 to 70 times those of queries and keys): one orthogonal matrix out of all
    three would let the largest decide. Our matrices are (in, out), so the three lie side by side as columns.

    The steps are those of `torch.optim.Muon`, up to the rounding of products in bfloat16. That one makes one matrix after
    the other orthogonal; here all of one shape are taken together, since a GPU takes longer to start 40 small products
    than to compute them.

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
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for part in (part for parts in self.parts.values() for part in parts):
            by_shape.setdefault(part.shape, []).append(part)
        groups = [{"params": params, "initial_lr": lr} for params in by_shape.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        for part in (part for params in by_shape.values() for part in params):
            # from the start, so that a checkpoint can be read straight into it
            self.state[part] = {"momentum_buffer": torch.zeros_like(part)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every matrix by its gradient."""
        grads: dict[nn.Parameter, Tensor] = {}
        for name, matrix in self.matrices.items():
            assert matrix.grad is not None
            grads |= zip(self.parts[name], matrix.grad.chunk(_n_parts(name), dim=1), strict=True)
        for group in self.param_groups:  # the parts of one shape
            parts, lr = group["params"], group["lr"]
            gradients = [grads[part] for part in parts]
            means = [self.state[part]["momentum_buffer"] for part in parts]
            torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
            ahead = torch._foreach_lerp(gradients, means, MOMENTUM)  # Nesterov's
            updates = orthogonal(torch.stack(ahead))
            torch._foreach_mul_(parts, 1 - lr * group["weight_decay"])
            torch._foreach_add_(parts, updates.unbind(), alpha=-lr * 0.2 * math.sqrt(max(parts[0].shape)))

    def state_by_name(self) -> dict[str, dict[str, Tensor]]:
        """The momentum of every part, under its matrix's name and the part's number."""
        parts = ((name, i, part) for name, some in self.parts.items() for i, part in enumerate(some))
        return {f"{name}.{i}": self.state[part] for name, i, part in parts}


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, whose singular values are all near 1 (0.7 to 1.2).

    Five steps of a Newton-Schulz iteration, in bfloat16; its polynomial is steepest at 0, so that small singular
    values grow fast, and is not meant to converge.

    Shapes: (N, A, B)  ->  the same, bfloat16

    Source: Jordan et al. 2024.

    >>> singular = torch.linalg.svdvals(orthogonal(torch.diag_embed(torch.tensor([[30.0, 5.0]]))).float())
    >>> ((0.6 < singular) & (singular < 1.3)).all().item()
    True
    """
    is_tall = matrices.size(1) > matrices.size(2)
    x = matrices.bfloat16()
    x = x.mT if is_tall else x  # x·xᵀ is then the smaller of the two products
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


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
