"""8-bit weights: the packed kernel is the plain product, and a row is what it is alone."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from minigpt.kernels import c_functions
from minigpt.quantization import int8
from minigpt.quantization.int8 import (
    Int8Linear,
    PackedMatrix,
    PlainMatrix,
    quantize_rows,
    round_weight,
)

needs_packing = pytest.mark.skipif(
    not int8.packing_is_exact(),
    reason="needs a processor with VNNI: elsewhere the plain product is all there is",
)
N_IN, N_OUT = 96, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-127, 128, shape, generator=generator).to(torch.int8)


@pytest.mark.parametrize("n_rows", [1, 2, 5, 33])
@pytest.mark.parametrize("n_in", [64, 768, 3072])
@torch.no_grad()
def test_the_plain_product_is_the_formula(n_rows: int, n_in: int) -> None:
    rows, weight, scale = whole(n_rows, n_in), whole(N_OUT, n_in), random(N_OUT).abs()
    exact = (rows.long() @ weight.long().t()).double() * scale.double()
    torch.testing.assert_close(PlainMatrix(weight, scale)(rows.float()).double(), exact, rtol=1e-6, atol=0)


@needs_packing
@pytest.mark.parametrize("n_rows", [1, 2, 3, 8, 33])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (96, 50), (768, 256), (3072, 64), (100, 7)])
@torch.no_grad()
def test_the_packed_product_is_the_plain_one_to_the_bit(n_rows: int, n_in: int, n_out: int) -> None:
    rows, weight, scale = whole(n_rows, n_in).float(), whole(n_out, n_in), random(n_out).abs()
    packed, plain = PackedMatrix(weight, scale), PlainMatrix(weight, scale)
    assert torch.equal(packed(rows), plain(rows))
    inputs, factors = random(n_rows, n_in), random(n_in, seed=2).abs()
    inputs[:, ::5] *= 9  # these carry
    assert torch.equal(packed.affine(inputs, factors, None), plain.affine(inputs, factors, None))


@needs_packing
@pytest.mark.parametrize("sign", [1, -1])
@torch.no_grad()
def test_sums_that_exceed_16_bits_do_not_saturate(sign: int) -> None:
    """Two products of the largest numbers are 32,258: one more and 16 bits are full."""
    rows, scale = torch.full((3, 3072), 127.0 * sign), torch.ones(N_OUT)
    weight = torch.full((N_OUT, 3072), 127, dtype=torch.int8)
    for kind in (PackedMatrix, PlainMatrix):
        expected = torch.full((3, N_OUT), sign * 127.0**2 * 3072)
        assert torch.equal(kind(weight, scale)(rows), expected)


LARGE = {"none": [], "two": [5, 40], "many": range(0, N_IN, 5)}  # channels that are larger than the others


def sizes(large: str, n_in: int = N_IN) -> Tensor:
    return torch.ones(n_in).index_fill(0, torch.tensor(LARGE[large], dtype=torch.long), 30)


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("factor", [1, 1e5])
@torch.no_grad()
def test_inputs_are_whole_numbers_of_a_step_and_what_they_carry(large: str, factor: float) -> None:
    n_in = 1500  # so that one that is much larger is more than 1,016 times the mean
    rows = random(50, n_in) * sizes(large, n_in) * 10.0 ** torch.arange(50).remainder(9).sub(4)[:, None]
    rows[:, 3] *= factor
    first, carried, step = quantize_rows(rows, torch.full((n_in,), 0.5))
    for numbers in (first, carried):
        assert torch.equal(numbers, numbers.round())
        assert numbers.abs().amax() <= 127
    assert (((first + 254 * carried) * step - rows / 2).abs() <= 0.501 * step).all()
    size = rows.abs() / 2
    wanted = (4 * size.mean(1)).clamp(max=size.amax(1)).maximum(size.amax(1) / 254)
    torch.testing.assert_close(step[:, 0] * 127, wanted, rtol=0.01, atol=0)


def layer() -> tuple[Int8Linear, Tensor, Tensor]:
    weight, bias = random(N_OUT, N_IN), random(N_OUT, seed=2)
    return Int8Linear(*round_weight(weight, torch.ones(N_IN)), bias), weight, bias


MATRICES = pytest.mark.parametrize("way", ["compiled", "packed", "plain"])


def multiply_by(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away what is faster than that way."""
    if way == "compiled":
        if not c_functions.available():
            pytest.skip("needs a C compiler, and a processor with AVX-512 VNNI")
        return
    monkeypatch.setattr(c_functions, "available", lambda: False)
    if way == "plain":
        monkeypatch.setattr(int8, "packing_is_exact", lambda: False)


