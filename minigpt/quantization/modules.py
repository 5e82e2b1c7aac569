"""Modules with quantized weights: what they have in common, whichever kind of weights it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

from minigpt.kernels.c_structs import CTable

# A packed weight; TorchScript (see `inference.scripted`) knows it by this name.
if TYPE_CHECKING:
    Packed = torch.ScriptObject
else:
    Packed = torch.classes.quantized.LinearPackedParamsBase

# Shapes below:  in, out the widths of a layer; weights are (out, in), the other way round than in `Linear`


def call_packed(kernel: Any, *args: object) -> Tensor:
    """Calls an operation of torch that takes a packed weight: `kernel(*args)` without what torch asks first.

    It asks every argument whether it overrides operations (`__torch_function__`), and whether it is a fake that
    stands for one without data. A packed weight answers the first by C++ exceptions: together that is three times
    the call of the kernel, and more between two products, whose weights drive that code out of the caches.
    """
    with torch._C.DisableTorchFunctionSubclass():
        product: Tensor = kernel._op(*args)
    return product


class QuantizedMatrix(Protocol):
    """A weight in fewer bits, in whatever form its kernel reads.

    It is never changed: other weights are another matrix, as `QuantizedModule.set_weight` makes it.
    """

    shape: torch.Size  # of the weight: (out, in)

    @property
    def weight(self) -> Tensor:
        """The plain tensor that a file keeps: (out, in)."""


class QuantizedModule(nn.Module):
    """A module with a `QuantizedMatrix`: on the CPU, with float32 around it, and not to be trained.

    In a state dict and in files the weight is a plain tensor under its usual name.
    """

    matrix: QuantizedMatrix

    def set_weight(self, weight: Tensor) -> None:
        """Makes the kernel's form of a weight (out, in)."""
        raise NotImplementedError

    def affine(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """The product rows · weightᵀ, and the bias added if there is one: (rows, in), (out,)  ->  (rows, out)."""
        raise NotImplementedError

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The same for any number of dimensions: (..., in), (out,)  ->  (..., out)."""
        if torch.is_grad_enabled() and (x.requires_grad or self.training):
            raise ValueError(
                "quantized weights have no gradients: load the model without quantize=, or use torch.no_grad()"
            )
        return self.affine(x.reshape(-1, x.size(-1)), bias).view(*x.shape[:-1], -1)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, or a pickle: the plain weight, of which the other machine makes what it multiplies fastest."""
        return {**self.__dict__, "matrix": self.matrix.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        others = {name: value for name, value in state.items() if name != "matrix"}
        super().__setstate__(others)  # type: ignore[no-untyped-call]
        self.set_weight(state["matrix"])

    def extra_repr(self) -> str:
        n_out, n_in = self.matrix.shape
        return f"in={n_in}, out={n_out}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.matrix.weight

    def _load_from_state_dict(
        self, state: Any, prefix: str, meta: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, meta, strict, missing, unexpected, errors)
        name = f"{prefix}weight"
        if name not in state:
            missing.append(name)
            return
        if name in unexpected:  # torch knows of no such tensor here
            unexpected.remove(name)
        self.set_weight(state[name])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        tried = fn(torch.zeros(1))
        if tried.device.type != "cpu" or tried.dtype != torch.float32:
            raise ValueError(
                f"quantized weights cannot become {tried.dtype} on {tried.device.type}: they stay on the CPU, with "
                "float32 around them; load the model without quantize="
            )
        applied: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied


class QuantizedLinear(QuantizedModule):
    """x · weightᵀ + bias with a quantized weight."""

    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (..., in)  ->  (..., out)."""
        return self.multiply(x, self.bias)


class QuantizedHead(QuantizedModule):
    """Logits by a quantized matrix of the head's own."""

    def forward(self, x: Tensor, token_embedding: Tensor) -> Tensor:
        """Shapes: (..., D)  ->  (..., V)."""
        return self.multiply(x)


class QuantizedEmbedding(QuantizedModule):
    """Embeddings by a quantized matrix, which may be that of a tied head, too."""

    def table(self) -> CTable | None:
        """The embeddings as the functions in C read them; None if they cannot."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.matrix.shape))


class QuantizedTiedHead(nn.Module):
    """Logits by the quantized table of embeddings; like `TiedHead` it has no weights of its own."""

    def __init__(self, multiply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._multiply = multiply  # of the embedding

    def is_tied_to(self, embedding: QuantizedEmbedding) -> bool:
        return self._multiply == embedding.multiply

    def forward(self, x: Tensor, token_embedding: Tensor) -> Tensor:
        """Shapes: (..., D)  ->  (..., V)."""
        return self._multiply(x)
