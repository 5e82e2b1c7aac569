"""The flags of `minigpt compare`, and its help."""

from __future__ import annotations

from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, TOO_LONG
from minigpt.cli.model_flags import add_model_flags
from minigpt.cli.parser import Parser
from minigpt.compare.methods import METHODS

EXITS = (DONE, FAILED, BAD_FLAGS, NO_MODEL, TOO_LONG, OUT_OF_MEMORY, INTERRUPTED)
N_PROMPTS, PROMPT_TOKENS = 50, 32
ABOUT = """Compare decoding methods on the same prompts: their output and their cost.

With one PROMPT, the texts side by side. With many prompts, a table of metrics: quality, diversity, repetition and
cost of each method, beside those of human text where the prompts come with a reference continuation.
"""
EPILOG = """methods, unless --method names others; each is a set of flags of `minigpt generate`:
{methods}

examples:
  minigpt compare "Once upon a time"                          every method's text
  minigpt compare "Once upon a time" --method greedy --method "hot: --temperature 1.3 --top-k 40"
  minigpt compare --prompts prompts.txt                       one prompt a line: a table of metrics
  minigpt compare --prompts tales.jsonl --json out.json       {{"prompt": ..., "text": ...}} a line: with human text
  minigpt compare --held-out val.txt --plot quality.png       50 prompts extracted from a text, and how it continues
  minigpt compare --held-out val.txt --model gpt2 --judge gpt2-large --markdown table.md

After Ctrl-C the methods that are done are shown; a method that fails is left out, with exit code 1.
"""


def parser() -> Parser:
    """The parser of the command's flags."""
    usage = "minigpt compare [PROMPT | --prompts FILE | --held-out FILE] [options]"
    listed = "\n".join(f"  {name:18}  {flags or '(no flags)'}" for name, flags in METHODS.items())
    parser = Parser("compare", EXITS, EPILOG.format(methods=listed), usage=usage, description=ABOUT)
    parser.add_argument("text", nargs="?", metavar="PROMPT", help="one text to continue")
    add_model_flags(parser)
    _add_input_flags(parser)
    _add_method_flags(parser)
    _add_output_flags(parser)
    return parser


def _add_input_flags(parser: Parser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument(
        "--prompts", metavar="FILE",
        help='one prompt a line; in a .jsonl file one object with a "prompt" a line, and optionally its reference'
        ' continuation as "text"',
    )  # fmt: skip
    group.add_argument(
        "--held-out", metavar="FILE", help="extract prompts and their reference continuations from this text"
    )
    group.add_argument(
        "--n-prompts",
        type=int,
        metavar="N",
        help=f"with --held-out: number of prompts (default: {N_PROMPTS})",
    )
    group.add_argument(
        "--prompt-tokens", type=int, metavar="N",
        help=f"with --held-out: tokens of a prompt (default: {PROMPT_TOKENS})",
    )  # fmt: skip


def _add_method_flags(parser: Parser) -> None:
    group = parser.add_argument_group("methods")
    group.add_argument(
        "--method", action="append", default=[], metavar="NAME:FLAGS",
        help="a method, in place of those below; repeatable; the NAME of one of those needs no FLAGS",
    )  # fmt: skip
    group.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N",
        help="maximum number of new tokens (default: 128)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="random seed, also of --held-out (default: 0)"
    )
    group.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts per batch (default: 8)"
    )
    group.add_argument("--judge", metavar="NAME_OR_DIR", help="score the texts with this model's perplexity")


def _add_output_flags(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--markdown", metavar="FILE", help="save the table as Markdown")
    group.add_argument("--json", metavar="FILE", help="save settings, metrics and texts as one object")
    group.add_argument("--plot", metavar="FILE.png", help="save a quality-diversity plot")
    group.add_argument("--quiet", action="store_true", help="errors only on stderr")
