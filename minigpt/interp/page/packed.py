"""Arrays of numbers as text: their bytes, compressed, in base64, with what it takes to read them back."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = ("uint8", "uint16", "uint32", "float32", "float64")
LARGEST = 1 << 30  # bytes that an array of a page may have: a damaged file must not fill the memory


def pack(values: Tensor, dtype: str) -> dict[str, Any]:
    """An array as JSON.

    The bytes are little-endian and stand in planes, the lowest byte of every element first: bytes of one
    plane are alike (all exponents, say), so that they compress better.

    Args:
        values: whole numbers that fit for the unsigned dtypes; any for the others.
        dtype: one of `DTYPES`.

    >>> pack(torch.tensor([1.0, 2.0]), "float32")["shape"]
    [2]
    """
    assert dtype in DTYPES
    array = np.ascontiguousarray(values.detach().cpu().numpy().astype(np.dtype(dtype).newbyteorder("<")))
    planes = array.reshape(-1).view(np.uint8).reshape(array.size, array.itemsize).T
    data = base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()
    return {"dtype": dtype, "shape": list(values.shape), "data": data}


def id_dtype(vocab_size: int) -> str:
    """The smaller dtype that holds every token id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def is_packed(value: object) -> bool:
    """Whether some JSON is what `pack` gives."""
    return isinstance(value, Mapping) and value.keys() == {"dtype", "shape", "data"}


def unpack(packed: Mapping[str, Any]) -> Tensor:
    """The array again: whole numbers as int64, others as they are.

    Raises:
        ValueError: it is damaged.

    >>> unpack(pack(torch.tensor([[1, 2], [3, 65535]]), "uint16")).tolist()
    [[1, 2], [3, 65535]]
    """
    dtype, shape, data = packed["dtype"], packed["shape"], packed["data"]
    if dtype not in DTYPES or not isinstance(data, str):
        raise ValueError(f"an array has the dtype {dtype!r:.40}; there are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"an array has the shape {shape!r:.40}")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > LARGEST:
        raise ValueError(f"an array has {size:,} bytes; a page holds at most {LARGEST:,} in one")
    raw = _inflated(data, size)
    planes = np.frombuffer(raw, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    array = np.ascontiguousarray(planes.T).view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return torch.from_numpy(array.astype(np.int64 if dtype.startswith("u") else dtype))


def _inflated(data: str, size: int) -> bytes:
    """So many bytes, no more and no less."""
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(base64.b64decode(data, validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"an array is damaged: {error}") from None
    if len(raw) != size or not inflater.eof:
        raise ValueError(f"an array is damaged: it has not the {size:,} bytes of its shape")
    return raw
