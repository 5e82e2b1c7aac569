"""A linear layer in GPT-2's Conv1D layout: its weight is transposed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minigpt.kernels import product


class Linear(nn.Module):
    """x @ weight + bias, with the weight as (in, out); torch's own nn.Linear keeps it as (out, in).

    OpenAI stored GPT-2 this way round (as `Conv1D`), so tensors go from file to model as they are.

    The weights are for the model to initialise, or to load.

    >>> Linear(2, 6)
    Linear(in=2, out=6)
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., in)  ->  (..., out)."""
        return product(x, self.weight.t(), self.bias)

    def extra_repr(self) -> str:
        n_in, n_out = self.weight.shape
        return f"in={n_in}, out={n_out}"