@MATRICES
@torch.no_grad()
def test_a_row_has_the_same_bits_whatever_is_multiplied_beside_it(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_by(way, monkeypatch)
    linear, _, _ = layer()
    rows = random(7, N_IN) * 10.0 ** torch.arange(-3, 4)[:, None]
    rows[::2, ::5] *= 9  # these carry
    together = linear(rows)
    for i, row in enumerate(rows):
        assert torch.equal(linear(row[None])[0], together[i])
    assert torch.equal(linear(rows.view(1, 7, N_IN))[0], together)


@pytest.mark.parametrize("large", LARGE)
@MATRICES
@torch.no_grad()
def test_the_product_is_near_to_float32s(way: str, large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that are larger have smaller weights, as in GPT-2."""
    multiply_by(way, monkeypatch)
    weight, rows = random(N_OUT, N_IN) / sizes(large), random(9, N_IN, seed=3) * sizes(large)
    bias = random(N_OUT, seed=2)
    linear = Int8Linear(*round_weight(weight, rows.abs().amax(0)), bias)
    exact = rows @ weight.t() + bias
    assert (linear(rows) - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(linear(torch.zeros(2, N_IN)), bias.expand(2, -1))


@MATRICES
@torch.no_grad()
def test_inputs_that_nobody_expected_to_be_large_leave_the_others_their_precision(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one number for each input, and a scale that fits the largest, nothing would be left of the others."""
    multiply_by(way, monkeypatch)
    weight, rows = random(N_OUT, 768), random(9, 768, seed=3)
    large = rows.index_fill(1, torch.tensor([7]), 500.0)
    linear = Int8Linear(*round_weight(weight, torch.ones(768)), torch.zeros(N_OUT))
    of_others = linear(large) - linear.matrix.weight[:, 7] * linear.weight_scale * 500 * linear.input_scale[7]
    exact = rows.index_fill(1, torch.tensor([7]), 0) @ weight.t()
    assert (of_others - exact).norm() < 0.04 * exact.norm()


@torch.no_grad()
def test_a_channel_that_is_always_larger_is_smoothed() -> None:
    """Its weights are as much smaller: unless they are made larger, their 8 bits are lost."""
    weight, rows = random(N_OUT, N_IN), random(50, N_IN, seed=3)
    size = torch.ones(N_IN)
    size[[5, 40]] = 100
    large, small = rows * size, weight / size
    exact = rows @ weight.t()
    even, uneven = (
        Int8Linear(*round_weight(small, expected), torch.zeros(N_OUT))
        for expected in (large.abs().amax(0), small.abs().amax(0))  # the latter: factors of 1
    )
    assert (even(large) - exact).norm() < 0.2 * (uneven(large) - exact).norm()


@torch.no_grad()
def test_a_processor_whose_packed_sums_saturate_multiplies_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, _, _ = layer()
    multiply_by("plain", monkeypatch)
    plain, _, _ = layer()
    assert isinstance(plain.matrix, PlainMatrix)
    assert torch.equal(plain(random(3, N_IN)), linear(random(3, N_IN)))


@MATRICES
@torch.no_grad()
def test_a_layer_is_copied_pickled_and_loaded(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_by(way, monkeypatch)
    linear, _, _ = layer()
    rows = random(3, N_IN)
    loaded = Int8Linear(whole(N_OUT, N_IN), torch.ones(N_OUT), torch.ones(N_IN), torch.zeros(N_OUT))
    loaded.load_state_dict(linear.state_dict())
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear)), loaded):
        assert torch.equal(other(rows), linear(rows))
    assert linear.state_dict()["weight"].dtype == torch.int8
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        loaded.load_state_dict({n: t for n, t in linear.state_dict().items() if n != "weight"})


def test_gradients_and_other_dtypes_are_refused() -> None:
    linear, _, _ = layer()
    with pytest.raises(ValueError, match=r"quantized weights have no gradients: .* use torch\.no_grad\(\)"):
        linear(random(2, N_IN).requires_grad_())
    with pytest.raises(
        ValueError, match=r"cannot become torch\.float16 on cpu: .* load the model without quantize="
    ):
        linear.half()
    assert linear.float() is linear


@needs_packing
def test_a_processor_without_vnni_multiplies_exactly_too() -> None:
    """Both of torch's kernels saturate there, alike, so neither can be held against the other."""
    script = (
        "import torch; from minigpt.quantization import int8;"
        "weight = torch.full((32, 2048), 127, dtype=torch.int8);"
        "matrix = int8.matrix(weight, torch.ones(32));"
        "product = matrix.affine(torch.ones(3, 2048), torch.ones(2048), None);"
        "torch.testing.assert_close(product, torch.full((3, 32), 2048.0 * 127), rtol=1e-6, atol=0);"
        "assert not int8.packing_is_exact() and not int8.int_mm_is_exact()"
    )
    old = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    }
    subprocess.run([sys.executable, "-c", script], env=old, check=True)


@MATRICES
@torch.no_grad()
def test_a_layer_of_one_input(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply_by(way, monkeypatch)
    linear = Int8Linear(*round_weight(torch.tensor([[1.0], [2], [-3]]), torch.ones(1)), torch.zeros(3))
    assert linear(torch.ones(2, 1)).tolist() == [pytest.approx([1, 2, -3])] * 2


def test_a_layer_whose_sums_might_exceed_32_bits_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 131,072 inputs, not 131,073: use float16"):
        round_weight(torch.ones(1, 2**17 + 1), torch.ones(2**17 + 1))
