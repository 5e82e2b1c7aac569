"""What a user can get wrong: one line on stderr that helps, an exit code, and never a traceback."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import END, call, reciter, run, save
from safetensors.torch import load_file, save_file

from minigpt.generate import session
from minigpt.json_files import counted

STORY = "Once upon a time."
WINDOW = len(STORY) + 1


@pytest.fixture
def story(tmp_path: Path) -> Path:
    return save(tmp_path / "story", reciter(STORY))


def says(message: str, *words: str) -> None:
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} does not say {missing}"


# ------------------------------------------------------------------------------ as a user sees them


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--tempo", "3"), 2, ["--tempo", "--help"]),
        (("--top-p", "1.5"), 2, ["top_p", "1.5", "from 0 to 1"]),
        (("--model", "no/such/place"), 3, ["'no/such/place'", "does not exist"]),
        (("--model", "{gpt3}"), 3, ["{gpt3}", "model_type='gpt3'", "gpt2 models only"]),
        (("--model", "{story}", "--max-new-tokens", str(WINDOW)), 4,
         [f"the prompt has 4 tokens and needs {WINDOW + 3} positions with {WINDOW} new ones", f"context length is {WINDOW}", "shorten the prompt"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_an_exit_code(
    story: Path, tmp_path: Path, flags: tuple[str, ...], code: int, words: list[str]
) -> None:
    other = save(tmp_path / "gpt3", reciter(STORY))
    edit(other, model_type="gpt3")
    result = run("Once", *(flag.format(story=story, gpt3=other) for flag in flags))
    assert result.code == code
    says(result.mistake, *(word.format(gpt3=other) for word in words))


def test_out_of_memory_is_one_line_and_exit_code_5(tmp_path: Path) -> None:
    directory = save(tmp_path / "wide", reciter("x" * 600))
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33));"
        "from minigpt.generate.__main__ import main; sys.exit(main())"
    )
    many = ("--num-return-sequences", 5000, "--max-new-tokens", 600, "--seed", 0)
    result = run("--model", directory, "x", *many, python=("-c", limited))
    assert result.code == 5
    says(result.mistake, "out of memory", "fewer or shorter texts", "--dtype bfloat16")


# ------------------------------------------------------------------------------ exit code 2

BAD_FLAGS = {
    "--max-new-tokens ten": ["--max-new-tokens", "'ten'", "--help"],
    "--max-new-tokens 0": ["--max-new-tokens", "at least 1", "got 0"],
    "--max-new-tokens -3": ["--max-new-tokens", "at least 1", "got -3"],
    "--min-new-tokens -1": ["min_new_tokens", "at least 0", "got -1"],
    "--temperature hot": ["--temperature", "a number", "'hot'"],
    "--temperature -1": ["temperature (--temperature)", "from 1e-06 to 10000, or 0", "got -1"],
    "--temperature 1e39": ["temperature (--temperature)", "from 1e-06 to 10000, or 0", "got 1e+39"],
    "--temperature nan": ["temperature", "from 1e-06 to 10000, or 0", "got nan"],
    "--top-k 1.5": ["--top-k", "a whole number", "'1.5'"],
    "--top-k -1": ["top_k", "at least 1", "got -1"],
    "--top-p -0.1": ["top_p", "from 0 to 1", "got -0.1"],
    "--min-p 2": ["min_p", "from 0 to 1", "got 2"],
    "--typical-p 0": ["typical_p", "above 0 and at most 1", "got 0"],
    "--seed -1": ["seed", "at least 0", "got -1"],
    "--num-beams 0": ["--num-beams", "from 1 to 65536", "got 0"],
    "--num-beams 2 --num-return-sequences 3": [
        "num_return_sequences",
        "at most num_beams (--num-beams), 2",
        "got 3",
    ],
    "--seed 1 --num-return-sequences 0": ["num_return_sequences", "from 1 to 65536", "got 0"],
    "--num-beams 2 --early-stopping soon": ["--early-stopping", "expected true, false, never", "'soon'"],
    "--repetition-penalty 0": ["repetition_penalty", "from 0.0001 to 10000", "got 0"],
    "--no-repeat-ngram-size -2": ["no_repeat_ngram_size", "at least 1", "got -2"],
    "--logit-bias the=3": ["--logit-bias", "ID=BIAS", "'the=3'"],
    "--logit-bias 3": ["--logit-bias", "ID=BIAS", "'3'"],
    "--logit-bias 999999=1": ["logit_bias", "from 0 to", "999999"],
    """--json-schema '{"type": "object"}'""": [
        "--json-schema: it takes a file: put the schema into one",
        "No such file",
    ],
    "--grammar {folder}/latin1": ["--grammar: it takes a file: put the grammar into one", "decode"],
    "--bad-words ''": ["--bad-words", "at least one character"],
    "--stop ''": ["--stop", "at least one character"],
    "--logprobs -1 --json": ["--logprobs", "at least 0", "got -1"],
    "--threads 0": ["--threads", "from 1 to 1024", "got 0"],
    "--threads 99999": ["--threads", "from 1 to 1024", "got 99999"],
    "--overflow bend": ["--overflow", "'bend'", "'truncate'"],
    "--stride 2": ["--stride is for --overflow slide", "not for stop"],
    "--overflow slide --stride 0": ["--stride", "at least 1", "got 0"],
    "--overflow slide --stride 99": ["stride", f"from 1 to the model's context length of {WINDOW}", "got 99"],
    "--explain --quiet": ["--explain", "--quiet", "add --json"],
    "--interactive --json": ["--interactive", "not several", "--json"],
    "--echo --json": ["--echo has no effect with --json", "leave one out"],
    "-i --output x": ["--interactive", "--output"],
    "-i --no-stream": ["--interactive", "--no-stream"],
    "-i --prompt more": ["--interactive", "not several"],
    "-i --seed 1 --num-return-sequences 2": ["--interactive", "not several"],
    "-i --file -": ["--interactive", "stdin", "- cannot read"],
    "--strategy best": ["--strategy", "'best'", "'greedy'"],
    "--device tpu": ["--device", "'tpu'", "'cpu'"],
    "--dtype int8": ["--dtype", "'int8'", "'float32'"],
    # flags that do not go together
    "--strategy greedy --temperature 2": ["--temperature", "not supported by greedy", "--strategy sample"],
    "--strategy sample --num-beams 2": ["--num-beams", "not supported by sample", "--strategy beam"],
    "--strategy greedy --length-penalty 2": [
        "--length-penalty",
        "not supported by greedy",
        "--strategy beam",
    ],
    "--strategy greedy --num-return-sequences 2": [
        "--num-return-sequences",
        "not supported by greedy",
        "beam, ",
    ],
    "--top-k 5 --penalty-alpha 0.6 --num-beams 2": [
        "--num-beams and --penalty-alpha and --top-k cannot be combined"
    ],
    "--logprobs 2": ["--logprobs", "add --json"],
    "--stream --json": ["--stream", "not --json"],
    "--stream --output x": ["--stream", "--output"],
    "--stream -p more": ["--stream", "not several"],
    "--stream --seed 1 --num-return-sequences 2": ["--stream", "not several"],
    # flags that are none, and values that are missing
    "--Stream": ["--Stream", "--help"],
    "--temp 1": ["--temp 1", "--help"],  # no abbreviations: tomorrow's flag may begin alike
    "upon a time": ["upon a time", "quotes", "--help"],
    "--prompt": ["--prompt", "expected one argument"],
    # files
    "--file {folder}/none": ["--file {folder}/none", "No such file", "name a text file"],
    "--file {folder}": ["--file {folder}", "Is a directory", "name a text file"],
    "--file {folder}/latin1": ["{folder}/latin1", "not UTF-8", "byte 3", "convert"],
    "--output {folder}/none/x": ["--output {folder}/none/x", "no such folder"],
    "--output {folder}": ["--output '{folder}'", "is a folder", "name a file"],
    "--file f.txt --output f.txt": ["--output f.txt is the file of --file: name another file"],
    "--num-beams 2 --lattice b.svg --output ./b.svg": ["--output ./b.svg is the file of --lattice"],
    "--output /dev/null": ["--output '/dev/null'", "a device", "name a file"],
    "--output ''": ["--output ''", "name a file"],
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(story: Path, tmp_path: Path, flags: str) -> None:
    (tmp_path / "latin1").write_bytes("Caf\xe9".encode("latin-1"))
    given = shlex.split(flags.replace("{folder}", str(tmp_path)))
    result = call("--model", story, "--overflow", "stop", "Once", *given)
    assert result.code == 2
    says(result.mistake, *(words.replace("{folder}", str(tmp_path)) for words in BAD_FLAGS[flags]))


def test_text_on_stdin_must_be_utf_8() -> None:
    result = call("-", stdin=b"ab\xff")
    assert result.code == 2
    says(result.mistake, "stdin", "not UTF-8", "byte 2")


def test_what_is_typed_cannot_be_the_prompt_too() -> None:
    result = call("-i", "-")
    assert result.code == 2
    says(result.mistake, "--interactive", "stdin", "-")


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = call("Once", "--device", "cuda")
    assert result.code == 2
    says(result.mistake, "--device cuda", "none that torch can use", "--device cpu")


def test_options_that_rule_out_every_token(story: Path) -> None:
    every = [flag for token in range(END + 1) for flag in ("--logit-bias", f"{token}=-inf")]
    result = call("--model", story, "Once", "--max-new-tokens", 3, *every)
    assert result.code == 2
    says(result.mistake, "no token is left", "after 4 prompt tokens", "loosen")


@pytest.mark.parametrize(
    "flags",
    [
        "--seed 1 --logit-bias 65=nan",
        "--temperature 1e-320",
        "--seed 1 --logit-bias 65=inf",
        "--num-beams 2 --length-penalty 1000",
        "--num-beams 2 --length-penalty -1000",
    ],
)
def test_numbers_beyond_all_measure(story: Path, flags: str) -> None:
    result = call("--model", story, "Once", "--max-new-tokens", 9, *flags.split())
    assert result.code in (0, 2)


def test_no_end_token_to_begin_with(story: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (story / file).unlink()
    vocab = json.loads((story / "vocab.json").read_text())
    (story / "vocab.json").write_text(json.dumps({token: n for token, n in vocab.items() if n < END}))
    result = call("--model", story)
    assert result.code == 2
    says(result.mistake, "<|endoftext|>", "give a prompt")


def test_mistakes_that_can_be_seen_at_once_do_not_wait_for_torch() -> None:
    at_once = ["--nope", "--top-k x", "--max-new-tokens 0", "--threads 0", "--logprobs 1", "--stream --json",
               "--strategy greedy --top-k 1", "--stop ''", "--stride 2", "-i --json", "--explain --quiet", "--output /no/such/place"]  # fmt: skip
    code = (
        "import sys; from minigpt.generate.__main__ import main\n"
        "for flags in sys.argv[1:]:\n"
        "    assert main(__import__('shlex').split(flags)) == 2, flags\n"
        "    assert 'torch' not in sys.modules, flags\n"
    )
    result = run(*at_once, python=("-c", code))
    assert result.code == 0, result.err
    assert len(result.err.splitlines()) == len(at_once)


# ------------------------------------------------------------------------------ exit code 3


def edit(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def without(*names: str) -> Callable[[Path], None]:
    return lambda directory: [(directory / name).unlink() for name in names] and None


def only_pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def damaged(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\xff" * 5000)


def truncated(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:-7])


def lacking(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.pop("transformer.h.0.mlp.c_fc.bias"))


def misshapen(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.update({"transformer.ln_f.weight": torch.ones(5)}))


def surplus(directory: Path) -> None:
    edit_weights(directory, lambda tensors: tensors.update({"transformer.extra": torch.ones(5)}))


def more_positions(directory: Path) -> None:
    edit(directory, n_positions=99)


def broken_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "gpt2",')


def broken_vocabulary(directory: Path) -> None:
    (directory / "vocab.json").write_text('["a"]')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("config.json"), ["without config.json"]),
        (without("model.safetensors"), ["no model.safetensors", "not read"]),
        (only_pickled, ["no model.safetensors", "pickled", "convert"]),
        (damaged, ["model.safetensors", "damaged or incomplete", "again"]),
        (truncated, ["model.safetensors", "damaged or incomplete", "again"]),
        (lacking, ["lack", "transformer.h.0.mlp.c_fc.bias"]),
        (misshapen, ["transformer.ln_f.weight", "(5,)", f"({WINDOW},)", "config.json"]),
        (surplus, ["no place for", "transformer.extra"]),
        (more_positions, ["transformer.wpe.weight", f"({WINDOW}, {WINDOW})", f"(99, {WINDOW})"]),
        (broken_config, ["config.json", "not JSON"]),
        (lambda directory: edit(directory, n_head=5), ["n_head=5", f"n_embd={WINDOW}"]),
        (lambda directory: edit(directory, n_layer="two"), ["n_layer", "whole number", "'two'"]),
        (lambda directory: edit(directory, add_cross_attention=True), ["add_cross_attention=True", "not supported"]),
        (without("vocab.json", "merges.txt", "tokenizer.json"), ["has neither", "vocab.json and merges.txt"]),
        (broken_vocabulary, ["vocab.json must hold an object"]),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_read(story: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(story)
    result = call("--model", story, "Once")
    assert result.code == 3
    says(result.mistake, str(story), *words)


def test_a_model_without_a_type_is_read_with_a_remark_unless_quiet(story: Path) -> None:
    config = json.loads((story / "config.json").read_text())
    del config["model_type"]
    (story / "config.json").write_text(json.dumps(config))
    asked = ("--model", story, "Once", "--max-new-tokens", 3)
    loud, quiet = run(*asked), run(*asked, "--quiet")
    assert (loud.text, loud.err.count("\n")) == (" up", 2)
    says(loud.err, "warning: config.json names no model_type")
    assert (quiet.text, quiet.err) == (" up", "")


# ------------------------------------------------------------------------------ exit codes 4, 5 and 1


@pytest.mark.parametrize(
    ("prompt_tokens", "new_tokens", "overflow"),
    [
        (WINDOW, 2, "error"),
        (WINDOW - 1, 3, "error"),
        (WINDOW + 1, 1, "error"),
        (WINDOW + 1, 1, "stop"),  # no edge left to stop at
        (1, WINDOW + 1, "truncate"),  # nothing left to drop
    ],
)
def test_one_token_too_many(story: Path, prompt_tokens: int, new_tokens: int, overflow: str) -> None:
    asked = ("--max-new-tokens", new_tokens, "--overflow", overflow)
    result = call("--model", story, "x" * prompt_tokens, *asked)
    assert result.code == 4
    says(
        result.mistake,
        f"the prompt has {counted(prompt_tokens, 'tokens')}",
        f"context length is {WINDOW}",
        "shorten",
        "--overflow slide",
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ..."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory(story: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(session, "run", raises(error))
    result = call("--model", story, "Once", "--max-new-tokens", 3)
    assert result.code == 5
    says(result.mistake, "out of memory", "fewer or shorter texts")


def test_a_bug_of_ours_is_not_hidden(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "run", raises(RuntimeError("shapes do not fit")))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        call("--model", story, "Once", "--max-new-tokens", 3)


def raises(error: Exception) -> Callable[..., Iterator[Any]]:
    def run(*request: Any) -> Iterator[Any]:
        raise error

    return run


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(story: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        result = run("--model", story, "Once", "--max-new-tokens", 3, "--quiet", stdout=full)
    assert result.code == 1
    says(result.mistake, "No space left on device")
