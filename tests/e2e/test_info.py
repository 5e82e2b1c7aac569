"""`minigpt info` as a user meets it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from command import Result, call, save, tiny

from minigpt import GPT2, GPT2Config
from minigpt import info as info_command


def tell(*flags: object) -> Result:
    """The command, in this process."""
    return call(*flags, main=info_command.main)


def facts(*flags: object) -> dict[str, Any]:
    return dict(json.loads(tell("--json", *flags).text))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model", tiny(n_layer=2, tie_word_embeddings=False, n_inner=12))


def test_the_numbers_are_those_of_the_loaded_model(model: Path) -> None:
    found, loaded = facts(model), GPT2.from_pretrained(model)
    n_parameters = sum(parameter.numel() for parameter in loaded.parameters())
    assert (found["model"], found["directory"]) == (str(model), str(model))
    assert found["parameters"] == n_parameters
    assert (found["context_length"], found["vocabulary"]) == (32, 258)
    assert (found["layers"], found["heads"], found["hidden_size"], found["tied_embeddings"]) == (
        2,
        1,
        8,
        False,
    )
    assert found["stored_dtypes"] == ["F32"]
    assert found["weights_bytes"] == {
        "float32": 4 * n_parameters,
        "bfloat16": 2 * n_parameters,
        "float16": 2 * n_parameters,
    }
    assert found["kv_cache_bytes"]["float32"] == 2 * 2 * 8 * 32 * 4 == loaded.new_cache(32).nbytes


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_a_quantized_model_takes_what_it_holds(model: Path, kind: str, tmp_path: Path) -> None:
    GPT2.from_pretrained(model).quantize(kind).save_pretrained(tmp_path)
    found, loaded = facts(tmp_path), GPT2.from_pretrained(tmp_path)
    tensors = loaded.state_dict().values()
    held = sum(tensor.nbytes for tensor in tensors) + loaded.token_embedding.matrix.weight.nbytes
    assert found["weights_bytes"].keys() == {kind}
    assert found["weights_bytes"][kind] == pytest.approx(held, abs=6000)  # beside the file's header
    assert found["kv_cache_bytes"] == {"float32": loaded.new_cache(32).nbytes}


def test_every_file_with_its_hash(model: Path) -> None:
    files = facts(model)["files"]
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt"} <= files.keys()
    for name, file in files.items():
        content = (model / name).read_bytes()
        assert file == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_table_for_people(model: Path) -> None:
    out = tell(model).text
    assert out.startswith("model  ")
    assert "context length" in out
    assert "sha256 " in out


@pytest.mark.parametrize("name", [(), ("bundled",), ("--model", "bundled")])
def test_the_bundled_model(name: tuple[str, ...]) -> None:
    assert facts(*name)["model"] == "bundled"
    assert facts(*name)["parameters"] > 1e6


def test_a_directory_without_a_tokenizer_is_a_model_too(tmp_path: Path) -> None:
    GPT2(
        GPT2Config(
            n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=9, eos_token_id=None, bos_token_id=None
        )
    ).save_pretrained(tmp_path)
    assert "vocab.json" not in facts(tmp_path)["files"]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("no/such/model",), 3, "'no/such/model' does not exist"),
        (("bundeld",), 3, "'bundeld' does not exist; the bundled model is called 'bundled'"),
        (("a", "--model", "b"), 2, "the model is named twice, 'a' and 'b': leave one out"),
        (("--modle", "b"), 2, "unrecognized arguments: --modle (did you mean --model?)"),
    ],
)
def test_a_mistake_is_one_line(flags: tuple[str, ...], code: int, words: str) -> None:
    result = tell(*flags)
    assert result.code == code
    assert words in result.mistake


def test_a_damaged_file_is_named(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 99)
    result = tell(model)
    assert result.code == 3
    assert "model.safetensors is damaged or incomplete" in result.mistake
