"""The flags of `minigpt explore`, and its help."""

from __future__ import annotations

from typing import Any

from minigpt.cli import (
    BAD_FLAGS,
    DONE,
    FAILED,
    INTERRUPTED,
    NO_MODEL,
    OUT_OF_MEMORY,
    TOO_LONG,
)
from minigpt.cli.parser import Parser
from minigpt.cli.text_flags import add_decoding_flags, add_file_flag, add_special_flag, text_parser

EXITS = (DONE, FAILED, BAD_FLAGS, NO_MODEL, TOO_LONG, OUT_OF_MEMORY, INTERRUPTED)
OVERFLOWS = ("error", "truncate", "stop")
ABOUT = """Continue a prompt, and make a page that shows what the model did.

The page is one HTML file that opens in any browser and loads nothing. It shows what each head attends to, what each
layer predicts, how surprising each token was, the alternatives of each generated token, what temperature, top-k and
top-p leave of them, and all beams. In Python: minigpt.interp.page.explore and load.
"""
EPILOG = """strategies:
{strategies}

examples:
  minigpt explore "Once upon a time" -o page.html --open                   greedy; shown in the browser
  minigpt explore "Once upon a time" -o page.html --top-p 0.9 --seed 7     sampling
  minigpt explore "Once upon a time" -o page.html --num-beams 5            beam search, and every beam it looked at
  minigpt explore "The king and the queen" -o page.html --max-new-tokens 0     the prompt alone
  minigpt explore "The king" -o page.html --compare "The dog"              two prompts and their difference
  minigpt explore -f story.txt -o page.html --model gpt2                   a text from a file, another model
"""


def parser() -> Parser:
    """The parser of the command's flags."""
    parser, groups = text_parser(
        "explore", EXITS, EPILOG, usage="minigpt explore [PROMPT] -o FILE [options]", about=ABOUT
    )
    _add_input_flags(groups["input"])
    _add_length_flags(groups["length"])
    add_decoding_flags(groups)
    add_output_flags(parser.add_argument_group("output"))
    return parser


def _add_input_flags(group: Any) -> None:
    add_file_flag(group)
    group.add_argument(
        "--compare",
        metavar="TEXT",
        help="another prompt, continued in the same way and shown beside the first",
    )
    add_special_flag(group)


def _add_length_flags(group: Any) -> None:
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help="maximum number of new tokens, 0 for the prompt alone (default: 20, or what fits the context length if "
        "that is less)",
    )  # fmt: skip
    group.add_argument(
        "--overflow", choices=OVERFLOWS, default="error",
        help="when prompt and new tokens exceed the context length: error (the default), truncate the start of the "
        "prompt, or stop at the limit",
    )  # fmt: skip


def add_output_flags(group: Any) -> None:
    """Adds the flags that change nothing on the page."""
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        required=True,
        help="the page, written atomically; such as page.html",
    )
    group.add_argument("--open", action="store_true", help="show it in the browser")
    group.add_argument("--quiet", action="store_true", help="errors only on stderr")
