"""The command line as tests use it: in this process or in one of its own; and models that it can be given."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from minigpt import GPT2, GPT2Config, Tokenizer
from minigpt.generate import __main__ as generate
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

ROOT = Path(__file__).parents[2]
END = 257  # the end token of the models made here; the ids below 256 are the bytes
ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """What was written, without the newline that the command puts at its end."""
        assert self.code == 0, self.err
        assert self.out.endswith("\n")
        return self.out[:-1]

    @property
    def mistake(self) -> str:
        """The one line that tells the user what was wrong."""
        (line,) = self.err.splitlines()
        command, _, message = line.partition(": ")
        assert command.startswith("minigpt.")
        assert self.out == ""
        return message


class _Stream(io.TextIOWrapper):
    def __init__(self, data: bytes = b"", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.isatty = lambda: terminal  # type: ignore[method-assign]


def call(
    *flags: object,
    stdin: bytes = b"",
    terminal: bool = False,
    main: Callable[[list[str]], int] = generate.main,
) -> Result:
    """Runs a command in this process: much faster, for torch is imported; stdout and stderr are a terminal or files."""
    out, err = _Stream(terminal=terminal), io.StringIO()
    err.isatty = lambda: terminal  # type: ignore[method-assign]
    with redirect_stdout(out), redirect_stderr(err), patch("sys.stdin", _Stream(stdin)):
        code = main([str(flag) for flag in flags])
    return Result(code, out.buffer.getvalue().decode(), err.getvalue())  # type: ignore[attr-defined]


def start(
    *flags: object, python: tuple[str, ...] = ("-m", "minigpt.generate"), **how: Any
) -> subprocess.Popen[bytes]:
    command = [sys.executable, *python, *(str(flag) for flag in flags)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen(command, env=os.environ | ONE_THREAD, **pipes | how)


def run(*flags: object, stdin: bytes = b"", **how: Any) -> Result:
    """Runs the command as a user does, in a process of its own."""
    return wait(start(*flags, **how), stdin)


def wait(process: subprocess.Popen[bytes], stdin: bytes = b"") -> Result:
    out, err = process.communicate(stdin, timeout=100)
    return Result(process.returncode, (out or b"").decode(), err.decode())


def rows_in(out: Path) -> list[dict[str, Any]]:
    """What a job has written into a folder, in the order of its parts."""
    lines = (line for file in sorted(out.glob("part-*.jsonl")) for line in file.read_text().splitlines())
    return [json.loads(line) for line in lines]


def save(directory: Path, model: GPT2) -> Path:
    """Saves a model with a tokenizer whose tokens are single bytes, so that each é is cut in two."""
    model.save_pretrained(directory)
    bytes_alone().save_pretrained(directory)
    return directory


def bytes_alone() -> Tokenizer:
    """The tokenizer of the models made here."""
    vocab, merges = {**BYTES, "ĀĀ": 256}, [("Ā", "Ā")]  # two zero bytes, for there must be one merge
    return Tokenizer(vocab, merges, special_tokens={END_OF_TEXT: END})


def tiny(**config: Any) -> GPT2:
    torch.manual_seed(0)
    sizes = {"vocab_size": END + 1, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    return GPT2(GPT2Config(**{**sizes, "bos_token_id": END, "eos_token_id": END, **config}))


@torch.no_grad()
def reciter(text: str, change: Callable[[GPT2], object] = lambda model: None) -> GPT2:
    """A model that knows one text by heart: greedy decoding continues any prompt of n bytes at its n-th byte.

    It ends with the end token; its window takes the text and that. At temperature 1000 it writes noise.
    """
    tokens = [*text.encode(), END]
    n = len(tokens)
    model = tiny(n_positions=n, n_embd=n, tie_word_embeddings=False)
    for parameter in model.parameters():
        parameter.zero_()  # blocks that add nothing
    model.final_norm.weight.fill_(1)
    model.position_embedding.weight.copy_(torch.eye(n))  # each position says where it is
    for position, token in enumerate(tokens[1:]):
        model.head.weight[token, position] = 10  # type: ignore[index]
    change(model)
    return model
