"""What a model with weights of 8 bits computes, by functions in C: `int8_kernels.c`.

torch's kernels for 8 bits read weights at two thirds of the speed, and between two products it takes six operations to
round what the next one reads. Here a layer is one call, and so are all layers for a few new tokens: the modules below
call the same functions one by one, so that a model gives the same bits whichever way it goes. They replace a model's own
where the functions can be compiled (`available`), and do what torch's do for other dtypes, gradients and `torch.compile`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.attention import RowByRowAttention, attention_mask, pads_of
from minigpt.quantization import c_code
from minigpt.quantization.huge_pages import give_back_freed_memory

# Shapes below:  B rows · T new tokens · S tokens in view · H heads · K head dimension · D n_embd

SOURCE = Path(__file__).with_name("int8_kernels.c")
OUTPUTS, INPUTS = 16, 4  # of a weight, that lie together
WIDE = 64  # inputs: of a row there is always a multiple


class CNorm(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("eps", c_float))


class CLinear(ctypes.Structure):
    _fields_ = (
        ("weight", c_void_p), ("shift", c_void_p), ("scale", c_void_p), ("input_scale", c_void_p), ("bias", c_void_p),
        ("n_in", c_int64), ("n_out", c_int64), ("is_fine", c_int64),
    )  # fmt: skip


class CBlock(ctypes.Structure):
    _fields_ = (
        ("attn_norm", CNorm), ("mlp_norm", CNorm),
        ("qkv", CLinear), ("out", CLinear), ("up", CLinear), ("down", CLinear),
        ("scale", c_float),
    )  # fmt: skip


class CStrides(ctypes.Structure):
    _fields_ = (("row", c_int64), ("head", c_int64), ("slot", c_int64))


ARGUMENTS: dict[str, tuple[type, ...]] = {
    "layer_norm": (c_void_p, c_int64, c_int64, c_void_p, c_void_p),
    "gelu": (c_void_p, c_int64, c_void_p),
    "attention": (
        c_void_p, c_int64, c_int64, c_void_p, c_void_p, CStrides, c_void_p,
        c_int64, c_int64, c_int64, c_int64, c_int64, c_float, c_void_p,
    ),
    "linear": (c_void_p, c_int64, c_void_p, c_void_p),
    "through_blocks": (
        c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int64, CStrides, c_void_p, c_int64, c_int64, c_int64, c_int64,
    ),
}  # fmt: skip


@cache
def functions() -> Any:
    """The compiled functions; None where there are none."""
    library = c_code.library(SOURCE)
    for name, types in ARGUMENTS.items() if library else ():
        function = getattr(library, name)
        function.argtypes = types
    return library


def available() -> bool:
    return functions() is not None


def can_read(*tensors: Tensor) -> bool:
    """Whether there are functions for these: float32 numbers in memory, of which nobody wants gradients."""
    if not available() or torch.compiler.is_compiling():
        return False
    return all(
        t.dtype == torch.float32
        and t.device.type == "cpu"
        and not (t.requires_grad and torch.is_grad_enabled())
        for t in tensors
    )


class CompiledMatrix:
    """A weight of 8 bits in the order that the compiled functions read; it holds the only copy."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.shape, self.scale = weight.shape, scale.contiguous()
        self._shift = (128 * weight.sum(1, dtype=torch.int32)).contiguous()
        n_out, n_in = weight.shape
        whole = F.pad(weight, (0, -n_in % WIDE, 0, -n_out % OUTPUTS))
        blocks = whole.view(len(whole) // OUTPUTS, OUTPUTS, -1, INPUTS)
        self._blocks = blocks.transpose(1, 2).contiguous()  # (out / 16, in / 4, 16, 4)
        self._layer = CLinear()
        # What it was made of beside the weight: the factors of the inputs, and the bias.
        self._of: tuple[Tensor, Tensor | None] = (self.scale, None)
        give_back_freed_memory()

    def affine(self, rows: Tensor, input_scale: Tensor, bias: Tensor | None) -> Tensor:
        """As `int8.PlainMatrix.affine`, to the bit."""
        return linear(rows, self.layer(input_scale, bias, is_fine=False))

    def fine_affine(self, rows: Tensor, input_scale: Tensor, bias: Tensor | None) -> Tensor:
        return linear(rows, self.layer(input_scale, bias, is_fine=True))

    def layer(self, input_scale: Tensor, bias: Tensor | None, *, is_fine: bool) -> CLinear:
        """The layer as the functions take it: made anew only if its tensors are others than the last time."""
        known, (its_scale, its_bias) = self._layer, self._of
        if (
            its_scale is input_scale
            and its_bias is bias
            and known.input_scale == input_scale.data_ptr()
            and known.bias == (None if bias is None else bias.data_ptr())
            and known.is_fine == is_fine
        ):
            return known
        n_out, n_in = self.shape
        self._of = (_numbers(input_scale, n_in), None if bias is None else _numbers(bias, n_out))
        addresses = [None if t is None else t.data_ptr() for t in (self.scale, *self._of)]
        self._layer = CLinear(
            self._blocks.data_ptr(), self._shift.data_ptr(), *addresses, n_in, n_out, is_fine
        )
        return self._layer

    @property
    def weight(self) -> Tensor:
        """The plain form, made anew: int8 (out, in)."""
        n_out, n_in = self.shape
        return self._blocks.transpose(1, 2).reshape(len(self._blocks) * OUTPUTS, -1)[:n_out, :n_in].clone()


def _numbers(vector: Tensor, n: int) -> Tensor:
    """A vector as the functions read it, which mostly it is already."""
    if vector.device.type != "cpu" or vector.shape != (n,):
        raise ValueError(f"expected {n} numbers on the CPU, got {tuple(vector.shape)} on {vector.device}")
    return vector if vector.dtype == torch.float32 and vector.is_contiguous() else vector.float().contiguous()


def linear(rows: Tensor, layer: CLinear) -> Tensor:
    """A linear layer: (rows, in)  ->  (rows, out)."""
    if rows.device.type != "cpu" or rows.size(1) != layer.n_in:
        raise ValueError(
            f"expected rows of {layer.n_in} inputs on the CPU, got {rows.size(1)} on {rows.device.type}"
        )
    x = rows.float().contiguous()
    y = x.new_empty(len(x), layer.n_out)
    check_memory(functions().linear(x.data_ptr(), len(x), ctypes.byref(layer), y.data_ptr()))
    return y


def check_memory(there_was_memory: int) -> None:
    if not there_was_memory:
        raise MemoryError("there is no memory left for what is computed between the layers")


def norm_of(module: nn.LayerNorm) -> CNorm:
    return CNorm(module.weight.data_ptr(), module.bias.data_ptr(), module.eps)


class LayerNorm(nn.LayerNorm):
    """A layer norm by the compiled function."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.is_readable() and can_read(x) and x.size(-1) == len(self.weight)):
            return super().forward(x)
        x = x.contiguous()
        y = torch.empty_like(x)
        width = x.size(-1)
        functions().layer_norm(
            x.data_ptr(), x.numel() // width, width, ctypes.byref(norm_of(self)), y.data_ptr()
        )
        return y

    def is_readable(self) -> bool:
        """Whether the functions can read the parameters where they are."""
        own: Any = self._parameters
        parameters = (own["weight"], own["bias"])
        return all(t is not None and t.is_contiguous() for t in parameters) and can_read(*parameters)

    @classmethod
    def like(cls, norm: nn.LayerNorm) -> LayerNorm:
        """The same with the same parameters."""
        new = cls(norm.weight.shape[0], eps=norm.eps, device="meta")
        new.weight, new.bias = norm.weight, norm.bias
        return new


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU's tanh form by the compiled function."""
    if not can_read(x):
        return F.gelu(x, approximate="tanh")
    x = x.contiguous()
    y = torch.empty_like(x)
    functions().gelu(x.data_ptr(), x.numel(), y.data_ptr())
    return y


def gelu_form(activation: Any) -> str | None:
    """Which form of torch's GELU an activation function is, in the word of `F.gelu`; None for any other.

    Of these `tanh_gelu` may replace "tanh".
    """
    if activation is F.gelu:
        return "none"
    if isinstance(activation, partial) and activation.func is F.gelu:
        return str(activation.keywords["approximate"])
    return None


class Attention(RowByRowAttention):
    """Attention by the compiled function, each row by itself; by torch's under a mask of somebody's own."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        pads = self._pads(q, k, v, mask)
        return super().forward(q, k, v, mask) if pads is None else attention(q, k, v, pads, self.scale)

    def _pads(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Sequence[int] | None:
        """Each row's padding; None where torch's kernel is to be called."""
        n_new, n_seen = q.size(-2), k.size(-2)
        fit = k.shape == v.shape == (*q.shape[:2], n_seen, q.size(-1))
        if (
            not fit
            or k.stride() != v.stride()
            or k.stride(-1) != 1
            or q.stride(-1) != 1
            or not can_read(q, k, v)
        ):
            return None
        if mask is None:
            return [0] * len(q) if n_new in (1, n_seen) else None
        if mask.dim() == 2:
            its_own = attention_mask(n_new, n_seen, None, mask.device)
            return [0] * len(q) if its_own is not None and torch.equal(mask, its_own) else None
        return pads_of(mask.expand(len(q), -1, -1, -1), n_new, n_seen) if mask.dim() == 4 else None


def attention(q: Tensor, k: Tensor, v: Tensor, pads: Sequence[int], scale: float) -> Tensor:
    """Each new token's weighted mean of the values that it sees.

    Shapes: q (B, H, T, K), k and v (B, H, S, K)  ->  (B, H, T, K)
    """
    n_rows, n_head, n_new, head_dim = q.shape
    q = q.transpose(1, 2)  # (B, T, H, K)
    if n_rows > 1 and n_new > 1 and q.stride(0) != n_new * q.stride(1):
        q = q.contiguous()
    from_token_to_token = q.stride(0) if n_new == 1 else q.stride(1)
    y = q.new_empty(n_rows, n_new, n_head, head_dim)
    check_memory(functions().attention(
        q.data_ptr(), from_token_to_token, q.stride(2), k.data_ptr(), v.data_ptr(), CStrides(*k.stride()[:3]), numbers(pads),
        k.size(-2), n_rows, n_new, n_head, head_dim, scale, y.data_ptr(),
    ))  # fmt: skip
    return y.transpose(1, 2)


def numbers(pads: Sequence[int]) -> Any:
    return (c_int64 * len(pads))(*pads)


def through_blocks(
    x: Tensor, blocks: Any, slots: Tensor, length: int, pads: Sequence[int], n_head: int
) -> None:
    """New tokens through all blocks, in place; keys and values go to the slots from `length` on.

    Shapes: x (B, T, D), slots (layer, key | value, B, H, N, K)
    """
    n_rows, n_new, width = x.shape
    shape = (len(blocks), 2, n_rows, n_head, slots.size(-2), width // n_head)
    if slots.shape != shape or not can_read(x, slots) or slots.stride(-1) != 1:
        raise ValueError(
            f"the cache is another model's: it is {tuple(slots.shape)} of {slots.dtype} on {slots.device.type}, "
            f"and must be {shape} of torch.float32 on the CPU"
        )
    layer, part, *strides, _ = slots.stride()
    check_memory(functions().through_blocks(
        x.data_ptr(), blocks, len(blocks), slots.data_ptr(), layer, part, CStrides(*strides), numbers(pads),
        length, n_rows, n_new, n_head,
    ))  # fmt: skip
