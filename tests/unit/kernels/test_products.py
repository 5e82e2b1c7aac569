"""Whichever kernel multiplies, the product is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minigpt import GPT2, GPT2Config
from minigpt.kernels import c_functions, products

pytestmark = pytest.mark.skipif(
    not products.ONEDNN, reason="needs oneDNN on x86: elsewhere there is no choice"
)


needs_c = pytest.mark.skipif(not c_functions.available(), reason="needs a C compiler and AVX-512 VNNI")


@pytest.fixture(params=["intel", "another maker", pytest.param("another maker, in C", marks=needs_c)])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if "in C" not in request.param:
        monkeypatch.setattr(c_functions, "available", lambda: False)
    monkeypatch.setattr(products, "IS_INTEL", request.param == "intel")
    monkeypatch.setattr(products, "SMALL", 1000)
    return str(request.param)


def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that are called from now on."""
    names: list[str] = []
    onednn, mkl = torch.ops.mkldnn._linear_pointwise, F.linear

    class Ops:
        @staticmethod
        def _linear_pointwise(*args: object) -> torch.Tensor:
            names.append("onednn")
            return onednn(*args)

    monkeypatch.setattr(torch.ops, "mkldnn", Ops)
    monkeypatch.setattr(products.F, "linear", lambda *args: (names.append("mkl"), mkl(*args))[1])
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *args: (names.append("blocks"), bmm(*args))[1])
    return names


@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 64), (4, 64), (2, 5, 64), (1, 1, 64), (130, 64)])
@pytest.mark.parametrize("lies", ["(out, in)", "(in, out)"])
@pytest.mark.parametrize("n_out", [96, 97])  # three blocks, and one output more
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_every_kernel_gives_the_product(
    maker: str, shape: tuple[int, ...], lies: str, n_out: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(n_out, 64), torch.randn(n_out) if has_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    if lies == "(in, out)":
        weight = weight.t().contiguous().t()
    torch.testing.assert_close(products.product(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_slice_of_a_larger_tensor_is_multiplied_as_its_copy(maker: str) -> None:
    x, weight = torch.randn(5, 3, 64)[:, -1], torch.randn(96, 64)
    torch.testing.assert_close(products.product(x, weight), products.product(x.clone(), weight))


@pytest.mark.parametrize(
    ("is_intel", "rows", "lies", "kernel"),
    [
        (True, 1, "(in, out)", "mkl"),
        (True, 8, "(in, out)", "mkl"),
        (True, 3, "(out, in)", "mkl"),
        (True, 4, "(out, in)", "in blocks"),
        (True, 15, "(out, in)", "in blocks"),
        (True, 16, "(out, in)", "mkl"),
        (False, 1, "(in, out)", "onednn"),
        (False, 1, "(out, in)", "in blocks, transposed"),
        (False, 4, "(out, in)", "in blocks, transposed"),
        (False, 5, "(out, in)", "onednn"),
    ],
)
@torch.no_grad()
def test_the_kernel_is_the_one_that_was_measured_to_be_fastest(
    is_intel: bool, rows: int, lies: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "IS_INTEL", is_intel)
    monkeypatch.setattr(c_functions, "available", lambda: False)
    weight = torch.zeros(1024, 512) if lies == "(out, in)" else torch.zeros(512, 1024).t()
    assert products.fastest(torch.zeros(rows, 512), weight) == kernel
    small = weight[:64] if lies == "(out, in)" else weight[:64].t().contiguous().t()
    assert products.fastest(torch.zeros(rows, 512), small) == ("mkl" if is_intel else kernel)


@pytest.mark.parametrize("rows", [1, 5, 200])
@torch.no_grad()
def test_c_is_chosen_where_each_outputs_weights_lie_together(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c_functions, "available", lambda: True)
    x, weight = torch.zeros(rows, 512), torch.zeros(1024, 512)
    monkeypatch.setattr(products, "IS_INTEL", True)
    assert products.fastest(x, weight) != "in C"
    monkeypatch.setattr(products, "IS_INTEL", False)
    assert products.fastest(x, weight) == "in C"
    assert products.fastest(x, torch.zeros(512, 1024).t()) == "onednn"


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("n_in", "n_out"), [(64, 64), (96, 50), (768, 256), (3072, 64), (100, 7), (33, 17), (5, 1)]
)
@torch.no_grad()
def test_in_c_a_row_gives_the_bits_that_it_gives_alone(n_in: int, n_out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, n_in), torch.randn(n_out, n_in).to(dtype), torch.randn(n_out)
    layer = c_functions.plain_layer(weight, bias)
    alone = torch.cat([c_functions.linear(row[None], layer) for row in x])
    exact = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(alone.double(), exact, rtol=1e-5, atol=1e-5 * n_in**0.5)
    for n_rows in (2, 3, 4, 5, 6, 7, 8, 9, 130, 300):
        assert torch.equal(c_functions.linear(x[:n_rows], layer), alone[:n_rows])


@needs_c
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 5).t(),
        torch.zeros(4, 5).double(),
        torch.zeros(4, 5).bfloat16(),
        torch.zeros(4, 5, device="meta"),
    ],
    ids=["order", "float64", "bfloat16", "meta"],
)
def test_in_c_a_weight_that_cannot_be_read_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"expected a contiguous weight \(out, in\) of float32 or float16 on the CPU"
    ):
        c_functions.plain_layer(weight, None)


def test_gradients_and_other_types_are_left_to_torch(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = used(monkeypatch)
    x, weight = torch.randn(9, 64), torch.randn(96, 64, requires_grad=True)
    products.product(x, weight).sum().backward()
    with torch.no_grad():
        products.product(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert products.product(x, weight).dtype == torch.bfloat16
    assert names == ["mkl"] * 3
    assert weight.grad is not None


LARGE = GPT2Config(vocab_size=61, n_positions=48, n_embd=64, n_layer=2, n_head=4)


def test_loaded_weights_lie_as_the_machine_multiplies_them_fastest(maker: str, tmp_path: Path) -> None:
    fresh = GPT2(LARGE).eval()
    fresh.save_pretrained(tmp_path / "first")
    loaded = GPT2.from_pretrained(tmp_path / "first")
    weight = loaded.blocks[1].mlp.up.weight
    assert weight.shape == (64, 256)
    assert weight.t().is_contiguous()
    assert loaded.position_embedding.weight.is_contiguous()
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), fresh(tokens), rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
