"""Where weights, and keys and values, lie in memory."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

CHUNK = 32 << 20  # bytes of memory that weights share: about a layer of gpt2
ALIGNMENT = 64  # bytes: a line of the cache, and what vector instructions like


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


def reserve(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor that nothing is written to yet, alone in a `Room` if it fills a chunk.

    With keys and values of 500 to 900 tokens in huge pages, a step of gpt2 in int8 takes a tenth less time. Smaller memory
    glibc takes from what has been given back, in pages that are there already.
    """
    if math.prod(shape) * dtype.itemsize < CHUNK:
        return torch.empty(shape, dtype=dtype, device=device)
    return Room(device).reserve(shape, dtype)


def _huge_pages(n_bytes: int) -> memoryview:
    chunk = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a hint, which a kernel built without huge pages does not take
        chunk.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(chunk)
