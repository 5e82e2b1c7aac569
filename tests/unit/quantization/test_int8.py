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
    HUNDREDTH,
    STEP,
    ZERO,
    Int8FineLinear,
    Int8Linear,
    PackedMatrix,
    PlainMatrix,
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


def by_hand(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The product as its formula says, in float64, which holds sums of this size exactly."""
    rounded = (rows.double() * 127).round()
    return rounded @ weight.double().t() * scale.double() / 127


@pytest.mark.parametrize("n_rows", [1, 2, 5, 33])
@pytest.mark.parametrize("n_in", [64, 768, 3072])
@torch.no_grad()
def test_the_plain_product_is_the_formula(n_rows: int, n_in: int) -> None:
    rows, weight, scale = random(n_rows, n_in).clamp(-1, 1), whole(N_OUT, n_in), random(N_OUT).abs()
    expected = by_hand(rows, weight, scale)
    torch.testing.assert_close(PlainMatrix(weight, scale)(rows).double(), expected, rtol=1e-6, atol=1e-3)


@needs_packing
@pytest.mark.parametrize("n_rows", [1, 2, 3, 8, 33])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (96, 50), (768, 256), (3072, 64), (100, 7)])
@torch.no_grad()
def test_the_packed_product_is_the_plain_one_to_the_bit(n_rows: int, n_in: int, n_out: int) -> None:
    rows, weight, scale = random(n_rows, n_in).clamp(-1, 1), whole(n_out, n_in), random(n_out).abs()
    assert torch.equal(PackedMatrix(weight, scale)(rows), PlainMatrix(weight, scale)(rows))


@needs_packing
@pytest.mark.parametrize("n_in", [8, 33, 100, 768])
@pytest.mark.parametrize("step", [STEP, HUNDREDTH])
@torch.no_grad()
def test_what_lies_nearly_between_two_steps_is_rounded_as_the_kernel_rounds_it(
    step: float, n_in: int
) -> None:
    halves = (torch.arange(-ZERO, ZERO) + 0.5) * step
    near = torch.stack([halves + i * halves.abs() * 2**-24 for i in range(-9, 10)]).view(-1, 1)
    rows = torch.cat([near, near * 2**-10, near * 2**-20, near * 3]).expand(-1, n_in).contiguous()
    weight, scale = torch.eye(n_in, dtype=torch.int8), torch.ones(n_in)
    assert torch.equal(PackedMatrix(weight, scale)(rows, step), PlainMatrix(weight, scale)(rows, step))


@needs_packing
@pytest.mark.parametrize("sign", [1, -1])
@torch.no_grad()
def test_sums_that_exceed_16_bits_do_not_saturate(sign: int) -> None:
    """Two products of the largest numbers are 32,258: one more and 16 bits are full."""
    rows, scale = torch.full((3, 3072), float(sign)), torch.ones(N_OUT)
    weight = torch.full((N_OUT, 3072), 127, dtype=torch.int8)
    for kind in (PackedMatrix, PlainMatrix):
        torch.testing.assert_close(
            kind(weight, scale)(rows).double(), by_hand(rows, weight, scale), rtol=1e-6, atol=0
        )
    assert torch.equal(PackedMatrix(weight, scale)(rows), PlainMatrix(weight, scale)(rows))


Layer = Int8Linear | Int8FineLinear


def layer(kind: type[Layer]) -> tuple[Layer, Tensor, Tensor]:
    weight, bias = random(N_OUT, N_IN), random(N_OUT, seed=2)
    return kind(*round_weight(weight, torch.ones(N_IN)), bias), weight, bias


KINDS = pytest.mark.parametrize("kind", [Int8Linear, Int8FineLinear])
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


@KINDS
@MATRICES
@torch.no_grad()
def test_a_row_has_the_same_bits_whatever_is_multiplied_beside_it(
    kind: type[Layer], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_by(way, monkeypatch)
    linear, _, _ = layer(kind)
    rows = random(7, N_IN) * 10.0 ** torch.arange(-3, 4)[:, None]
    together = linear(rows)
    for i, row in enumerate(rows):
        assert torch.equal(linear(row[None])[0], together[i])
    assert torch.equal(linear(rows.view(1, 7, N_IN))[0], together)


@pytest.mark.parametrize(("kind", "limit"), [(Int8Linear, 0.02), (Int8FineLinear, 0.01)])
@torch.no_grad()
def test_the_product_is_near_to_float32s(kind: type[Layer], limit: float) -> None:
    linear, weight, bias = layer(kind)
    rows = random(9, N_IN, seed=3)
    exact = rows @ weight.t() + bias
    assert (linear(rows) - exact).norm() < limit * exact.norm()
    assert torch.equal(linear(torch.zeros(2, N_IN)), bias.expand(2, -1))


@MATRICES
@torch.no_grad()
def test_two_numbers_hold_an_input_two_hundred_times_as_well_as_one(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 1/100 of the largest input in 254 parts, and a step of 1/127."""
    multiply_by(way, monkeypatch)
    weight, rows = whole(N_OUT, N_IN), random(50, N_IN, seed=3)
    product = rows.double() @ weight.double().t()
    coarse, fine = (
        (kind(weight, torch.ones(N_OUT), torch.ones(N_IN), torch.zeros(N_OUT))(rows) - product).norm()
        for kind in (Int8Linear, Int8FineLinear)
    )
    assert 170 < coarse / fine < 230


@torch.no_grad()
def test_a_channel_a_hundred_times_larger_leaves_the_others_their_precision() -> None:
    """Its weights are as much smaller, as in GPT-2: without evening out, half of what the rest says is lost."""
    weight, rows = random(N_OUT, N_IN), random(50, N_IN, seed=3)
    sizes = torch.ones(N_IN)
    sizes[[5, 40]] = 100
    large, small = rows * sizes, weight / sizes
    exact = rows @ weight.t()
    even = Int8Linear(*round_weight(small, large.abs().amax(0)), torch.zeros(N_OUT))
    assert (even(large) - exact).norm() < 0.02 * exact.norm()
    uneven = Int8Linear(*round_weight(small, small.abs().amax(0)), torch.zeros(N_OUT))  # factors of 1
    assert (uneven(large) - exact).norm() > 0.1 * exact.norm()


@torch.no_grad()
def test_a_processor_whose_packed_sums_saturate_multiplies_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, _, _ = layer(Int8Linear)
    multiply_by("plain", monkeypatch)
    plain, _, _ = layer(Int8Linear)
    assert isinstance(plain.matrix, PlainMatrix)
    assert torch.equal(plain(random(3, N_IN)), linear(random(3, N_IN)))


@KINDS
@MATRICES
@torch.no_grad()
def test_a_layer_is_copied_pickled_and_loaded(
    kind: type[Layer], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_by(way, monkeypatch)
    linear, _, _ = layer(kind)
    rows = random(3, N_IN)
    loaded = kind(whole(N_OUT, N_IN), torch.ones(N_OUT), torch.ones(N_IN), torch.zeros(N_OUT))
    loaded.load_state_dict(linear.state_dict())
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear)), loaded):
        assert torch.equal(other(rows), linear(rows))
    assert linear.state_dict()["weight"].dtype == torch.int8
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        loaded.load_state_dict({n: t for n, t in linear.state_dict().items() if n != "weight"})


def test_gradients_and_other_dtypes_are_refused() -> None:
    linear, _, _ = layer(Int8Linear)
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
