"""Recorded tensors on their way to a safetensors file: written as they come, put together at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minigpt.atomic import all_or_none

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

Chunks = Mapping[str, Sequence[Tensor]]  # of each name what each pass gave


@dataclass(frozen=True)
class _Piece:
    offset: int
    dtype: torch.dtype
    shape: torch.Size


class SpooledChunks(Mapping[str, Sequence[Tensor]]):
    """Tensors that are on the disk: memory holds only where they are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._pieces: dict[str, list[_Piece]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        self._file.seek(0, 2)
        piece = _Piece(self._file.tell(), tensor.dtype, tensor.shape)
        self._file.write(to_bytes(tensor))
        self._pieces.setdefault(name, []).append(piece)

    def __getitem__(self, name: str) -> list[Tensor]:
        return [self._read(piece) for piece in self._pieces[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def _read(self, piece: _Piece) -> Tensor:
        self._file.seek(piece.offset)
        data = bytearray(self._file.read(piece.shape.numel() * piece.dtype.itemsize))
        return from_bytes(data, piece.dtype, piece.shape)


class FileChunks(Mapping[str, Sequence[Tensor]]):
    """Tensors of a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                self._names = list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from None

    def __getitem__(self, name: str) -> list[Tensor]:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self._path, "pt") as file:
            return [file.get_tensor(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def write(path: Path, names: Sequence[str], tensor: Callable[[str], Tensor]) -> None:
    """Writes a safetensors file of which only one tensor at a time is in memory; atomically.

    The format is 8 bytes that say how long the header is, the header (JSON: dtype, shape and offsets of
    each tensor), and the tensors' bytes.

    Args:
        path: where to; an older file there is replaced.
        names: the tensors, in the order in which they are to lie in the file.
        tensor: gives each when it is needed.
    """
    header: dict[str, object] = {}
    with all_or_none(path.parent) as aside:
        body, end = aside / f"{path.name}.body", 0
        with body.open("wb") as file:
            for name in names:
                value = tensor(name)
                begin, end = end, end + value.numel() * value.dtype.itemsize
                header[name] = {
                    "dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end],
                }  # fmt: skip
                file.write(to_bytes(value))
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # readers like the tensors to begin at a multiple of 8
        with (aside / path.name).open("wb") as whole, body.open("rb") as file:
            whole.write(len(text).to_bytes(8, "little") + text)
            while part := file.read(1 << 24):
                whole.write(part)
        body.unlink()


def to_bytes(tensor: Tensor) -> bytes:
    r"""The tensor's numbers as a file holds them.

    >>> to_bytes(torch.tensor([1, 2], dtype=torch.uint8))
    b'\x01\x02'
    """
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytearray, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The other way round."""
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
