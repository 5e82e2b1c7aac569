"""Whichever kernel multiplies, the product is the same; and weights lie in memory as the machine likes them."""

from __future__ import annotations

import copy
import mmap
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minigpt import GPT2, GPT2Config, kernels

pytestmark = pytest.mark.skipif(
    not kernels.ONEDNN, reason="needs oneDNN on x86: elsewhere there is no choice"
)


@pytest.fixture(params=["intel", "another maker"])
def maker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kernels, "MKL_IS_FAST", request.param == "intel")
    monkeypatch.setattr(kernels, "SMALL", 1000)
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
    monkeypatch.setattr(kernels.F, "linear", lambda *args: (names.append("mkl"), mkl(*args))[1])
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
    torch.testing.assert_close(kernels.product(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_slice_of_a_larger_tensor_is_multiplied_as_its_copy(maker: str) -> None:
    x, weight = torch.randn(5, 3, 64)[:, -1], torch.randn(96, 64)
    torch.testing.assert_close(kernels.product(x, weight), kernels.product(x.clone(), weight))


@pytest.mark.parametrize(
    ("mkl_is_fast", "rows", "lies", "kernel"),
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
    mkl_is_fast: bool, rows: int, lies: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MKL_IS_FAST", mkl_is_fast)
    weight = torch.zeros(1024, 512) if lies == "(out, in)" else torch.zeros(512, 1024).t()
    assert kernels.fastest(torch.zeros(rows, 512), weight) == kernel
    small = weight[:64] if lies == "(out, in)" else weight[:64].t().contiguous().t()
    assert kernels.fastest(torch.zeros(rows, 512), small) == ("mkl" if mkl_is_fast else kernel)


def test_gradients_and_other_types_are_left_to_torch(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = used(monkeypatch)
    x, weight = torch.randn(9, 64), torch.randn(96, 64, requires_grad=True)
    kernels.product(x, weight).sum().backward()
    with torch.no_grad():
        kernels.product(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.product(x, weight).dtype == torch.bfloat16
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


CPU = torch.device("cpu")
needs_linux = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs Linux: huge pages are asked for there alone"
)


def test_weights_share_memory_and_touch_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHUNK", 1000)
    room = kernels.Room(CPU)
    shapes = [(3, 5), (7, 9), (20, 20), (1, 1), (2, 2, 2), (11, 13)]
    dtypes = [torch.float32, torch.float16, torch.float64, torch.int8, torch.bfloat16, torch.float32]
    tensors = [room.reserve(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (tensor, shape, dtype) in enumerate(zip(tensors, shapes, dtypes, strict=True)):
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert (tensor == number).all()
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@needs_linux
def test_memory_is_given_back_when_its_weights_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    before = mapped()
    room = kernels.Room(CPU)
    tensors = [room.reserve((1024, 1024), torch.float32) for _ in range(40)]  # 160 MB
    assert mapped() - before > 150 << 20
    del tensors[4:]  # all but some of the first chunk
    assert mapped() - before < 80 << 20  # with the last one, which the room holds on to


@needs_linux
def test_a_kernel_without_huge_pages_loads_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.kernels.mmap.MADV_HUGEPAGE", 9999)  # no such advice: EINVAL
    room = kernels.Room(CPU).reserve((1024, 1024), torch.float32)
    assert room.fill_(2).sum() == 2 << 20


@needs_linux
def test_weights_for_which_there_is_no_memory_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("minigpt.kernels.mmap.mmap", fail)
    with pytest.raises(MemoryError, match="no 4,194,304 bytes left for a tensor of shape"):
        kernels.Room(CPU).reserve((1024, 1024), torch.float32)


def test_a_loaded_model_is_saved_and_copied_tensor_by_tensor(tmp_path: Path) -> None:
    GPT2(LARGE).save_pretrained(tmp_path)
    model = GPT2.from_pretrained(tmp_path)
    for name, tensor in [*model.state_dict().items(), *copy.deepcopy(model).state_dict().items()]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
    again = pickle.loads(pickle.dumps(model))
    assert all(map(torch.equal, again.parameters(), model.parameters()))
