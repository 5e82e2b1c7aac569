"""Peak speed of the hardware, the dtype to compute in, and the operations that a model needs for each token."""

from __future__ import annotations

import ctypes
import time
from contextlib import AbstractContextManager, nullcontext

import torch

from minigpt.config import GPT2Config

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
FASTER = 1.2  # times, or half precision is not worth its rounding


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Floating-point operations a second in one large matrix product, the fastest of those that fit the time.

    One is measured in any case, for a busy machine may give this process no time before it is over.
    """
    n = 1024 if device.type == "cpu" else 8192
    a, b = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
    best, end = 0.0, time.monotonic() + seconds
    while not best or time.monotonic() < end:
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # reading one number waits for the device
        best = max(best, 2 * n**3 / (time.perf_counter() - began))
    return best


def choose_dtype(device: torch.device, wanted: str) -> tuple[str, float]:
    """The type to compute in, and the machine's peak in it; `auto` takes bfloat16 where it is faster."""
    if wanted != "auto":
        return wanted, matmul_rate(device, getattr(torch, wanted), 1.0)
    rates = {name: matmul_rate(device, getattr(torch, name), 0.5) for name in ("float32", "bfloat16")}
    chosen = "bfloat16" if rates["bfloat16"] > FASTER * rates["float32"] else "float32"
    return chosen, rates[chosen]


def keep_freed_memory() -> None:
    """Lets this process keep the memory that it frees, for the tensors of the next step; under glibc, else nothing.

    Activations and logits are tens of megabytes each. By default, glibc maps each of them anew, and the system clears
    every page again: 130,000 page faults, a sixth of the processor time of a step, at the bundled model's shape.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """Matrix products in `dtype`, all else in float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


def training_flops(config: GPT2Config, n_parameters: int, context: int, n_frozen: int = 0) -> int:
    """Floating-point operations to train on one token: forward, and twice that backward.

    Args:
        config: the model's shape.
        n_parameters: all of them, those of an adapter too.
        context: the length of the sequences.
        n_frozen: how many of the parameters do not learn, so that nothing is computed of their own gradients.

    Source: Chowdhery et al. 2022 (arXiv:2204.02311), appendix B; attention counted in full, as there.

    >>> training_flops(GPT2Config(), 124_439_808, 1024) // 10**6
    855
    """
    # Embeddings are looked up, not multiplied; a tied one is multiplied with as the head.
    looked_up = config.n_positions + (0 if config.tie_word_embeddings else config.vocab_size)
    n_looked_up = looked_up * config.n_embd
    n_frozen = max(0, n_frozen - n_looked_up)
    return 6 * (n_parameters - n_looked_up) - 2 * n_frozen + 12 * config.n_layer * config.n_embd * context


def forward_flops(config: GPT2Config, n_parameters: int, context: int) -> int:
    """Floating-point operations of the forward pass on one token: a third of those to train on it.

    So many more does a teacher take, or computing activations anew that were not kept.

    >>> 3 * forward_flops(GPT2Config(), 124_439_808, 1024) == training_flops(GPT2Config(), 124_439_808, 1024)
    True
    """
    return training_flops(config, n_parameters, context) // 3
