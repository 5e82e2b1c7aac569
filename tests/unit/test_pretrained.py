"""A model and its tokenizer from one name: the end token is what the model's files say, everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call, run, save, tiny
from trainer import TIMES, train, well

import minigpt
from minigpt import Tokenizer
from minigpt.data.token_file import TokenFile
from minigpt.score import __main__ as score
from minigpt.tokenizer.bpe import BYTES

SPECIAL = {"<s>": 256, "</s>": 257, "<pad>": 258}


def llama_like(folder: Path, in_config: int | list[int] | None, in_tokenizer: str | None) -> Path:
    """A model whose end token is </s>, as its config.json, its tokenizer_config.json or both say."""
    save(folder, tiny(vocab_size=259, eos_token_id=in_config))
    settings = {} if in_tokenizer is None else {"eos_token": in_tokenizer}
    Tokenizer(BYTES, [], special_tokens=SPECIAL, settings=settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("in_config", "in_tokenizer", "end"),
    [(257, "</s>", 257), (257, None, 257), (None, "</s>", 257), ([258, 257], "</s>", 257), ([258, 257], None, 257),
     (100, "</s>", 257), (258, "</s>", 258), (None, None, None)],
)  # fmt: skip
def test_the_end_token_is_what_the_models_files_say(
    tmp_path: Path, in_config: int | list[int] | None, in_tokenizer: str | None, end: int | None
) -> None:
    """The model's, if it is a special token; of several the tokenizer's own; else the tokenizer's."""
    _, tokenizer = minigpt.load(llama_like(tmp_path / "model", in_config, in_tokenizer))
    assert tokenizer.end_token == end


def test_weights_without_a_tokenizer_are_used_with_that_of_another_folder(tmp_path: Path) -> None:
    own = save(tmp_path / "own", tiny())
    tiny().save_pretrained(tmp_path / "bare")
    tokenizer = minigpt.load(tmp_path / "bare", tokenizer=own)[1]
    assert tokenizer.encode("a cat") == Tokenizer.load(own).encode("a cat")
    flags = ("--json", "--text", "a cat", "--model")
    (bare, whole) = (
        json.loads(call(*flags, *more, main=score.main).text)
        for more in ((tmp_path / "bare", "--tokenizer", own), (own,))
    )
    assert bare["loss"] == whole["loss"]
    text = call("a cat", "--model", tmp_path / "bare", "--tokenizer", own, "--max-new-tokens", 3).text
    assert text == call("a cat", "--model", own, "--max-new-tokens", 3).text


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    own = save(tmp_path / "own", tiny())
    with pytest.raises(
        ValueError, match=r"the tokenizer of bundled has .* tokens, the model 258: they are of"
    ):
        minigpt.load(own, tokenizer="bundled")
    assert call("--text", "a", "--model", own, "--tokenizer", "bundled", main=score.main).code == 3


def test_a_tokenizer_that_is_much_smaller_than_the_model_is_warned_of(tmp_path: Path) -> None:
    small = save(tmp_path / "small", tiny())
    asked = ("a", "--max-new-tokens", 1, "--temperature", 0, "--tokenizer", small)
    assert (
        "different models"
        not in call(*asked, "--model", save(tmp_path / "padded", tiny(vocab_size=258 + 127))).err
    )
    other = save(tmp_path / "other", tiny(vocab_size=4096))
    result = run(*asked, "--model", other)
    assert result.code == 0
    assert result.err.startswith(
        f"minigpt.generate: warning: the tokenizer of {small} has 258 tokens, the model 4,096: they may be of different"
        " models\n"
    )
    with pytest.warns(UserWarning, match="they may be of different models") as said:
        minigpt.load(other, tokenizer=small)
    assert said[0].filename == __file__


def test_training_and_scoring_use_it(tmp_path: Path) -> None:
    model = llama_like(tmp_path / "model", 257, "</s>")
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(f"A tale of {i} cats." for i in range(9)))
    files = ("--data", tmp_path / "text.txt", "--token-cache", tmp_path / "tokens", "--out", tmp_path / "out")
    times = [part for name, value in TIMES.items() for part in (f"--{name}", value)]
    well(train(*files, *times, "--init", model, "--steps", 1))
    (folder,) = (tmp_path / "tokens").iterdir()
    tokens = TokenFile.open(folder)
    assert tokens.ids[tokens.spans[:, 0]].tolist() == [257] * 9
    assert minigpt.load(tmp_path / "out")[1].end_token == 257
    record = json.loads(call("--json", "--text", "cat", "--model", model, main=score.main).text)
    assert record["tokens"] == 4  # with that before it and after it


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"quantize": "int4"}, "quantize='int4' is not supported; there are"),
        ({"quantize": "int8", "dtype": torch.float16}, "is for the CPU and float32 activations"),
        ({"device": "tpu"}, "device='tpu' cannot be used here"),
        ({"dtype": "float99"}, "dtype must be a floating-point type, .* got 'float99'"),
        ({"dtype": "int8"}, "dtype must be a floating-point type, .* got 'int8'"),
        ({"dtype": torch.int8}, "dtype must be a floating-point type, .* got torch.int8"),
        (
            {"torch_dtype": "float16"},
            r"load\(\) has no argument 'torch_dtype': it is dtype: write dtype=torch.fl",
        ),
        ({"load_in_8bit": True}, "no argument 'load_in_8bit': write quantize=\"int8\""),
        ({"device_map": "auto"}, "no argument 'device_map': it is device: write device=\"auto\""),
        ({"local_files_only": True}, "no argument 'local_files_only': write offline=True"),
        ({"model": "gpt2"}, r'the model comes first, without a name: load\("gpt2"\)'),
        ({"fp16": True}, "no argument 'fp16': write dtype=\"float16\""),
        ({"devise": "cpu"}, r"did you mean device\?"),
        (
            {"zebra": 1},
            "no argument 'zebra': there are device, dtype, quantize, tokenizer, revision, offline",
        ),
        (
            {"tokenizer": Tokenizer(BYTES, [])},
            r"tokenizer is a directory .* got Tokenizer\(.*GPT2.from_pretrained",
        ),
        ({"name_or_dir": 5}, "a model is a directory, a name on the hub"),
    ],
)
def test_arguments_that_cannot_be_used_are_invalid_requests(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(minigpt.InvalidRequest, match=words):
        minigpt.load(**wrong)


def test_device_and_dtype_may_be_named_as_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save(tmp_path / "own", tiny())
    for dtype in ("float16", "torch.float16", torch.float16):
        assert minigpt.load(own, dtype=dtype)[0].token_embedding.weight.dtype == torch.float16
    assert minigpt.load(own, dtype="auto")[0].token_embedding.weight.dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert minigpt.load(own, device="auto")[0].device == torch.device("cpu")


def test_quantized_weights_are_for_the_cpu_where_the_device_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save(tmp_path / "own", tiny())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert minigpt.load(own, device="auto", quantize="int8")[0].device == torch.device("cpu")
