"""Trains a GPT-2 on text: `minigpt train --data FILE --out DIR`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from minigpt import cli, training
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, Failure
from minigpt.cli.fields import add_flags
from minigpt.cli.parser import Parser
from minigpt.training.request import RunRequest
from minigpt.training.settings import Settings

ABOUT = """Train a GPT-2 on your own text, from scratch or from a pretrained model.

DIR then holds the last weights (every command takes them as --model DIR), in best/ those of the lowest validation
loss, metrics.jsonl, a loss curve, and checkpoints. Ctrl-C saves a checkpoint; --resume continues from it, and the
result is identical to that of an uninterrupted run. In Python: minigpt.training.train.
"""

EXAMPLES = """examples:
  minigpt train --data tales.txt --out tales                       a tiny model, in minutes
  minigpt train --resume --out tales                               continue after Ctrl-C or a crash
  minigpt train --resume --out tales --steps 4000                  extend a finished run
  minigpt train --data tales/ --out big --config small --steps 20000
  minigpt train --data plays.txt --out plays --init bundled        fine-tune the bundled model
  minigpt train --data plays.txt --out plays --init gpt2 --lora 8  fine-tune an adapter of GPT-2
  minigpt train --data tales.txt --out student --teacher big       distil the model in big into a tiny one
  torchrun --nproc-per-node 2 -m minigpt.train --data tales.txt --out two    two processes, same steps
"""

SAVES_MEMORY = "a smaller --batch-size with --accumulate, a smaller --context, or --gradient-checkpointing"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("train", parser, together if "RANK" in os.environ else train, argv, SAVES_MEMORY)


def together(args: argparse.Namespace) -> int:
    """The whole command as one of several processes, which torchrun started."""
    with training.report_first_failure():
        return train(args)


def train(args: argparse.Namespace) -> int:
    """The whole command: make the run, and train."""
    values = {f.name: _value(args, f.name) for f in fields(Settings)}
    # `is`, because 0 == False, and `--weight-decay 0` means something
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    request = RunRequest.make(args.out, given, args.resume)

    def log(line: str) -> None:
        if not args.quiet:
            cli.note("train", line)

    try:
        return DONE if training.run_to_end(request, log) else INTERRUPTED
    except (training.CannotWrite, training.Disconnected, training.Diverged) as error:
        raise Failure(FAILED, error) from error
    except OSError as error:
        raise Failure(NO_MODEL, error) from error


def parser() -> Parser:
    usage = "minigpt train --data FILE_OR_DIR --out DIR [options]"
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, OUT_OF_MEMORY, INTERRUPTED)
    parser = Parser("train", exits, EXAMPLES, usage=usage, description=ABOUT)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", "-o", required=True, metavar="DIR", help="folder of the run: a new one, or one to --resume"
    )
    group.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    group.add_argument("--quiet", action="store_true", help="errors only on stderr")
    add_flags(parser, Settings)
    return parser


def _value(args: argparse.Namespace, name: str) -> Any:
    value = getattr(args, name)
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
