"""Linear layers of 8-bit weights by functions in C are the plain ones to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minigpt.kernels import c_functions
from minigpt.quantization.int8 import Int8Linear, PlainMatrix
from minigpt.quantization.int8_in_c import MatrixInC

if not c_functions.available():
    pytest.skip("needs a C compiler, and a processor with AVX-512 VNNI", allow_module_level=True)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", ["alike", "random", "fifths", "one"])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 130])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (96, 50), (768, 256), (3072, 64), (100, 7), (33, 17)])
@torch.no_grad()
def test_a_layer_is_the_plain_one_to_the_bit(n_in: int, n_out: int, n_rows: int, sizes: str) -> None:
    rows = random(n_rows, n_in)
    if sizes == "alike":  # none carries
        rows = rows.sign() + rows.clamp(-1, 1)
    elif sizes == "fifths":  # most groups of four carry
        rows[:, ::5] = 20
    elif sizes == "one":  # it carries as much as it can
        rows[:, 3] = 1e5
    rows *= 10.0 ** torch.arange(n_rows).remainder(7).sub(3)[:, None]
    if n_rows > 1:
        rows[n_rows // 2] = 0
    weight = torch.randint(-127, 128, (n_out, n_in), dtype=torch.int8)
    scale, input_scale = random(n_out).abs(), random(n_in, seed=2).abs()
    plain, fast = PlainMatrix(weight, scale), MatrixInC(weight, scale)
    assert torch.equal(fast.weight, weight)
    for bias in (random(n_out, seed=3), None):
        assert torch.equal(fast.affine(rows, input_scale, bias), plain.affine(rows, input_scale, bias))


@torch.no_grad()
def test_rows_that_are_nearly_zero_are_as_in_the_plain_product() -> None:
    rows = random(40, 100) * 10.0 ** torch.arange(-42.0, -2)[:, None]
    weight, ones = torch.randint(-127, 128, (50, 100), dtype=torch.int8), torch.ones(100)
    found, expected = (
        kind(weight, torch.ones(50)).affine(rows, ones, None) for kind in (MatrixInC, PlainMatrix)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("n_in", [8, 33, 100, 768])
@torch.no_grad()
def test_what_lies_nearly_between_two_steps_is_rounded_as_in_the_plain_product(n_in: int) -> None:
    """The largest is 127 steps, for the mean is more than a quarter of it."""
    halves = (torch.arange(-127, 127) + 0.5).view(-1, 1)
    rows = torch.full((19, len(halves), n_in), 127.0)
    rows[..., : n_in // 2] = torch.stack([halves + i * halves.abs() * 2**-24 for i in range(-9, 10)])
    weight, ones = torch.eye(n_in, dtype=torch.int8), torch.ones(n_in)
    for scale in (1, 2**-10, 3):
        found, expected = (
            kind(weight, ones).affine(rows.view(-1, n_in) * scale, ones, None)
            for kind in (MatrixInC, PlainMatrix)
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("sign", [1, -1])
@torch.no_grad()
def test_sums_that_exceed_16_bits_do_not_saturate(sign: int) -> None:
    weight = torch.full((20, 3072), 127, dtype=torch.int8)
    rows, ones = torch.full((3, 3072), float(sign)), torch.ones(3072)
    found = MatrixInC(weight, torch.ones(20)).affine(rows, ones, None)
    torch.testing.assert_close(found, torch.full((3, 20), sign * 127.0 * 3072), rtol=1e-6, atol=0)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@torch.no_grad()
def test_numbers_without_measure_stay_in_their_row_and_are_as_in_the_plain_product(odd: float) -> None:
    weight, ones = torch.arange(-20, 20).to(torch.int8).repeat(20, 1), torch.ones(40)
    matrix, plain = MatrixInC(weight, torch.ones(20)), PlainMatrix(weight, torch.ones(20))
    rows = random(3, 40)
    rows[1, 7] = odd
    found, expected = (which.affine(rows, ones, torch.ones(20)) for which in (matrix, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[::2], matrix.affine(rows[::2], ones, torch.ones(20)))


def new_layer() -> Int8Linear:
    return Int8Linear(torch.ones(20, 40, dtype=torch.int8), torch.ones(20), torch.ones(40), torch.zeros(20))


@pytest.mark.parametrize(
    "bias",
    [
        torch.full((20,), 3.0),
        torch.zeros(1).expand(20),
        torch.arange(40.0)[::2],
        torch.arange(20, dtype=torch.float64),
        torch.arange(20, dtype=torch.bfloat16),
    ],
    ids=["others", "expanded", "strided", "float64", "bfloat16"],
)
@torch.no_grad()
def test_tensors_may_be_replaced_by_others_of_any_kind(bias: Tensor) -> None:
    layer = new_layer()
    before = layer(torch.ones(2, 40))
    layer.bias = bias
    assert torch.equal(layer(torch.ones(2, 40)), before + bias.float())
    bias.data = torch.ones(20, dtype=bias.dtype)
    assert torch.equal(layer(torch.ones(2, 40)), before + 1)
    layer.input_scale = torch.full((40,), 2.0)
    assert torch.equal(layer(torch.ones(2, 40)), 2 * before + 1)


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    layer = new_layer()
    with pytest.raises(ValueError, match="expected rows of 40 inputs on the CPU, got 39 on cpu"):
        layer(torch.ones(2, 39))
    with pytest.raises(ValueError, match="expected rows of 40 inputs on the CPU, got 40 on meta"):
        layer(torch.ones(2, 40, device="meta"))
    layer.bias = torch.zeros(19)
    with pytest.raises(ValueError, match=r"expected 20 numbers on the CPU, got \(19,\) on cpu"):
        layer(torch.ones(2, 40))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_rows_of_another_dtype_are_made_float32(dtype: torch.dtype) -> None:
    rows = random(3, 40).to(dtype)
    assert torch.equal(new_layer()(rows), new_layer()(rows.float()))
