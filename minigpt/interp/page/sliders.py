"""What the page's sliders show, computed by the sampler's own processors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minigpt.sampler.processors import ORDER, Processor, Temperature, TopK, TopP


@dataclass(frozen=True)
class Sliders:
    """Temperature, top-k and top-p in the order in which the sampler applies them; 1, 0 and 1 are off.

    The page does the same in JavaScript, from the same logits, in float64 as well: tests hold one against the other.

    >>> import torch
    >>> logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    >>> Sliders(top_p=0.6)(logits)
    tensor([0.6250, 0.3750, 0.0000, 0.0000], dtype=torch.float64)
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def processors(self) -> list[Processor]:
        """Those that are on."""
        steps: dict[type, Processor] = {Temperature: Temperature(self.temperature)}
        if self.top_k:
            steps[TopK] = TopK(self.top_k)
        if self.top_p != 1:
            steps[TopP] = TopP(self.top_p)
        return [steps[step] for step in ORDER if step in steps]

    def __call__(self, logits: Tensor) -> Tensor:
        """The probabilities of all tokens; those of 0 are not kept: (V,)  ->  (V,)."""
        rows, tokens = logits[None], logits.new_zeros((1, 1)).long()
        for processor in self.processors:
            rows = processor(rows, tokens)
        return rows[0].softmax(-1)
