"""The tuned lens: each layer's stream is translated into the last layer's terms before it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from minigpt.atomic import all_or_none
from minigpt.cli.progress import bar
from minigpt.config import GPT2Config
from minigpt.interp.points import layer_of
from minigpt.interp.record import differentiable, record_text, require_gradients
from minigpt.interp.tensor_file import FileChunks
from minigpt.model import GPT2

# Shapes below:  B rows · T tokens · D n_embd · L layers


class TunedLens(nn.Module):
    """x + x A_l + b_l for the stream after l layers (0 is the embedding); the last layer stays as it is.

    A and b start at zero, so that an untrained one is the logit lens.

    Source: Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens".
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.n_layer, config.n_embd, config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_layer, config.n_embd))

    def forward(self, x: Tensor, name: str) -> Tensor:
        """The translated stream of a point: (..., D)  ->  (..., D).

        Raises:
            ValueError: the point is not between two layers.
        """
        layer = _layers_before(name)
        if layer == len(self.weight):
            return x
        return x + x @ self.weight[layer].to(x) + self.bias[layer].to(x)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file atomically."""
        path = Path(path)
        with all_or_none(path.parent) as aside:
            save_file(
                {name: value.contiguous() for name, value in self.state_dict().items()}, aside / path.name
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: GPT2Config) -> TunedLens:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is no tuned lens, or that of a model of another shape.
        """
        values = {name: tensors[0] for name, tensors in FileChunks(Path(path)).items()}
        lens = cls(config)
        expected = {name: value.shape for name, value in lens.state_dict().items()}
        if {name: value.shape for name, value in values.items()} != expected:
            raise ValueError(
                f"{path} is no tuned lens of a model with n_layer={config.n_layer}, n_embd={config.n_embd}"
            )
        lens.load_state_dict(values)
        return lens


@differentiable()
def fit_tuned_lens(model: GPT2, batches: Iterable[Tensor], *, learning_rate: float = 1e-3) -> TunedLens:
    """Trains the translators to predict what the last layer predicts: KL(p_last || q_l), the mean over layers.

    Ctrl-C ends it early and keeps what was learned.

    Args:
        model: which stays as it is.
        batches: token ids (B, T), one batch a step; some hundred steps of a thousand tokens do.
        learning_rate: of Adam.

    Raises:
        ValueError: there is no batch, or the model's weights are quantized.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> text = torch.tensor([tokenizer.encode("Once upon a time there was a king.")])
    >>> lens = fit_tuned_lens(model, [text] * 3)
    """
    require_gradients(model)
    lens = TunedLens(model.config).to(model.device)
    adam = torch.optim.Adam(lens.parameters(), lr=learning_rate)
    names = ["embed", *(f"blocks.{i}.resid_post" for i in range(model.config.n_layer))]
    steps = 0
    try:
        for batch in bar(batches, desc="tuned lens", leave=False):
            steps += 1
            seen = record_text(model, batch, *names)
            last = _logprobs(model, seen[names[-1]])
            losses = []
            for name in names[:-1]:
                guess = _logprobs(model, lens(seen[name].float(), name))
                losses.append((last.exp() * (last - guess)).sum(-1).mean())
            adam.zero_grad()
            torch.autograd.backward(torch.stack(losses).mean(), inputs=list(lens.parameters()))
            adam.step()
    except KeyboardInterrupt:
        return lens
    if not steps:
        raise ValueError("there was no batch to learn from (a generator can be read only once)")
    return lens


def _logprobs(model: GPT2, x: Tensor) -> Tensor:
    """As the model's own head would predict, with gradients to `x`."""
    normed = model.final_norm.forward(x.to(model.final_norm.weight.dtype))
    logits: Tensor = model.head.forward(normed, model.token_embedding.weight)
    return logits.float().log_softmax(-1)


def _layers_before(name: str) -> int:
    """After how many layers a point of the stream lies."""
    layer = layer_of(name)
    if name == "embed":
        return 0
    if layer is not None and name.endswith("resid_pre"):
        return layer
    if layer is not None and name.endswith("resid_post"):
        return layer + 1
    raise ValueError(f"a tuned lens translates embed, resid_pre and resid_post, not {name}")
