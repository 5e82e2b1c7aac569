"""How a CPU multiplies float32 matrices fastest, by what was measured: which kernel, from which order in memory.

Decoding multiplies few rows by large weights, again and again. torch has two libraries for that on x86, MKL and oneDNN,
and by itself takes MKL's product of whole matrices, rows · weightᵀ. That is slow with several rows, and on AMD's processors
with any number. But a weight whose outputs lie one after the other can be read as many small matrices, which MKL
multiplies fast: on AMD's each by all rows at once, so that the transpose comes out, weight · rowsᵀ. Our own function in C
(`plain_products.h`) asks for weights before they are needed, and reads each once for up to eight rows.
Milliseconds for the linear layers of gpt2 (124M), by the way the weights lie in memory:

    Intel Xeon (AMX)             1 row   2 rows   5 rows   8 rows  12 rows  16 rows
    (in, out), MKL                13       22       27       30       31       32
    (out, in), MKL                13       13       25       36       44       31
        in blocks                 14       16       20       24       25       30
        oneDNN                    18       22       27       31       29       29

    AMD EPYC (Zen 4)             1 row   2 rows   4 rows   5 rows   8 rows  16 rows  64 rows  1,024 rows
    (in, out), MKL                17       28       41       32       42       48       88       948
        oneDNN                    18       18       16       17       20       24       58       821
    (out, in), MKL                22       38       35       31       33       39       79       955
        in blocks                 12       16       19       22       23       31       76     1,228
        in blocks, transposed      7       13       17       22       33       34       86     1,338
        oneDNN                    11       16       17       17       21       26       63       835
        in C                       8        8        9       11       12       20       58       906

(340 MB; on AMD by `scripts/bench_products.py`.) On Intel's processors small matrices are left to MKL as they are: what
else there is takes longer to begin. Large ones are loaded as (out, in), of which one row takes up to 6% longer, but
five rows a quarter less. On AMD's processors all are loaded so, and multiplied in C. That is nearly the fastest with
any number of rows, and is taken with all of them: a row then gives the bits that it gives alone.
"""

import math
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.kernels import c_functions

SMALL = 1 << 19  # elements: 2 MB, what a core's own cache holds
FEW_ROWS_INTEL = 3  # up to which MKL reads each weight once, on Intel's processors
MANY_ROWS_INTEL = 16  # from which on its product with whole weights is as fast there as that in blocks
FEW_ROWS_AMD = 4  # up to which MKL's product in transposed blocks is faster there than oneDNN's
BLOCK = 32  # outputs: their weights fit into a core's own cache, and every width of GPT-2 is a multiple


def _processor() -> str:
    """What the operating system says of it: in it stands GenuineIntel, AuthenticAMD or another maker."""
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8") if info.exists() else platform.processor()


