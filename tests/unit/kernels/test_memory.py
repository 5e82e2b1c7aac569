"""Weights lie in memory as the machine likes them, and nobody else notices."""

from __future__ import annotations

import copy
import mmap
import pickle
from pathlib import Path

import pytest
import torch

from minigpt import GPT2, GPT2Config
from minigpt.kernels import WeightMemory, memory
from minigpt.kernels.memory import MemoryPool

SMALL = GPT2Config(vocab_size=61, n_positions=48, n_embd=64, n_layer=2, n_head=4)
CPU = torch.device("cpu")
needs_linux = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="needs Linux: huge pages are asked for there alone"
)


def test_weights_share_memory_and_touch_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHUNK", 1000)
    place = WeightMemory(CPU)
    shapes = [(3, 5), (7, 9), (20, 20), (1, 1), (2, 2, 2), (11, 13)]
    dtypes = [torch.float32, torch.float16, torch.float64, torch.int8, torch.bfloat16, torch.float32]
    tensors = [place.reserve(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (tensor, shape, dtype) in enumerate(zip(tensors, shapes, dtypes, strict=True)):
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert (tensor == number).all()
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def mapped() -> int:
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


@needs_linux
def test_memory_is_given_back_when_its_weights_are_gone() -> None:
    before = mapped()
    place = WeightMemory(CPU)
    tensors = [place.reserve((1024, 1024), torch.float32) for _ in range(40)]  # 160 MB
    assert mapped() - before > 150 << 20
    del tensors[4:]  # all but some of the first chunk
    assert mapped() - before < 80 << 20  # with the last one, which the room holds on to


@needs_linux
def test_a_kernel_without_huge_pages_loads_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.kernels.memory.mmap.MADV_HUGEPAGE", 9999)  # no such advice: EINVAL
    weight = WeightMemory(CPU).reserve((1024, 1024), torch.float32)
    assert weight.fill_(2).sum() == 2 << 20


@needs_linux
def test_weights_for_which_there_is_no_memory_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("minigpt.kernels.memory.mmap.mmap", fail)
    with pytest.raises(MemoryError, match="no 33,554,432 bytes of memory left"):
        WeightMemory(CPU).reserve((1024, 1024), torch.float32)
    with pytest.raises(MemoryError, match="no 67,108,864 bytes of memory left"):
        MemoryPool().reserve((4096, 4096), torch.float32, CPU)


def test_a_loaded_model_is_saved_and_copied_tensor_by_tensor(tmp_path: Path) -> None:
    GPT2(SMALL).save_pretrained(tmp_path)
    model = GPT2.from_pretrained(tmp_path)
    for name, tensor in [*model.state_dict().items(), *copy.deepcopy(model).state_dict().items()]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
    again = pickle.loads(pickle.dumps(model))
    assert all(map(torch.equal, again.parameters(), model.parameters()))


@torch.no_grad()
def test_keys_and_values_are_the_same_in_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, tokens = GPT2(SMALL).eval(), torch.randint(SMALL.vocab_size, (2, 9))

    def passes() -> list[torch.Tensor]:
        cache = model.new_cache(12, 1)
        seen = [model.next_logits(tokens[:1, :5], cache)]
        cache.select([0, 0])  # more rows, and then more slots
        cache.grow(20)
        return [*seen, model.next_logits(tokens[:, 5:], cache)]

    usual = passes()
    monkeypatch.setattr(memory, "SMALLEST", 1000)
    assert all(map(torch.equal, passes(), usual))


@needs_linux
def test_the_memory_of_a_cache_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALLEST", 1000)
    pool = MemoryPool()

    def reserved(n: int) -> torch.Tensor:
        return pool.reserve((2, n), torch.float32, CPU)

    first, second = reserved(3000).fill_(1), reserved(2000).fill_(2)
    assert first.sum() == 6000  # two at once share nothing
    places = {first.data_ptr(): 3000, second.data_ptr(): 2000}
    del second, first
    assert places[reserved(500).data_ptr()] == 3000  # the last one was kept
    view = reserved(500)[1:]
    assert reserved(500).data_ptr() not in (view.data_ptr(), view.data_ptr() - 2000)  # a part is still in use
    del view
    larger = reserved(3001)
    assert larger.fill_(3).sum() == 18006
    again = reserved(100)
    assert again.data_ptr() != larger.data_ptr()


@needs_linux
def test_of_one_model_one_piece_of_memory_is_kept_and_none_that_is_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MAX_SPARE", 48 << 20)
    before, pool = mapped(), MemoryPool()
    tensors = [pool.reserve((n << 20,), torch.int8, CPU) for n in (48, 44, 40, 49, 300)]
    assert mapped() - before > 470 << 20
    while tensors:
        del tensors[0]  # one after the other
    assert 39 << 20 < mapped() - before < 47 << 20
    copies = [copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))]
    assert mapped() - before < 47 << 20
    left = pool.reserve((32 << 20,), torch.int8, CPU)
    del pool
    left[-1] = 1  # it needs no pool (nor threads, which would take memory)
    del left
    assert mapped() - before < 12 << 20
    assert copies[0].reserve((32 << 20,), torch.int8, CPU).shape == (32 << 20,)


@needs_linux
@torch.no_grad()
def test_a_model_gives_the_same_in_memory_that_was_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SMALLEST", 1000)
    torch.manual_seed(0)
    model = GPT2(SMALL).eval()
    long, short = torch.randint(SMALL.vocab_size, (2, 30)), torch.randint(SMALL.vocab_size, (2, 9))
    pad = torch.tensor([0, 4])

    def logits() -> torch.Tensor:
        cache = model.new_cache(12, 2, pad)
        cache.slots[:] = float("nan")
        return torch.stack([model.next_logits(part, cache) for part in short.split((7, 1, 1), 1)])

    with monkeypatch.context() as fresh:
        fresh.setattr(MemoryPool, "_take_back", lambda *_: None)
        expected = logits()
    cache = model.new_cache(40, 2)
    model.next_logits(long, cache)
    place = cache.slots.data_ptr()
    del cache
    assert model.new_cache(12, 2).slots.data_ptr() == place
    assert torch.equal(logits(), expected)
