"""The argument parser of every command: one-line errors, and the right flag for one that is nearly right."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from textwrap import fill
from typing import Any, NoReturn

from minigpt.cli import BAD_FLAGS, EXIT_CODES, Failure

WIDTH = 100  # characters of a line of help

# What the same thing is called elsewhere. Of several flags the first that a command has is meant; what does
# not begin with -- is advice.
_CONTEXT = ("--context", "a model's context length is fixed: `minigpt info MODEL` shows it")
_LENGTH, _STEPS, _OUT, _DATA = (
    ("--max-new-tokens",),
    ("--steps",),
    ("--out", "--output"),
    ("--data", "--file"),
)
_DTYPE = ("--dtype bfloat16", "--dtype float16")
ELSEWHERE = {
    **dict.fromkeys(("max-length", "max-tokens", "max-gen-len", "n-predict", "num-tokens", "length", "n-tokens"), _LENGTH),
    "min-length": ("--min-new-tokens",),
    "do-sample": ("--strategy sample", "--temperature"),
    "temp": ("--temperature",),
    "top-n": ("--top-k",),
    "penalty": ("--repetition-penalty",),
    "repeat-penalty": ("--repetition-penalty",),
    **dict.fromkeys(("beams", "beam-size", "beam-width", "n-beams"), ("--num-beams",)),
    **dict.fromkeys(("num-samples", "n-samples", "num-sequences", "best-of"), ("--num-return-sequences",)),
    **dict.fromkeys(("stop-sequence", "stop-sequences", "stop-string", "stop-strings", "eos"), ("--stop",)),
    **dict.fromkeys(("random-seed", "rng-seed"), ("--seed",)),
    **dict.fromkeys(("n-ctx", "block-size", "seq-len", "seq-length", "max-seq-len", "context-length", "context-size",
                     "n-positions", "ctx-size"), _CONTEXT),
    "learning-rate": ("--lr",),
    **dict.fromkeys(("epochs", "num-epochs", "num-train-epochs", "max-steps", "max-iters", "iters", "num-steps",
                     "iterations"), _STEPS),
    **dict.fromkeys(("out-dir", "output-dir", "save-dir", "output", "out", "o"), _OUT),
    **dict.fromkeys(("dataset", "data-dir", "data-path", "train-data", "train-file", "input", "input-file"), _DATA),
    **dict.fromkeys(("layers", "n-layers", "num-layers", "num-hidden-layers"), ("--n-layer",)),
    **dict.fromkeys(("heads", "n-heads", "num-heads", "num-attention-heads"), ("--n-head",)),
    **dict.fromkeys(("d-model", "hidden-size", "dim", "embedding-size", "width"), ("--n-embd", "--num-beams")),
    **dict.fromkeys(("init-from", "pretrained", "base-model"), ("--init", "--model")),
    **dict.fromkeys(("model-name", "model-path", "model-name-or-path", "checkpoint", "m"), ("--model", "--init")),
    **dict.fromkeys(("grad-accum", "gradient-accumulation-steps", "gradient-accumulation"), ("--accumulate",)),
    **dict.fromkeys(("micro-batch-size", "batch", "bs", "per-device-train-batch-size"), ("--batch-size",)),
    **dict.fromkeys(("val-fraction", "validation", "validation-split", "val-split", "eval-split"), ("--val",)),
    **dict.fromkeys(("warmup-steps", "warmup-iters", "num-warmup-steps"), ("--warmup",)),
    **dict.fromkeys(("gpu", "cuda"), ("--device cuda",)),
    "cpu": ("--device cpu",),
    **dict.fromkeys(("bf16", "half"), _DTYPE),
    "fp16": ("--dtype float16",),
    **dict.fromkeys(("silent", "no-progress"), ("--quiet",)),
    **dict.fromkeys(("chat", "repl"), ("--interactive",)),
    **dict.fromkeys(("show-prompt", "print-prompt"), ("--echo",)),
    **dict.fromkeys(("local-files-only", "no-download"), ("--offline",)),
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse with a one-line error, hyphens and underscores alike in flags, and the exit codes in its help.

    Args:
        command: the command's name.
        exits: the exit codes that it can have.
        epilog: what its help ends with, before the exit codes.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, exits: Sequence[int] = (), epilog: str = "", **options: Any) -> None:
        codes = fill("exit codes: " + ", ".join(f"{code} {EXIT_CODES[code]}" for code in exits), WIDTH)
        super().__init__(
            prog=f"minigpt {command.replace('_', '-')}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog=f"{epilog}\n{codes}" if exits else epilog,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise Failure(BAD_FLAGS, f"{message}; see --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of all flags.

        Raises:
            Failure: a flag is unknown, or its value is none.
        """
        args, unknown = self.parse_known_args(hyphens(argv))
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown[0])}")
        return args

    def actions(self) -> dict[str, argparse.Action]:
        """What every flag with two hyphens does, by its name with them."""
        return {flag: action for flag, action in self._option_string_actions.items() if flag.startswith("--")}

    def _advice(self, unknown: str) -> str:
        """What was probably meant by an argument that is none, after a space; nothing where that is open."""
        if not unknown.startswith("-"):
            return " (a text of several words needs quotes)"
        if unknown.partition("=")[0] in self.actions():
            return " (flags come before --)"
        meant = meant_flag(unknown.partition("=")[0], self.actions())
        return f" ({meant})" if meant else ""


def meant_flag(unknown: str, known: Collection[str]) -> str:
    """What to do instead of using a flag that there is not: mostly, which flag to use; nothing where that is open.

    >>> meant_flag("--learning-rate", ["--lr"]), meant_flag("--setps", ["--steps"]), meant_flag("--xyz", ["--lr"])
    ('use --lr', 'did you mean --steps?', '')
    >>> meant_flag("--learnign-rate", ["--lr"])
    'use --lr'
    """
    name = unknown.lstrip("-").lower()
    if use := _elsewhere(name, known):
        return use
    near = get_close_matches(f"--{name}", known, n=1, cutoff=0.75)
    if near and len(name) > 1:
        return f"did you mean {near[0]}?"
    others = get_close_matches(name, ELSEWHERE, n=1, cutoff=0.85)
    return _elsewhere(others[0], known) if others else ""


def _elsewhere(name: str, known: Collection[str]) -> str:
    """What a flag of other programs is called here; nothing where it is none, or this command has no such flag."""
    for meant in ELSEWHERE.get(name, ()):
        if not meant.startswith("--"):
            return meant
        if meant.split()[0] in known:
            return f"use {meant}"
    return ""


def hyphens(argv: Sequence[str]) -> list[str]:
    """The arguments with hyphens in their flags; values, and all that follows a bare --, stay as they are.

    >>> hyphens(["--top_k=1", "--stop=a_b", "-- a_b", "--", "--a_b"])
    ['--top-k=1', '--stop=a_b', '-- a_b', '--', '--a_b']
    """
    end = argv.index("--") if "--" in argv else len(argv)
    flags = [re.sub(r"^--\w[\w-]*(?==|$)", lambda flag: flag[0].replace("_", "-"), arg) for arg in argv[:end]]
    return [*flags, *argv[end:]]
