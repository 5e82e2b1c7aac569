"""Packed weights in huge pages: fbgemm takes its memory from the C library, in pages of 4 KiB.

Decoding reads every weight for every token, and looking up where so many pages lie takes time: weights of 16 bits
are multiplied up to 1.2 times as fast from pages of 2 MiB. `WeightMemory` gives such pages to tensors; what fbgemm packs is
moved to them here, by the kernel, without changing its address. Only Linux (since 6.1) does that; elsewhere nothing
is done.

Sources: madvise(2), MADV_COLLAPSE; mincore(2).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

HUGE_PAGE = 2 << 20  # bytes
MADV_COLLAPSE = 25
# The share of a huge page in use from which on it becomes one: the rest of it takes memory from then on.
WORTH_IT = 0.6

Range = tuple[int, int]  # addresses: begin, end


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """Moves the memory that has been taken when the `with` ends, and was not there before, to huge pages."""
    if sys.platform != "linux":
        yield
        return
    before = _anonymous_memory()
    yield
    libc = ctypes.CDLL(None)
    for begin, end in beyond(_anonymous_memory(), before):
        # One by one: of a whole range, Linux moves what comes before the first page that it cannot move.
        for address in range(-(-begin // HUGE_PAGE) * HUGE_PAGE, end - HUGE_PAGE + 1, HUGE_PAGE):
            if _share_in_use(libc, address) >= WORTH_IT:
                libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(HUGE_PAGE), MADV_COLLAPSE)


def give_back_freed_memory() -> None:
    """Gives back what is free, which glibc may keep: packing a weight leaves copies of up to three times its size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def beyond(ranges: Iterable[Range], known: Iterable[Range]) -> list[Range]:
    """What the ranges hold beside the known ones.

    >>> beyond([(0, 10), (20, 50)], [(0, 10), (25, 30)])
    [(20, 25), (30, 50)]
    """
    left = list(ranges)
    for begin, end in known:
        left = [part for old in left for part in ((old[0], min(old[1], begin)), (max(old[0], end), old[1]))]
        left = [part for part in left if part[0] < part[1]]
    return left


def _share_in_use(libc: ctypes.CDLL, address: int) -> float:
    """How much of the huge page at an address is in memory, from 0 to 1."""
    pages = (ctypes.c_ubyte * (HUGE_PAGE // mmap.PAGESIZE))()
    libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(HUGE_PAGE), pages)
    return sum(page & 1 for page in pages) / len(pages)


def _anonymous_memory() -> list[Range]:
    """What the process may write and shares with no file or other process."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, access, *_, inode = line.split()[:5]
        if access == "rw-p" and inode == "0":
            begin, end = addresses.split("-")
            found.append((int(begin, 16), int(end, 16)))
    return found
