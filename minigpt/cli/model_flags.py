"""The flags that choose a model, and the model that they choose."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import minigpt
from minigpt import hub
from minigpt.cli import BAD_FLAGS, NO_MODEL, Failure
from minigpt.cli.machine import device
from minigpt.cli.parser import Parser
from minigpt.lazy import torch

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

QUANTIZATIONS = ("int8", "float16")
FILES = ("*.json", "*.safetensors", "*.txt")  # of a model
MOST_THREADS = 1024  # some number far above, and OpenMP crashes the process


@dataclass(frozen=True)
class ModelFlags:
    """Which model is asked for, and where and how it is to run; the fields are the flags."""

    model: str | None = None  # None: the bundled one
    revision: str | None = None
    offline: bool = False
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    compile: bool = False
    threads: int | None = None
    tokenizer: str | None = None  # None: the model's own

    @classmethod
    def of(cls, args: argparse.Namespace) -> ModelFlags:
        """Those of a command line.

        Raises:
            Failure: they can be seen to be wrong without torch, which is slow to import.
        """
        if args.threads is not None and not 1 <= args.threads <= MOST_THREADS:
            raise Failure(BAD_FLAGS, f"--threads must be from 1 to {MOST_THREADS}, got {args.threads}")
        if args.quantize and (args.device not in ("auto", "cpu") or args.dtype not in ("auto", "float32")):
            raise Failure(
                BAD_FLAGS,
                f"--quantize {args.quantize} is for the CPU with float32 activations: leave out --device and --dtype",
            )
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})

    @property
    def name(self) -> str:
        """What the model is called in results."""
        return self.model or hub.BUNDLED

    def load(self) -> tuple[GPT2, Tokenizer]:
        """The model and its tokenizer.

        Raises:
            Failure: there is no such model, it is not supported, or the device is not there.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        chosen = device("cpu" if self.quantize and self.device == "auto" else self.device)
        try:
            model, tokenizer = minigpt.load(
                self.model, device=chosen, dtype=self.dtype, quantize=self.quantize, tokenizer=self.tokenizer,
                revision=self.revision, offline=self.offline,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise Failure(NO_MODEL, error) from error
        if self.compile:
            # Each layer whose scores have a scale of their own is compiled anew; torch gives up after 8.
            torch._dynamo.config.recompile_limit += model.config.n_layer
            for block in model.blocks:
                block.compile()
        return model, tokenizer

    def sha256(self) -> str:
        """A sha256 of the files of the model and of its tokenizer, wherever they lie.

        Raises:
            Failure: there is no such model.
        """
        name, revision = (self.tokenizer, None) if self.tokenizer else (self.model, self.revision)
        try:
            folders = [
                hub.model_files(self.model, revision=self.revision, offline=self.offline),
                hub.tokenizer_files(name, revision=revision, offline=self.offline),
            ]
        except (OSError, ValueError) as error:
            raise Failure(NO_MODEL, error) from error
        digest = hashlib.sha256()
        for path in sorted({path for folder in folders for kind in FILES for path in folder.glob(kind)}):
            digest.update(f"{path.name} {hub.sha256(path)}\n".encode())
        return digest.hexdigest()

    def beside(self, name_or_dir: str) -> ModelFlags:
        """The flags of another model, which is to be where and as the first one is."""
        return replace(self, model=name_or_dir, tokenizer=None, revision=None)


def add_model_flags(parser: Parser) -> None:
    """Adds the flags that `ModelFlags` reads."""
    group = parser.add_argument_group("model")
    add_source_flags(group)
    group.add_argument(
        "--tokenizer",
        metavar="NAME_OR_DIR",
        help="tokenizer of another model or folder (default: the model's)",
    )
    group.add_argument(
        "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="device to compute on; auto takes a GPU if there is one",
    )  # fmt: skip
    group.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
        help="auto: float32 on a CPU, the checkpoint's dtype on a GPU",
    )  # fmt: skip
    group.add_argument(
        "--quantize", choices=QUANTIZATIONS,
        help="keep weights in fewer bits: nearly as exact (float16 more so), and faster on a CPU",
    )  # fmt: skip
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the blocks: slow first step, faster after (but new tokens on a GPU are faster without)",
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one per core)")


def named_model(args: argparse.Namespace) -> str | None:
    """The model, for commands that take its name with --model or without; None is the bundled one.

    Raises:
        Failure: it is named in both ways.
    """
    if args.name is not None and args.model is not None:
        raise Failure(BAD_FLAGS, f"the model is named twice, {args.name!r} and {args.model!r}: leave one out")
    name: str | None = args.model if args.name is None else args.name
    return name


def add_source_flags(group: argparse._ArgumentGroup) -> None:
    """Adds the flags that say where a model's files are."""
    group.add_argument(
        "--model", metavar="NAME_OR_DIR",
        help="bundled (the default), a Hugging Face name such as gpt2, or a directory with config.json",
    )  # fmt: skip
    group.add_argument("--revision", metavar="REV", help="branch, tag or commit of a model on the hub")
    group.add_argument("--offline", action="store_true", help="use cached files only")
