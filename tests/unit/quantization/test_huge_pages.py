"""Packed weights move to huge pages, where the system has them, and stay what they are."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.quantization import huge_pages
from minigpt.quantization.huge_pages import HUGE_PAGE, MADV_COLLAPSE, beyond, in_huge_pages

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux: there is nothing to do elsewhere"
)
RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple), max_size=4)


@given(RANGES, RANGES)
def test_what_is_new_is_counted_address_by_address(
    ranges: list[tuple[int, int]], known: list[tuple[int, int]]
) -> None:
    def addresses(ranges: list[tuple[int, int]]) -> set[int]:
        return {address for begin, end in ranges for address in range(begin, end)}

    assert addresses(beyond(ranges, known)) == addresses(ranges) - addresses(known)


class Halves:
    """32 MiB of new memory, whatever the allocator has kept; the kernel counts the huge pages in each half by itself."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        # What is treated differently is not merged, neither with one another nor with what lies beside it.
        self.memory.madvise(mmap.MADV_DONTDUMP, 0, 16 << 20)
        self.memory.madvise(mmap.MADV_DONTFORK, 16 << 20, 16 << 20)

    def huge_bytes(self) -> list[int]:
        smaps = Path("/proc/self/smaps").read_text()
        entries = [smaps.partition(f"{self.begin + half:x}-")[2] for half in (0, 16 << 20)]
        return [int(entry.partition("AnonHugePages:")[2].split()[0]) * 1024 for entry in entries]


def system_has_them() -> bool:
    room = mmap.mmap(-1, 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room[:] = bytes(len(room))
    begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(len(room)), MADV_COLLAPSE) == 0


@needs_linux
def test_new_memory_moves_and_keeps_its_bytes() -> None:
    with in_huge_pages():
        room = Halves()
        numbers = torch.frombuffer(room.memory, dtype=torch.int64).copy_(torch.arange(4 << 20))
        address = numbers.data_ptr()
    assert torch.equal(numbers, torch.arange(4 << 20))
    assert numbers.data_ptr() == address
    assert sum(room.huge_bytes()) >= (24 << 20 if system_has_them() else 0)


@needs_linux
def test_what_is_hardly_used_stays_as_it_is_and_keeps_nothing_else_from_moving() -> None:
    with in_huge_pages():
        room = Halves()
        bytes_of = memoryview(room.memory)
        bytes_of[16 << 20 :] = b"x" * (16 << 20)  # nothing is in use of the first half,
        bytes_of[8 << 20 : (8 << 20) + 1000] = b"x" * 1000  # or nearly nothing
        before = room.huge_bytes()
    first, second = room.huge_bytes()
    assert first == before[0]
    assert second >= (12 << 20 if system_has_them() else 0)


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages.sys, "platform", "darwin")
    monkeypatch.setattr(huge_pages, "_anonymous_memory", None)  # would fail if it were called
    with in_huge_pages():
        pass


def test_what_fails_inside_fails_as_ever() -> None:
    with pytest.raises(ValueError, match="mine"), in_huge_pages():
        raise ValueError("mine")
