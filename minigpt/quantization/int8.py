"""Weights of 8 bits: whole numbers and a scale for each output, multiplied by inputs rounded to 8 bits, too.

A product of integers is exact, so a row gives the same bits whatever rows are multiplied beside it: each row of
the input has a scale of its own. Some inputs are far larger than the others (GPT-2 has a few such channels), and
a scale that fits them leaves nothing of the rest. So the channels are smoothed first, by factors that the
weights take back: (x / s) · (s · w). `calibration` measures how large each channel gets.

What comes out of the MLP's activation function differs even within a channel, being nearly zero for most tokens. So
a row's scale fits what is up to four times its mean, not its largest. What of an input does not fit into 8 bits is carried
into a second number, as in written addition. Of the bundled model's inputs at most one in a hundred has one: our function
multiplies a list of these, torch's kernel both numbers of all.

A matrix is multiplied in one of three ways, which give the same bits: `PlainMatrix` says what is computed and runs
anywhere, `PackedMatrix` is torch's kernel, `MatrixInC` our function.

Sources: Xiao et al. 2023, "SmoothQuant" (arXiv:2211.10438), equation 4 with alpha 0.5, for the factors. Dettmers et al.
2022, "LLM.int8()" (arXiv:2208.07339), section 3.2, takes the few large inputs apart, too; there, in 16 bits.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.kernels import c_functions
from minigpt.kernels.c_structs import CLinear, CTable
from minigpt.quantization.huge_pages import give_back_freed_memory
from minigpt.quantization.int8_in_c import ZERO_POINT, MatrixInC
from minigpt.quantization.modules import (
    Packed,
    QuantizedEmbedding,
    QuantizedHead,
    QuantizedLinear,
    QuantizedModule,
    call_packed,
)

# Shapes below:  in, out the widths of a layer · V vocab_size · D n_embd

LARGEST = 127  # steps that 8 bits hold
CARRY = 2 * LARGEST  # steps of a second number: half of one is what the first holds
TYPICAL = 4  # times the mean: what the first is to hold
WHOLE = 2**24  # up to which float32 holds every whole number: their sum is the same in any order
EXACT = 1024  # products of 8-bit integers whose sum is below WHOLE: 1024 * 127 * 128
MAX_INPUTS = 2**17  # inputs of a layer: the sum of their products is to fit into 32 bits
TINY = 1e-30  # instead of the largest magnitude of a row or channel that is all zeros


class Matrix:
    """A weight of 8 bits, and the layer that it makes with what stands beside it."""

    shape: torch.Size

    def __call__(self, numbers: Tensor) -> Tensor:
        """The product of rows of whole numbers from -127 to 127.

        Shapes: (rows, in)  ->  (rows, out)
        """
        raise NotImplementedError

    def affine(self, rows: Tensor, input_scale: Tensor, bias: Tensor | None) -> Tensor:
        """The product rows · weightᵀ + bias, of inputs that are rounded to 8 bits, and what these carry.

        Shapes: (rows, in), (in,), (out,)  ->  (rows, out)
        """
        first, carried, step = quantize_rows(rows, input_scale)
        of_first, of_carried = self(torch.cat([first, carried])).chunk(2)
        return scale_back(torch.add(of_first, of_carried, alpha=CARRY), step, bias)


class PlainMatrix(Matrix):
    """A weight of 8 bits, multiplied exactly on any processor: what the other two must equal."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.weight, self.shape, self.scale = weight, weight.shape, scale  # int8 (out, in), float32 (out,)

    def __call__(self, numbers: Tensor) -> Tensor:
        return integer_product(numbers.to(torch.int8), self.weight).float() * self.scale


@cache
def int_mm_is_exact() -> bool:
    """Whether torch's own product of integers is one on this processor.

    oneDNN computes it, and without instructions for sums of 8-bit products (VNNI) pairs of products saturate at 16 bits.
    """
    largest = torch.full((1, 64), LARGEST, dtype=torch.int8)
    return int(torch._int_mm(largest, largest.t())) == 64 * LARGEST**2


def integer_product(rows: Tensor, weight: Tensor) -> Tensor:
    """The product rows · weightᵀ of 8-bit integers, as int32.

    Shapes: (rows, in), (out, in)  ->  (rows, out)

    >>> largest = torch.full((1, 64), 127, dtype=torch.int8)
    >>> integer_product(largest, largest).item() == 64 * 127**2
    True
    """
    if rows.size(1) > 1 and int_mm_is_exact():  # of one input, torch 2.13 misreads the transposed weight
        return torch._int_mm(rows, weight.t())
    parts = zip(torch.split(rows, EXACT, 1), torch.split(weight, EXACT, 1), strict=True)
    products = [(few.float() @ own.float().t()).to(torch.int32) for few, own in parts]
    return torch.stack(products).sum(0, dtype=torch.int32)


