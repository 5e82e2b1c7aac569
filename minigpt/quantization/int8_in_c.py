"""Weights of 8 bits in the order that our functions in C read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.kernels import c_functions
from minigpt.kernels.c_functions import as_float32_vector
from minigpt.kernels.c_structs import INT8, CLinear
from minigpt.quantization.huge_pages import give_back_freed_memory

OUTPUTS, INPUTS = 16, 4  # of a weight, that lie together: LANES and INPUTS in C
PADDED_TO = 64  # inputs: a row has a multiple of so many, TO_64 in C
ZERO_POINT = 128  # added to each input, for kernels that take unsigned ones: the same in C


class MatrixInC:
    """A weight of 8 bits in the order that the functions in C read; it holds the only copy."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.shape, self.scale = weight.shape, scale.contiguous()
        self._shift = (ZERO_POINT * weight.sum(1, dtype=torch.int32)).contiguous()
        n_out, n_in = weight.shape
        whole = F.pad(weight, (0, -n_in % PADDED_TO, 0, -n_out % OUTPUTS))
        blocks = whole.view(len(whole) // OUTPUTS, OUTPUTS, -1, INPUTS)
        self._blocks = blocks.transpose(1, 2).contiguous()  # (out / 16, in / 4, 16, 4)
        give_back_freed_memory()

    def affine(self, rows: Tensor, input_scale: Tensor, bias: Tensor | None) -> Tensor:
        """As `int8.PlainMatrix.affine`, to the bit."""
        return c_functions.linear(rows, self.layer(input_scale, bias))

    def layer(self, input_scale: Tensor, bias: Tensor | None) -> CLinear:
        """The layer as the functions take it."""
        n_out, n_in = self.shape
        scales = as_float32_vector(input_scale, n_in)
        biases = None if bias is None else as_float32_vector(bias, n_out)
        layer = CLinear(
            self._blocks.data_ptr(), None if biases is None else biases.data_ptr(), n_in, n_out, INT8,
            self._shift.data_ptr(), self.scale.data_ptr(), scales.data_ptr(),
        )  # fmt: skip
        layer.kept = (scales, biases, self._blocks, self._shift, self.scale)
        return layer

    @property
    def weight(self) -> Tensor:
        """The plain form, made anew: int8 (out, in)."""
        n_out, n_in = self.shape
        return self._blocks.transpose(1, 2).reshape(len(self._blocks) * OUTPUTS, -1)[:n_out, :n_in].clone()
