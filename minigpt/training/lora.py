"""LoRA: fine-tuning by a low-rank pair beside each linear layer, while the model itself stays frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.kernels import product
from minigpt.linear import Linear
from minigpt.model import GPT2
from minigpt.weights import SkipInitialisation

# Shapes below:  in, out the features of a linear layer · r rank

ALPHA = 32.0  # Hu et al. 2021 for GPT-2, table 11


class LoraLinear(nn.Module):
    """A frozen linear layer and what is learnt on top of it: x·W + bias + scaling · x·A·B.

    `weight` and `bias` are the layer's own and keep their names, so the base's state dict is found in
    that of the adapted model. A and B are float32 even beside bfloat16 weights, for the small steps of
    an optimiser would be rounded away there.

    Source: Hu et al. 2021, section 4.1; B begins at zero, so that training begins at the base. A as PEFT
    and the paper's own code begin it; dropout is on the way into A only.
    """

    def __init__(self, base: Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.alpha, self.dropout = alpha, dropout
        n_in, n_out = base.weight.shape
        like: dict[str, Any] = {
            "dtype": torch.promote_types(base.weight.dtype, torch.float32),
            "device": base.weight.device,
        }
        bound = 1 / math.sqrt(n_in)
        self.lora_a = nn.Parameter(torch.empty(n_in, rank, **like).uniform_(-bound, bound))
        self.lora_b = nn.Parameter(torch.zeros(rank, n_out, **like))
        self.train(base.training)

    def extra_repr(self) -> str:
        n_in, n_out = self.weight.shape
        return f"in={n_in}, out={n_out}, rank={self.rank}"

    @property
    def rank(self) -> int:
        return self.lora_a.size(1)

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., in)  ->  (..., out)."""
        rows = x.reshape(-1, x.size(-1))
        y = product(rows, self.weight.t(), self.bias)
        narrow = F.dropout(rows, self.dropout, self.training) @ self.lora_a.to(rows.dtype)  # (rows, r)
        y = torch.addmm(y, narrow, self.lora_b.to(rows.dtype), alpha=self.scaling)
        return y.view(*x.shape[:-1], -1)

    def merged(self) -> Tensor:
        """The one weight that does the same: W + scaling · A·B, (in, out), in the base's dtype."""
        return (self.weight + self.scaling * (self.lora_a @ self.lora_b)).to(self.weight.dtype)


def attach(
    model: GPT2,
    rank: int,
    alpha: float = ALPHA,
    dropout: float = 0.0,
    layers: Iterable[str] | None = None,
) -> None:
    """Freezes a model and puts a trainable low-rank pair beside linear layers of its blocks.

    The logits stay what they were, to the bit, until the pairs are trained. A is sampled by torch's global
    generator.

    Args:
        model: changed in place; from outside, so that it need not know of LoRA.
        rank: r, the width of a pair.
        alpha: how much a pair counts: its product is scaled by alpha / rank.
        dropout: the share of a pair's input that is dropped in training.
        layers: the layers' names, such as "blocks.0.attn.qkv"; all linear layers unless given.

    Raises:
        ValueError: a number is out of range, there is no such layer, or the model has adapters already.

    >>> from minigpt import GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=1, n_head=4))
    >>> attach(model, rank=4)
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad][:2]
    ['blocks.0.attn.qkv.lora_a', 'blocks.0.attn.qkv.lora_b']
    """
    refuse_adapted(model)
    refuse_quantized(model)
    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, got {rank}")
    if not 0 < alpha < math.inf:
        raise ValueError(f"LoRA's alpha must be above 0, got {alpha}")
    if not 0 <= dropout < 1:
        raise ValueError(f"LoRA's dropout must be from 0 to below 1, got {dropout}")
    bases = linears(model)
    chosen = list(bases if layers is None else layers)
    unknown = [name for name in chosen if name not in bases]
    if unknown:
        raise ValueError(f"the model has no linear layer {unknown[0]!r}; it has {', '.join(bases)}")
    model.requires_grad_(False)
    for name in chosen:
        model.set_submodule(name, LoraLinear(bases[name], rank, alpha, dropout))


@torch.no_grad()
def merge(model: GPT2) -> GPT2:
    """A plain copy of an adapted model, its adapters added to its weights; in evaluation mode.

    It shares nothing with the model, which stays as it is and can be trained on. No random number is used.

    Raises:
        ValueError: the model has no adapters.

    >>> from minigpt import GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=1, n_head=4))
    >>> names = list(model.state_dict())
    >>> attach(model, rank=4)
    >>> list(merge(model).state_dict()) == names
    True
    """
    refuse_plain(model)
    with torch.device("meta"), SkipInitialisation():
        plain = GPT2(model.config)
    state = model.state_dict()
    copies = {name: state[name].clone() for name in plain.state_dict()}
    copies |= {f"{name}.weight": linear.merged() for name, linear in lora_linears(model).items()}
    plain.load_state_dict(copies, assign=True)
    return plain.eval()


def linears(model: GPT2) -> dict[str, Linear]:
    """The linear layers that have no adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def lora_linears(model: GPT2) -> dict[str, LoraLinear]:
    """The linear layers that have an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def refuse_adapted(model: GPT2) -> None:
    if lora_linears(model):
        raise ValueError("the model has LoRA adapters already; merge them first")


def refuse_quantized(model: GPT2) -> None:
    if model.quantization:
        raise ValueError("quantized weights cannot be fine-tuned: load the model without quantize=")


def refuse_plain(model: GPT2) -> None:
    if not lora_linears(model):
        raise ValueError("the model has no LoRA adapters; attach or load some first")
