"""Weights of 16 bits, multiplied by inputs of float32: half the memory to read, nearly nothing lost.

float16 keeps 11 significant bits, so a product differs from float32's by about 2e-4 of its size.

A matrix is multiplied in one of three ways: `PlainMatrix` says what is computed and runs anywhere, `PackedMatrix` is
torch's kernel, `MatrixInC` our function.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.kernels import c_functions
from minigpt.kernels.c_structs import CLinear, CTable
from minigpt.quantization.huge_pages import give_back_freed_memory
from minigpt.quantization.modules import (
    Packed,
    QuantizedEmbedding,
    QuantizedHead,
    QuantizedLinear,
    QuantizedModule,
    call_packed,
)

FLOAT16_MAX = torch.finfo(torch.float16).max


class Matrix:
    """A weight of 16 bits."""

    shape: torch.Size
    weight: Tensor  # float16 (out, in)

    def __call__(self, rows: Tensor) -> Tensor:
        """The product rows · weightᵀ: (rows, in)  ->  (rows, out)."""
        raise NotImplementedError

    def affine(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """The product, and the bias added if there is one: (rows, in), (out,)  ->  (rows, out)."""
        product = self(rows)
        return product if bias is None else product.add_(bias)


class PlainMatrix(Matrix):
    """A float16 weight, made float32 for each product: what the other two must equal to rounding. Runs anywhere."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.shape = weight, weight.shape

    def __call__(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight.float())


class PackedMatrix(Matrix):
    """The same in the order that fbgemm's kernel reads and makes float32 on the way; it holds the only copy."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
        finally:
            torch.backends.quantized.engine = engine
        give_back_freed_memory()

    def __call__(self, rows: Tensor) -> Tensor:
        return call_packed(torch.ops.quantized.linear_dynamic_fp16, rows, self.packed)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The plain form, made anew: float16 (out, in)."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self.packed)[0]
        return weight.half()


class MatrixInC(PlainMatrix):
    """A float16 weight that our function in C reads as it lies."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.contiguous())

    def affine(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        if c_functions.may_run() and c_functions.is_ordinary_tensor(rows):
            return c_functions.linear(rows, self.layer(bias))
        return super().affine(rows, bias)

    def layer(self, bias: Tensor | None) -> CLinear:
        """The layer as the functions take it."""
        return c_functions.plain_layer(self.weight, bias)


def affine(rows: Tensor, packed: Packed, bias: Tensor) -> Tensor:
    """The product rows · weightᵀ + bias. TorchScript, too: see `inference.scripted`.

    Shapes: (rows, in), (out,)  ->  (rows, out)
    """
    product: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, packed)
    return product.add_(bias)


@cache
def can_pack() -> bool:
    """Whether torch has fbgemm's kernel for this processor."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def matrix(weight: Tensor) -> Matrix:
    """A weight as this machine multiplies it fastest."""
    if weight.device.type != "cpu":
        return PlainMatrix(weight)
    if c_functions.available():
        return MatrixInC(weight)
    return PackedMatrix(weight) if can_pack() else PlainMatrix(weight)


class _Float16(QuantizedModule):
    """A module with a float16 weight (out, in)."""

    matrix: Matrix

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.set_weight(weight)

    def set_weight(self, weight: Tensor) -> None:
        self.matrix = matrix(weight)

    def affine(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        return self.matrix.affine(rows, bias)

    def layer(self) -> CLinear:
        """The layer as the functions in C take it."""
        matrix: Any = self.matrix
        return matrix.layer(self._buffers.get("bias"))  # type: ignore[no-any-return]


class Float16Linear(_Float16, QuantizedLinear):
    """A linear layer with a float16 weight."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight)
        self.register_buffer("bias", bias)


class Float16Head(_Float16, QuantizedHead):
    """The head of an untied model with a float16 weight."""


class Float16Embedding(_Float16, QuantizedEmbedding):
    """A table of float16 embeddings: to look up as it is, and as a matrix for a tied head."""

    def set_weight(self, weight: Tensor) -> None:
        super().set_weight(weight)
        self.weight = weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (B, T)  ->  (B, T, D)."""
        return F.embedding(tokens, self.weight).float()

    def table(self) -> CTable | None:
        return c_functions.plain_table(self.weight)


class Float16:
    """Weights of 16 bits, inputs as they are; see `WeightFormat`."""

    rounds_inputs = False

    def linear(self, weight: Tensor, bias: Tensor, largest_input: Tensor) -> nn.Module:
        return Float16Linear(_to_half(weight), bias)

    def head(self, weight: Tensor, largest_input: Tensor) -> nn.Module:
        return Float16Head(_to_half(weight))

    def embedding(self, weight: Tensor, largest_input: Tensor) -> QuantizedModule:
        return Float16Embedding(_to_half(weight))


def _to_half(weight: Tensor) -> Tensor:
    if weight.device.type != "meta" and weight.abs().max() > FLOAT16_MAX:
        raise ValueError(
            f"a weight of {weight.abs().max():.3g} exceeds float16's largest number {FLOAT16_MAX:.0f}: keep float32"
        )
    return weight.to(torch.float16, memory_format=torch.contiguous_format)
