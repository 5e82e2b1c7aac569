"""How a CPU multiplies float32 matrices fastest, by what was measured: which of torch's kernels, from which memory.

Decoding multiplies few rows by large weights, again and again. torch has two libraries for that on x86, and
by itself takes MKL. Milliseconds for the linear layers of gpt2 (124M), by the way the weights lie in memory:

                                       (in, out), MKL    (in, out), oneDNN    (out, in), oneDNN
    Intel Xeon (Sapphire Rapids), 1 row      15                25                    20
    Intel Xeon (Sapphire Rapids), 8 rows     28                38                    27
    AMD EPYC (Zen 4), 1 row                  21                19                    13
    AMD EPYC (Zen 4), 8 rows                 44                22                    23

and for its head, which is (out, in) already, 8 rows: MKL 20 and oneDNN 10 on Intel, 23 and 6 on AMD. So
oneDNN is for every other processor than Intel's, whose MKL it is, and for the head where there are several rows.
Small matrices stay with MKL: oneDNN takes 20 µs to begin.
"""

from __future__ import annotations

import math
import mmap
import platform
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 1 << 19  # elements: 2 MB, what a core's own cache holds
FEW_ROWS = 3  # up to which MKL reads each weight once, even (out, in)
CHUNK = 32 << 20  # bytes of memory that weights share: about a layer of gpt2
ALIGNMENT = 64  # bytes: a line of the cache, and what vector instructions like


def _vendor() -> str:
    """GenuineIntel, AuthenticAMD, or what else the operating system says of its processor."""
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.exists() else platform.processor()


X86 = platform.machine().lower() in ("x86_64", "amd64")
ONEDNN = X86 and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
MKL_IS_FAST = "Intel" in _vendor()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x · weightᵀ + bias, as `F.linear`, by the kernel that is fastest here.

    Shapes: (..., in), (out, in)  ->  (..., out)

    >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    tensor([[ 3.,  7., 11.]])
    """
    if weight.numel() >= SMALL and _onednn_is_faster(x, weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return F.linear(x, weight, bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same for a matrix and an (in, out) weight: x · weight + bias, as `product(x, weight.t(), bias)` to the bit.

    Shapes: (rows, in), (in, out), (out,)  ->  (rows, out)
    """
    if weight.numel() >= SMALL and not (MKL_IS_FAST and weight.is_contiguous()):
        return product(x, weight.t(), bias)
    return torch.addmm(bias, x, weight)


def _onednn_is_faster(x: Tensor, weight: Tensor) -> bool:
    if not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):  # it knows neither
        return False
    return not MKL_IS_FAST or (weight.is_contiguous() and x.numel() > FEW_ROWS * x.size(-1))


def outputs_first(shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether an (in, out) weight is multiplied faster if each output's weights lie together in memory."""
    return ONEDNN and not MKL_IS_FAST and device.type == "cpu" and shape[0] * shape[1] >= SMALL


class Room:
    """Memory for the weights of one model, on Linux in huge pages.

    Decoding reads every weight for every token. In pages of 4 KiB it also waits for where they lie: 12% at the
    bundled model's shape, 2% at gpt2's. So weights share chunks of memory: most are smaller than a huge page, or end
    within one. A chunk is given back when all of its weights are gone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._in_chunks = device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE")
        self._chunk, self._used = memoryview(b""), 0

    def reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor that nothing is written to yet."""
        if not self._in_chunks:
            return torch.empty(shape, dtype=dtype, device=self.device)
        count = math.prod(shape)
        n_bytes = count * dtype.itemsize
        if n_bytes > len(self._chunk) - self._used:
            try:
                self._chunk, self._used = _huge_pages(max(n_bytes, CHUNK)), 0
            except OSError as error:
                raise MemoryError(
                    f"there are no {n_bytes:,} bytes left for a tensor of shape {shape}"
                ) from error
        # frombuffer makes each tensor a storage of its own, so a file or a copy of one holds no other.
        tensor = torch.frombuffer(self._chunk, dtype=dtype, count=count, offset=self._used)
        self._used += -(-n_bytes // ALIGNMENT) * ALIGNMENT
        return tensor.view(shape)


def _huge_pages(n_bytes: int) -> memoryview:
    chunk = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a hint, which a kernel built without huge pages does not take
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(chunk)
