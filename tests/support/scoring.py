"""What the tests of scoring share: a short context, random tokens, and every log-probability computed by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from minigpt import GPT2

WINDOW = 8


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(23, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def alone(model: GPT2, tokens: list[int], i: int, reach: int) -> float:
    """The log-probability of token i from the `reach` tokens before it, by definition."""
    context = torch.tensor([tokens[max(0, i - reach) : i]])
    return float(model(context)[0, -1].double().log_softmax(-1)[tokens[i]])


def close(found: Tensor, expected: list[float] | Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        found.double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance
    )
