"""Merges a LoRA adapter into its base model: `minigpt merge-lora --adapter DIR --out DIR`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minigpt import cli, training
from minigpt.atomic import named_folder
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, Failure
from minigpt.cli.model_flags import ModelFlags, add_model_flags
from minigpt.cli.outputs import check_new_model
from minigpt.cli.parser import Parser

ABOUT = """Merge a LoRA adapter into the base model that it was trained on, and save the result as a plain model.

The adapter is a folder written by `minigpt train --lora` or by PEFT; the result is loadable by any GPT-2-compatible
library. It has the precision that the base is loaded in: see --dtype.
"""

EXAMPLES = """examples:
  minigpt merge-lora --adapter my-lora --out my-model                     an adapter of the bundled model
  minigpt merge-lora --model gpt2 --adapter my-lora --out my-model        a GPT-2 adapter
  minigpt generate --model my-model "Once upon a time"                    next
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("merge_lora", parser, merge_files, argv)


def parser() -> Parser:
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, OUT_OF_MEMORY, INTERRUPTED)
    usage = "minigpt merge-lora --adapter DIR --out DIR [options]"
    parser = Parser("merge_lora", exits, EXAMPLES, usage=usage, description=ABOUT)
    add_model_flags(parser)
    parser.add_argument("--adapter", required=True, metavar="DIR", help="the adapter, as PEFT saves it")
    parser.add_argument("--out", "-o", required=True, metavar="DIR", help="folder for the merged model")
    parser.add_argument("--quiet", action="store_true", help="errors only on stderr")
    return parser


def merge_files(args: argparse.Namespace) -> int:
    """The whole command: load base and adapter, merge them, save model and tokenizer."""
    wanted = ModelFlags.of(args)
    if wanted.quantize:
        raise Failure(
            BAD_FLAGS, "--quantize is for after the merge: merge, then `minigpt quantize` the result"
        )
    check_new_model("--out", args.out)
    if not named_folder("--adapter", args.adapter).is_dir():
        raise Failure(NO_MODEL, f"--adapter {args.adapter}: there is no such folder")
    model, tokenizer = wanted.load()
    try:
        training.load_adapter(model, args.adapter)
    except (OSError, ValueError) as error:
        raise Failure(NO_MODEL, error) from error
    tokenizer.save_pretrained(args.out)  # first: config.json, by which a model is known, comes last
    training.merge(model).save_pretrained(args.out)
    if not args.quiet:
        cli.note("merge_lora", f"{args.out} holds the merged model: --model {args.out}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
