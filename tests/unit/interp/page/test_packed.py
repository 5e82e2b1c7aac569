"""Arrays come back as they were; damaged ones are refused, and cannot fill the memory."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minigpt.interp.page.packed import DTYPES, id_dtype, is_packed, pack, unpack

WHOLE = {"uint8": 1 << 8, "uint16": 1 << 16, "uint32": 1 << 32}


@given(
    dtype=st.sampled_from(sorted(WHOLE)),
    shape=st.lists(st.integers(0, 4), max_size=4),
    seed=st.integers(0, 99),
)
def test_whole_numbers_come_back(dtype: str, shape: list[int], seed: int) -> None:
    values = torch.randint(0, WHOLE[dtype], shape, generator=torch.Generator().manual_seed(seed))
    assert unpack(pack(values, dtype)).equal(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_come_back_to_the_bit(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.1, -1e-40, torch.inf], [-torch.inf, torch.nan, 1e30]], dtype=dtype)
    back = unpack(pack(values, str(dtype).removeprefix("torch.")))
    assert back.dtype == dtype
    assert back.view(torch.uint8).equal(values.view(torch.uint8))


def test_the_bytes_stand_in_planes() -> None:
    """As a reader in another language finds them: written out with `struct`."""
    packed = pack(torch.tensor([[1, 2], [0x0304, 0xFFFF]]), "uint16")
    little = struct.pack("<4H", 1, 2, 0x0304, 0xFFFF)
    assert zlib.decompress(base64.b64decode(packed["data"])) == little[0::2] + little[1::2]
    assert (packed["dtype"], packed["shape"]) == ("uint16", [2, 2])


def test_which_dtype_holds_all_ids() -> None:
    assert (id_dtype(1 << 16), id_dtype((1 << 16) + 1)) == ("uint16", "uint32")


def packed(**changed: Any) -> dict[str, Any]:
    return {**pack(torch.arange(4), "uint8"), **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "int8"}, "an array has the dtype 'int8'; there are uint8, "),
        ({"dtype": ["uint8"]}, "an array has the dtype"),
        ({"shape": [2, -2]}, r"an array has the shape \[2, -2\]"),
        ({"shape": [True, 4]}, "an array has the shape"),
        ({"shape": 4}, "an array has the shape 4"),
        ({"shape": [1 << 40]}, r"an array has 1,099,511,627,776 bytes; a page holds at most 1,073,741,824"),
        ({"shape": [5]}, "an array is damaged: it has not the 5 bytes of its shape"),
        ({"shape": [3]}, "an array is damaged: it has not the 3 bytes of its shape"),
        ({"data": "!"}, "an array is damaged: "),
        ({"data": "é"}, "an array is damaged: "),
        ({"data": "AAAA"}, "an array is damaged: Error -3"),
        ({"data": 7}, "an array has the dtype"),
        ({"data": pack(torch.arange(4), "uint8")["data"][:-8]}, "an array is damaged: "),
    ],
)
def test_what_is_damaged_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(packed(**changed))


def test_a_bomb_is_not_inflated() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(1 << 24), 9)).decode()
    with pytest.raises(ValueError, match="it has not the 4 bytes of its shape"):
        unpack(packed(data=bomb))


@pytest.mark.parametrize("value", [packed(more=1), {"dtype": "uint8", "shape": []}, [1], None])
def test_what_is_no_array(value: object) -> None:
    assert not is_packed(value)
    assert is_packed(packed())


def test_dtypes_are_those_of_the_page() -> None:
    for dtype in DTYPES:
        back: Tensor = unpack(pack(torch.tensor([0, 1]), dtype))
        assert back.tolist() == [0, 1]
