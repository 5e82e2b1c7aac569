"""`python -m minigpt.verify`: does the model that was loaded compute what its files say?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minigpt import cli, hub
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, Failure
from minigpt.cli.model_flags import ModelFlags, add_model_flags, named_model
from minigpt.cli.parser import Parser
from minigpt.cli.progress import late_bar
from minigpt.cli.table import table
from minigpt.cli.terminal import write_out
from minigpt.verify.report import Check, as_json, conclusion, remarks, rows

ABOUT = """Check that a model, as minigpt has loaded it, computes what its files say.

The model's logits for a fixed text, in one pass, through the cache in three parts and in a padded batch, are
compared with GPT-2's formula written out in float64, which reads the files by their own names and shares no code
with the model; with transformers too, where it is installed. So are the weights in memory, the tokenizer's ids and
greedy text. A bound is a few times the error that the formula itself has in the model's precision.

Where something differs, the first layer and point is named, and the mistake that would give just these numbers if
it is a known one. What could not be checked is listed as such: a file that is wrong in itself shows only where its
hash is known.
"""

EPILOG = """examples:
  minigpt verify                        the bundled model
  minigpt verify gpt2                   GPT-2 from the Hugging Face hub
  minigpt verify my-model/ --json       a directory; one JSON object
  minigpt verify gpt2 --quantize int8   quantized weights, with their larger bounds
  minigpt verify gpt2 --device cuda --dtype bfloat16      as it will run
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("verify", parser, verify, argv)


def verify(args: argparse.Namespace) -> int:
    """The whole command: load the model, compare, show the table."""
    args.model = named_model(args)
    if args.compile:
        raise Failure(
            BAD_FLAGS, "--compile hides what the layers compute inside, which is compared: leave it out"
        )
    wanted = ModelFlags.of(args)
    checks = run_checks(wanted)
    write_out(as_json(wanted.name, checks) if args.json else table(rows(checks)))
    for line in remarks([check for check in checks if check.verdict == "failed" or not args.quiet]):
        cli.note("verify", line)
    if not args.quiet:
        cli.note("verify", conclusion(wanted.name, checks))
    return FAILED if any(check.verdict == "failed" for check in checks) else DONE


def run_checks(wanted: ModelFlags) -> list[Check]:
    model, tokenizer = wanted.load()
    from minigpt.verify.checks import all_checks  # here, for it needs torch, which --help need not wait for

    directory = hub.model_files(wanted.model, revision=wanted.revision, offline=wanted.offline)
    own = (wanted.model, wanted.revision) if wanted.tokenizer is None else (wanted.tokenizer, None)
    tokenizer_directory = hub.tokenizer_files(own[0], revision=own[1], offline=wanted.offline)
    checks = []
    with late_bar(unit="check") as bar:
        for check in all_checks(model, tokenizer, directory, tokenizer_directory):
            checks.append(check)
            bar.update()
    return checks


def parser() -> Parser:
    usage = "minigpt verify [MODEL] [options]"
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, OUT_OF_MEMORY, INTERRUPTED)
    parser = Parser("verify", exits, EPILOG, usage=usage, description=ABOUT)
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model")
    add_model_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object with every check")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but what failed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
