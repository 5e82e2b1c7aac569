"""How large the inputs of each linear layer get, measured on text that the model writes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ROWS, TOKENS, ROUNDS = 4, 64, 3


@torch.no_grad()
def largest_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], vocab_size: int, context: int
) -> dict[str, Tensor]:
    """The largest magnitude of every input channel of each of the model's `layers`.

    No data is needed: from random tokens, every token is sampled anew from the model's prediction, a few times
    over. The numbers are always the same for the same model.

    Shapes: (in,) each
    """
    random = torch.Generator("cpu").manual_seed(0)
    tokens = torch.randint(vocab_size, (ROWS, min(TOKENS, context)), generator=random, device="cpu")
    for _ in range(ROUNDS):
        predicted: Tensor = model(tokens)[:, :-1].float().softmax(-1)
        sampled = torch.multinomial(predicted.flatten(0, 1), 1, generator=random)
        tokens = torch.cat([tokens[:, :1], sampled.view(ROWS, -1)], 1)
    return _watch(model, layers, tokens)


def _watch(model: nn.Module, layers: Mapping[str, nn.Module], tokens: Tensor) -> dict[str, Tensor]:
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = inputs[0].abs().flatten(0, -2).amax(0)

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
