"""Weights files: their headers are compared with config.json before anything is mapped; how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import save, tiny
from safetensors.torch import load_file, save_file

from minigpt import GPT2, weights

HUGE = [25_000_000_000 // 8, 8]  # 100 GB of float32


def write_header(path: Path, change: dict[str, Any]) -> None:
    """A sparse file of that header, and of the length that it asks for."""
    entries, end = {}, 0
    for name, tensor in load_file(path).items():
        size = 4 * tensor.numel()
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    entries |= change
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 200_000_000_000)


@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"])
def test_a_file_larger_than_memory_that_does_not_fit_its_config(tmp_path: Path, name: str) -> None:
    save(tmp_path, tiny())
    entry = {"dtype": "F32", "shape": HUGE, "data_offsets": [0, 100_000_000_000]}
    write_header(tmp_path / "model.safetensors", {name: entry})
    with pytest.raises(ValueError, match=rf"shapes differ from config\.json's: {name} \(3125000000, 8\)"):
        GPT2.from_pretrained(tmp_path)


@pytest.mark.filterwarnings("ignore:.*wte and lm_head differ")
def test_a_head_larger_than_memory(tmp_path: Path) -> None:
    save(tmp_path, tiny())
    entry = {"dtype": "F32", "shape": HUGE, "data_offsets": [0, 100_000_000_000]}
    write_header(tmp_path / "model.safetensors", {"lm_head.weight": entry})
    with pytest.raises(ValueError, match=r"shapes differ from config\.json's: lm_head\.weight"):
        GPT2.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (5, "must hold an object, got 5"),
        ({"dtype": "F32"}, "lacks the field shape, a list"),
        ({"dtype": "F32", "shape": [8, "x"]}, "shape must be a whole number, got 'x'"),
        ({"dtype": 32, "shape": [8]}, "dtype must be a text, got 32"),
        ({"dtype": "F8", "shape": [8]}, "is stored as F8; F64, F32, F16, BF16 are read"),
    ],
)
def test_a_header_of_another_kind_is_named(tmp_path: Path, entry: Any, message: str) -> None:
    save(tmp_path, tiny())
    write_header(tmp_path / "model.safetensors", {"transformer.wpe.weight": entry})
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*wpe\.weight'?:? {message}"):
        GPT2.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its header would have 0 bytes"),
        (b"\xff" * 8, "its header would have 18,446,744,073,709,551,615 bytes"),
        (b"\x05\0\0\0\0\0\0\0[1, 2", "its header is not JSON"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "its brackets are nested too deeply"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    save(tmp_path, tiny())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.safetensors is damaged or incomplete \(.*{message}"):
        GPT2.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_is_what_safetensors_writes_to_the_byte(tmp_path: Path, dtype: torch.dtype) -> None:
    state = tiny(n_layer=2).to(dtype).state_dict()
    weights.save(state, tmp_path / "ours.safetensors")
    named = {weights.to_theirs(name): tensor for name, tensor in state.items()}
    save_file(named, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_tensors_of_several_dtypes_lie_where_their_size_wants_them(tmp_path: Path) -> None:
    state = tiny(n_embd=9, vocab_size=258).state_dict()
    state["blocks.0.mlp.up.weight"] = torch.ones(9, 35, dtype=torch.int8)
    state["blocks.0.attn.out.weight"] = torch.ones(9, 9, dtype=torch.float16)
    weights.save(state, tmp_path / "mixed.safetensors")
    stored = load_file(tmp_path / "mixed.safetensors")
    assert all(torch.equal(stored[weights.to_theirs(name)], tensor) for name, tensor in state.items())


def test_a_sharded_model_is_gathered_tensor_by_tensor_in_the_order_of_the_file() -> None:
    asked: list[str] = []

    class Shard:
        """One that says when it is gathered; as DTensor, as far as it is used."""

        itemsize = 4

        def __init__(self, name: str) -> None:
            self.name = name

        def full_tensor(self) -> None:
            asked.append(self.name)

    names = ("final_norm.bias", "head.weight", "blocks.10.mlp.up.bias")
    state: Any = {name: Shard(name) for name in names}
    weights.take_part_in_save(state)
    assert asked == ["head.weight", "blocks.10.mlp.up.bias", "final_norm.bias"]