class PackedMatrix(Matrix):
    """The same in the order that fbgemm's kernel reads, several times as fast; it holds the only copy."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.shape, self.scale = weight.shape, scale
        self.packed = _pack(weight, scale)
        give_back_freed_memory()

    def __call__(self, numbers: Tensor) -> Tensor:
        kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return call_packed(kernel, numbers, 1.0, ZERO_POINT, self.packed)

    @property
    def weight(self) -> Tensor:
        """The plain form, made anew: int8 (out, in)."""
        whole: Tensor = torch.ops.quantized.linear_unpack(self.packed)[0].int_repr()
        return whole


def _pack(weight: Tensor, scale: Tensor) -> Packed:
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():  # torch warns that it will replace these tensors one day
            warnings.simplefilter("ignore")
            zeros = torch.zeros(len(scale), dtype=torch.long)
            whole = torch._make_per_channel_quantized_tensor(weight, scale.double(), zeros, 0)
        packed: Packed = torch.ops.quantized.linear_prepack(whole, None)
        return packed
    finally:
        torch.backends.quantized.engine = engine


@cache
def packing_is_exact() -> bool:
    """Whether this processor's packed kernel gives the plain product to the bit.

    As for torch's own, that takes VNNI.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    weight = torch.full((32, 64), LARGEST, dtype=torch.int8)
    weight[::2] = -LARGEST
    rows, scale = torch.full((3, 64), float(LARGEST)), torch.full((32,), 0.01)
    try:
        return torch.equal(PackedMatrix(weight, scale)(rows), PlainMatrix(weight, scale)(rows))
    except (RuntimeError, AttributeError):  # a torch that has taken the kernel out
        return False


AnyMatrix = PlainMatrix | PackedMatrix | MatrixInC


def matrix(weight: Tensor, scale: Tensor) -> AnyMatrix:
    """A weight as this machine multiplies it fastest."""
    if weight.device.type != "cpu":
        return PlainMatrix(weight, scale)
    if c_functions.available():
        return MatrixInC(weight, scale)
    return PackedMatrix(weight, scale) if packing_is_exact() else PlainMatrix(weight, scale)


