"""Saves a model with quantized weights: `minigpt quantize MODEL --to int8 -o DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minigpt import cli
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY
from minigpt.cli.model_flags import QUANTIZATIONS, ModelFlags, add_source_flags, named_model
from minigpt.cli.outputs import check_new_model
from minigpt.cli.parser import Parser

ABOUT = """Save a model with its weights in fewer bits: nearly as exact, and faster on a CPU if it has gpt2's size or more.

int8 needs a quarter of float32's memory, float16 half of it. Every command reads the result as --model; other
programs do not. Other commands do the same while they load, by --quantize, without saving.
"""

EXAMPLES = """examples:
  minigpt quantize gpt2 --to int8 -o gpt2-int8                     an 8-bit GPT-2
  minigpt generate "Once upon a time" --model gpt2-int8            and then
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("quantize", parser, quantize_files, argv)


def parser() -> Parser:
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, OUT_OF_MEMORY, INTERRUPTED)
    usage = "minigpt quantize MODEL --to KIND --out DIR [options]"
    parser = Parser("quantize", exits, EXAMPLES, usage=usage, description=ABOUT)
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model")
    add_source_flags(parser.add_argument_group("model"))
    parser.add_argument(
        "--to",
        required=True,
        choices=QUANTIZATIONS,
        help="int8: a quarter of float32's size, and fastest (with small models, where there is a C compiler); float16: half of it, and nearly exact",
    )
    parser.add_argument("--out", "-o", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--quiet", action="store_true", help="errors only on stderr")
    return parser


def quantize_files(args: argparse.Namespace) -> int:
    """The whole command: load, quantize, save model and tokenizer."""
    check_new_model("--out", args.out)
    wanted = ModelFlags(
        named_model(args), args.revision, args.offline, device="cpu", dtype="float32", quantize=args.to
    )
    model, tokenizer = wanted.load()
    tokenizer.save_pretrained(args.out)  # first: config.json, by which a model is known, comes last
    model.save_pretrained(args.out)
    if not args.quiet:
        size = sum(file.stat().st_size for file in Path(args.out).glob("*.safetensors"))
        cli.note(
            "quantize", f"{args.out} holds the model, {size / 1e6:.1f} MB of weights: --model {args.out}"
        )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
