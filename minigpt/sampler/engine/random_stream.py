"""Drawing lots: the same for the same seed, whatever the device and whoever else draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class RandomStream:
    """A stream of random numbers of its own, fixed by a seed and the number of the text that draws.

    >>> RandomStream(7, 0).uniform(2).equal(RandomStream(7, 0).uniform(2))
    True
    """

    def __init__(self, seed: int, index: int) -> None:
        # Hashed together, so that (7, 1) and (8, 0) have nothing in common.
        mixed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
        # On the CPU, so that a GPU draws the same lots.
        self._generator = torch.Generator("cpu").manual_seed(mixed)

    def uniform(self, n: int) -> Tensor:
        """`n` numbers, at least 0 and below 1, float64."""
        return torch.rand(n, generator=self._generator, dtype=torch.float64, device="cpu")

    @staticmethod
    def draw(logits: Tensor, chances: Sequence[RandomStream]) -> Tensor:
        """One token per row, each as often as the softmax of its row says.

        One number u a row, and the first token at which the probabilities so far exceed u: float64, so
        that 50,000 small ones add up, and with "exceed" a token of probability 0 is never drawn.

        Shapes: (B, V) and B chances  ->  (B,)
        """
        where = torch.device("cpu") if logits.device.type == "mps" else logits.device  # MPS has no float64
        so_far = logits.to(where, torch.float64).softmax(-1).cumsum(-1)
        u = torch.cat([chance.uniform(1) for chance in chances]).to(where)
        # Scaled, for rounding may leave the sum a little off 1; u * sum < sum holds exactly as u < 1.
        chosen = torch.searchsorted(so_far, (u * so_far[:, -1])[:, None], right=True)[:, 0]
        # Only a row that is not made of numbers runs over its end; whoever asks will find NaN there.
        return chosen.clamp_max(logits.size(-1) - 1).to(logits.device)

    def draw_distinct(self, logits: Tensor, n: int) -> Tensor:
        """`n` different tokens of one row, drawn one after the other without putting back.

        Shapes: (V,)  ->  (n,), fewer where fewer have a probability

        Source: Kool et al. 2019 (the Gumbel-top-k trick), section 2.
        """
        gumbel = -(-self.uniform(logits.numel()).clamp_min(1e-300).log()).log()
        order = (logits.cpu().double() + gumbel).topk(min(n, logits.numel()))
        return order.indices[order.values > float("-inf")].to(logits.device)