def round_weight(weight: Tensor, largest_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 8-bit form of a weight: whole numbers, the scale of each output, and the factor of each input.

    Shapes: (out, in), (in,)  ->  int8 (out, in), (out,), (in,)

    Raises:
        ValueError: there are more than `MAX_INPUTS` inputs.
    """
    if weight.size(1) > MAX_INPUTS:
        raise ValueError(
            f"8-bit weights are for layers of at most {MAX_INPUTS:,} inputs, not {weight.size(1):,}: use float16"
        )
    if weight.is_meta:  # there are shapes alone, and arithmetic on them would import torch's compiler
        whole = torch.empty(weight.shape, dtype=torch.int8, device="meta")
        return whole, torch.empty(len(weight), device="meta"), torch.empty(weight.size(1), device="meta")
    factor = (weight.abs().amax(0).clamp_min(TINY) / largest_input.clamp_min(TINY)).sqrt()
    factor = factor.where(largest_input > 0, 1)  # a channel that was never used
    smoothed = weight / factor
    scale = smoothed.abs().amax(1).clamp_min(TINY) / LARGEST
    return (smoothed / scale[:, None]).round().to(torch.int8), scale, factor


# These are TorchScript, too: see `inference.scripted`.


def affine(
    rows: Tensor,
    packed: Packed,
    input_scale: Tensor,
    bias: Tensor,
    zero: int = ZERO_POINT,
    carry: int = CARRY,
) -> Tensor:
    """As `PackedMatrix.affine`.

    Shapes: (rows, in), (in,), (out,)  ->  (rows, out)
    """
    first, carried, step = quantize_rows(rows, input_scale)
    multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    of_first, of_carried = multiply(torch.cat([first, carried]), 1.0, zero, packed).chunk(2)
    product = torch.add(of_first, of_carried, alpha=carry)
    return scale_back(product, step, bias)


def quantize_rows(
    rows: Tensor,
    input_scale: Tensor,
    held: int = LARGEST,
    carry: int = CARRY,
    typical: int = TYPICAL,
    whole: int = WHOLE,
    tiny: float = TINY,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows whose channels are smoothed, in whole numbers of a step; what they carry; and each row's step.

    An input is (first number + `CARRY` · carried number) · step. The first, of 8 bits, is enough for what is up to
    `TYPICAL` times the row's mean magnitude, or more where the second would not be enough for the largest. A row with
    an infinite or NaN input has the step NaN.

    Shapes: (rows, in), (in,)  ->  (rows, in), (rows, in), (rows, 1)

    >>> first, carried, step = quantize_rows(torch.tensor([[1.0, -2, 1, 0, 1, 30]]), torch.ones(6))
    >>> first, carried
    (tensor([[  5., -11.,   5.,   0.,   5., -91.]]), tensor([[0., -0., 0., 0., 0., 1.]]))
    >>> ((first + 254 * carried) * step).round()
    tensor([[ 1., -2.,  1.,  0.,  1., 30.]])
    """
    n = rows.size(1)
    parts = whole // n  # of the largest, in which the mean is measured
    smoothed = rows * input_scale
    size = smoothed.abs()
    largest = size.amax(1, keepdim=True).clamp_min_(tiny)
    total = size.mul_(parts * largest.reciprocal()).round_().sum(1, keepdim=True)
    # Of the largest, what the first number is to hold.
    limit = (total * (typical / (parts * n))).clamp_(1 / carry, 1)
    per_unit = held * (limit * largest).reciprocal_()
    first = smoothed.mul_(per_unit).round_()
    carried = (first * (1 / carry)).round_()
    return first.sub_(carried, alpha=carry), carried, per_unit.reciprocal()


def scale_back(product: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    """Products of whole numbers times the steps of their rows, and the bias added.

    Shapes: (rows, out), (rows, 1), (out,)  ->  (rows, out)
    """
    return product.mul_(step) if bias is None else torch.addcmul(bias, product, step, out=product)


class _Int8(QuantizedModule):
    """A module with a weight of 8 bits (out, in)."""

    matrix: AnyMatrix
    weight_scale: Tensor
    input_scale: Tensor

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, input_scale: Tensor, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("bias", bias)
        self.set_weight(weight)

    def set_weight(self, weight: Tensor) -> None:
        self.matrix = matrix(weight, self.weight_scale)

    def affine(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        return self.matrix_for(rows).affine(rows, self.input_scale, bias)

    def matrix_for(self, rows: Tensor) -> AnyMatrix:
        """The matrix, or the plain one where functions in C cannot read the rows, or somebody has to see operations."""
        matrix = self.matrix
        if isinstance(matrix, MatrixInC) and not (
            c_functions.may_run() and c_functions.is_ordinary_tensor(rows)
        ):
            return PlainMatrix(matrix.weight, matrix.scale)
        return matrix

    def layer(self) -> CLinear:
        """The layer as the functions in C take it."""
        own: Any = self._buffers
        matrix: Any = self.matrix
        return matrix.layer(own["input_scale"], own["bias"])  # type: ignore[no-any-return]


class Int8Linear(_Int8, QuantizedLinear):
    """A linear layer with a weight of 8 bits."""


class Int8Head(_Int8, QuantizedHead):
    """The head of an untied model with a weight of 8 bits."""


class Int8Embedding(_Int8, QuantizedEmbedding):
    """A table of 8-bit embeddings: to look up as it is, and packed for a tied head."""

    def set_weight(self, weight: Tensor) -> None:
        super().set_weight(weight)
        self.weight = weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: (B, T)  ->  (B, T, D)."""
        scale = F.embedding(tokens, self.weight_scale[:, None])
        return F.embedding(tokens, self.weight) * scale * self.input_scale

    def table(self) -> CTable | None:
        return c_functions.int8_table(self.weight, self.weight_scale, self.input_scale)


class Int8:
    """Weights of 8 bits, inputs rounded to 8 bits; see `WeightFormat`."""

    rounds_inputs = True

    def linear(self, weight: Tensor, bias: Tensor, largest_input: Tensor) -> nn.Module:
        return Int8Linear(*round_weight(weight, largest_input), bias)

    def head(self, weight: Tensor, largest_input: Tensor) -> nn.Module:
        return Int8Head(*round_weight(weight, largest_input))

    def embedding(self, weight: Tensor, largest_input: Tensor) -> QuantizedModule:
        return Int8Embedding(*round_weight(weight, largest_input))