X86 = platform.machine().lower() in ("x86_64", "amd64")
ONEDNN = X86 and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
IS_INTEL = "Intel" in _processor()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x · weightᵀ + bias, as `F.linear`, by the kernel that `fastest` names.

    Shapes: (..., in), (out, in)  ->  (..., out)

    >>> product(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    tensor([[ 3.,  7., 11.]])
    """
    return product_with_kernel(fastest(x, weight, bias), x, weight, bias)


def fastest(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str:
    """The kernel for x · weightᵀ + bias, by the name that `product_with_kernel` knows; "mkl" is torch's own choice."""
    if not can_replace_torch(x) or weight.dtype != torch.float32:
        return "mkl"
    kernel = fastest_for(math.prod(x.shape[:-1]), weight.numel(), weight.is_contiguous())
    return kernel_that_can_read(kernel, x, weight, bias)


def fastest_for(rows: int, size: int, output_major: bool) -> str:
    """The same where other kernels give the same, by a weight's number of elements and how they lie in memory."""
    if output_major and not torch.compiler.is_compiling() and float32_in_c():
        return "in C"
    if not IS_INTEL:
        return "in blocks, transposed" if output_major and rows <= FEW_ROWS_AMD else "onednn"
    in_blocks = size >= SMALL and output_major and FEW_ROWS_INTEL < rows < MANY_ROWS_INTEL
    return "in blocks" if in_blocks else "mkl"


def kernel_that_can_read(kernel: str, *tensors: Tensor | None) -> str:
    """The kernel, or torch's own choice where it is our function in C and cannot read the tensors."""
    readable = kernel != "in C" or all(t is None or c_functions.is_float32_on_cpu(t) for t in tensors)
    return kernel if readable else "mkl"


def float32_in_c() -> bool:
    """Whether functions in C are to compute with weights of float32: on Intel's processors, where they were not measured, MKL does."""
    return not IS_INTEL and c_functions.available()


def can_replace_torch(x: Tensor) -> bool:
    """Whether other kernels than torch's own choice give the same here: they know neither gradients nor autocast."""
    if not ONEDNN or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return torch.compiler.is_compiling() or not c_functions.is_intercepted()


# These are TorchScript, too: see `inference.scripted`.


def product_with_kernel(kernel: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x · weightᵀ + bias by the kernel of that name."""
    if kernel == "in C":
        found: Tensor = _in_c(x, weight, bias)
        return found
    if kernel == "onednn":
        options: list[float | int | complex | None] = []
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", options, "")
        return result
    if kernel == "mkl":
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.size(-1))
    y = _in_blocks(rows, weight) if kernel == "in blocks" else _in_blocks_transposed(rows, weight)
    y = torch.unflatten(y, 0, x.shape[:-1]) if x.dim() > 1 else y[0]
    return y if bias is None else y.add_(bias)


@torch.jit.ignore  # type: ignore[untyped-decorator]
def _in_c(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.size(-1))
    return c_functions.linear(rows, c_functions.plain_layer(weight, bias)).view(*x.shape[:-1], len(weight))


def affine(kernel: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same for a matrix and an (in, out) weight: x · weight + bias.

    Shapes: (rows, in), (in, out), (out,)  ->  (rows, out)
    """
    if kernel == "mkl":
        return torch.addmm(bias, x, weight)
    return product_with_kernel(kernel, x, weight.t(), bias)


def _in_blocks(rows: Tensor, weight: Tensor, block: int = BLOCK) -> Tensor:
    """The product rows · weightᵀ as products with `block` outputs each, and one with the outputs that are left.

    Shapes: (rows, in), (out, in)  ->  (rows, out)
    """
    blocks = _blocks(weight, block)
    y = torch.bmm(rows.expand(len(blocks), -1, -1), blocks.mT)  # (blocks, rows, block)
    return _with_rest(y.transpose(0, 1).reshape(len(rows), -1), rows, weight)


def _in_blocks_transposed(rows: Tensor, weight: Tensor, block: int = BLOCK) -> Tensor:
    """The same as products of each block with the columns of rowsᵀ, which are the transpose of it."""
    blocks = _blocks(weight, block)
    y = torch.bmm(blocks, rows.t().expand(len(blocks), -1, -1))  # (blocks, block, rows)
    return _with_rest(y.flatten(0, 1).t().contiguous(), rows, weight)


def _blocks(weight: Tensor, block: int) -> Tensor:
    """All whole blocks of a weight's outputs: (out, in)  ->  (blocks, block, in)."""
    return weight[: len(weight) // block * block].view(-1, block, weight.size(1))


def _with_rest(y: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """A product to which the last outputs are added, if there are more than whole blocks of them."""
    whole = y.size(1)
    return y if whole == len(weight) else torch.cat([y, F.linear(rows, weight[whole:])], dim=1)


def is_output_major(weight: Tensor) -> bool:
    """Whether each output's weights, of an (in, out) weight, lie together in memory, one output after the other."""
    return weight.stride() == (1, weight.size(0))


def wants_output_major(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether an (in, out) weight is multiplied faster if each output's weights lie together in memory."""
    if device.type == "cuda":
        return True  # `inference.fused_step` reads them so
    if not ONEDNN or device.type != "cpu" or dtype != torch.float32:
        return False
    return not IS_INTEL or shape[0] * shape[1] >= SMALL
