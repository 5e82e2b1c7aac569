"""Weights in fewer bits: less memory to read for every token, which is what decoding on a CPU waits for.

Each kind of weights is one file: `int8` (in the order that functions in C read, `int8_in_c`) and `float16`. Norms, biases
and positions stay float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from minigpt.errors import InvalidRequest
from minigpt.inference import modules_in_c
from minigpt.inference.modules_in_c import AttentionInC, RowByRowAttentionInC
from minigpt.inference.row_by_row import RowByRowAttention
from minigpt.kernels import c_functions
from minigpt.linear import Linear
from minigpt.quantization.calibration import largest_inputs
from minigpt.quantization.float16 import Float16, Float16Embedding, Float16Head
from minigpt.quantization.huge_pages import in_huge_pages
from minigpt.quantization.int8 import Int8, Int8Embedding, Int8Head
from minigpt.quantization.modules import QuantizedModule, QuantizedTiedHead

if TYPE_CHECKING:
    from minigpt.model import GPT2

__all__ = [
    "EMBEDDINGS",
    "UNTIED_HEADS",
    "WEIGHT_FORMATS",
    "QuantizedTiedHead",
    "WeightFormat",
    "check_request",
    "in_huge_pages",
    "prepare",
    "quantize",
]


class WeightFormat(Protocol):
    """A way of keeping weights; they come in as (out, in), with the largest magnitude of each input (in,)."""

    rounds_inputs: bool  # whether `largest_input` matters

    def linear(self, weight: Tensor, bias: Tensor, largest_input: Tensor) -> nn.Module: ...
    def head(self, weight: Tensor, largest_input: Tensor) -> nn.Module: ...
    def embedding(self, weight: Tensor, largest_input: Tensor) -> QuantizedModule: ...


WEIGHT_FORMATS: dict[str, WeightFormat] = {"int8": Int8(), "float16": Float16()}
# The classes that there may be in a model.
EMBEDDINGS = (Float16Embedding, Int8Embedding)
UNTIED_HEADS = (Float16Head, Int8Head)


def check(kind: str) -> None:
    """Refuses a kind of weights that there is not."""
    if kind not in WEIGHT_FORMATS:
        raise InvalidRequest(f"quantize={kind!r} is not supported; there are {', '.join(WEIGHT_FORMATS)}")


def check_request(
    stored: str | None, wanted: str | None, device: torch.device, dtype: torch.dtype | None
) -> None:
    """Refuses what cannot be loaded, before anything is read.

    Raises:
        InvalidRequest: the kind is unknown or not the file's, or it is to run elsewhere than in float32 on a CPU.
    """
    kind = wanted or stored
    if kind is None:
        return
    check(kind)
    if stored and stored != kind:
        raise InvalidRequest(
            f"the weights are {stored} already, and cannot be made {kind}: quantize the original"
        )
    if device.type != "cpu" or dtype not in (None, torch.float32):
        wanted_dtype = str(dtype or torch.float32).removeprefix("torch.")
        raise InvalidRequest(
            f"quantize={kind!r} is for the CPU and float32 activations, not for {device.type} and {wanted_dtype}: "
            "leave out quantize, or device and dtype"
        )


@torch.no_grad()
def quantize(model: GPT2, kind: str) -> None:
    """Changes the weights of a model in place, one layer after the other, and puts it into evaluation mode.

    Raises:
        ValueError: there is no such kind, or the model is not one of plain float32 weights on the CPU.
    """
    check(kind)
    _check_plain(model)
    model.eval()
    layers = {name: model.get_submodule(name) for name in layer_names(model)}
    if WEIGHT_FORMATS[kind].rounds_inputs:
        config = model.config
        inputs = largest_inputs(model, {**layers, "head": model.head}, config.vocab_size, config.n_positions)
    else:
        inputs = dict.fromkeys([*layers, "head"], torch.empty(0))
    with in_huge_pages():
        replace_modules(model, WEIGHT_FORMATS[kind], inputs)
    model.quantization = kind


def prepare(model: GPT2, kind: str) -> None:
    """Puts modules for quantized weights into a model on "meta", which is going to be loaded."""
    # Only shapes count there: a tensor with a number for each input stands for the largest inputs.
    inputs = {name: cast(Linear, model.get_submodule(name)).weight[:, 0] for name in layer_names(model)}
    replace_modules(model, WEIGHT_FORMATS[kind], {**inputs, "head": model.final_norm.weight})


def replace_modules(model: GPT2, kind: WeightFormat, inputs: dict[str, Tensor]) -> None:
    """Puts a quantized module in the place of each linear layer, of the tokens' embedding and of the head, one after the
    other, so that only one weight is there twice. Norms, activation functions and attention call functions in C, too, where
    there are such.
    """
    for name in layer_names(model):
        layer = cast(Linear, model.get_submodule(name))
        model.set_submodule(name, kind.linear(layer.weight.detach().t(), layer.bias.detach(), inputs[name]))
    embedding = kind.embedding(model.token_embedding.weight.detach(), inputs["head"])
    if model.config.tie_word_embeddings:
        model.set_submodule("head", QuantizedTiedHead(embedding.multiply))
    else:
        own = cast(Tensor, model.head.weight).detach()
        model.set_submodule("head", kind.head(own, inputs["head"]))
    model.set_submodule("token_embedding", embedding)
    if c_functions.available():
        modules_in_c.put_into(model, RowByRowAttentionInC if kind.rounds_inputs else AttentionInC)
    if kind.rounds_inputs:  # there may be no functions in C, or a block that they are not for
        for block in model.blocks:
            attend_row_by_row(block.attn)
    model.eval().requires_grad_(False)  # new modules are in training mode


def attend_row_by_row(attn: Any) -> None:
    """Has attention give each row the bits that it gives alone."""
    sdpa = attn.sdpa
    if not isinstance(sdpa, RowByRowAttention):
        attn.sdpa = RowByRowAttention(sdpa.scale, sdpa.dropout)


def layer_names(model: GPT2) -> list[str]:
    """The linear layers, by their place in the model."""
    parts = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
    return [f"blocks.{layer}.{part}" for layer in range(model.config.n_layer) for part in parts]


def _check_plain(model: GPT2) -> None:
    if model.quantization:
        raise ValueError(f"the model is quantized already: its weights are {model.quantization}")
    for name in layer_names(model):
        kind = type(model.get_submodule(name))
        if kind is not Linear:
            raise ValueError(
                f"{name} is of class {kind.__name__}: merge adapters first, only plain models can be quantized"
            )
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(
                f"only float32 weights on the CPU can be quantized, and {name} is {dtype} on {parameter.device.type}"
            )
        if not parameter.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite: such a model cannot be quantized")
