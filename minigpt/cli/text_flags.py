"""The flags that all commands share that continue a text: `generate` and `explore`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minigpt.cli import strategy_flags
from minigpt.cli.model_flags import add_model_flags
from minigpt.cli.parser import Parser
from minigpt.options import flag_of

HEADINGS = ("input", "length", "strategy", "sampling", "beams", "control")


def text_parser(
    command: str, exits: Sequence[int], epilog: str, *, usage: str, about: str
) -> tuple[Parser, dict[str, Any]]:
    """A parser that knows PROMPT and the model's flags, and its other groups by their headings, still empty.

    `{strategies}` in `epilog` becomes their list.
    """
    parser = Parser(
        command, exits, epilog.format(strategies=strategy_flags.listed()), usage=usage, description=about
    )
    parser.add_argument("text", nargs="?", metavar="PROMPT", help="the text to continue; - reads stdin")
    add_model_flags(parser)
    groups: dict[str, Any] = {name: parser.add_argument_group(name) for name in HEADINGS}
    return parser, groups


def add_decoding_flags(groups: Mapping[str, Any]) -> None:
    """Adds the choice of a strategy, the options of all strategies, and --stop."""
    strategy_flags.add_strategy_choice(groups["strategy"])
    strategy_flags.add_flags(groups)
    groups["control"].add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )


def escapes(args: argparse.Namespace) -> Iterator[str]:
    r"""One line for each text that holds a backslash and a letter where a newline or a tab was probably meant.

    >>> list(escapes(argparse.Namespace(stop=[r"\n"])))
    ["--stop '\\\\n' has a backslash and a letter in it; for a newline write $'\\n' in bash"]
    """
    for name in ("stop", "bad_words", "must_include", "dry_sequence_breakers"):
        for text in getattr(args, name, None) or ():
            if "\\n" in text or "\\t" in text:
                yield (
                    f"{flag_of(name)} {text!r:.40} has a backslash and a letter in it; for a newline write $'\\n' in bash"
                )


def add_file_flag(group: Any) -> None:
    """Adds the flag for a prompt from a file."""
    group.add_argument(
        "-f", "--file", metavar="FILE",
        help="a prompt from a UTF-8 file, without the newline at its end; - reads stdin",
    )  # fmt: skip


def add_special_flag(group: Any) -> None:
    """Adds the flag that lets a prompt hold special tokens."""
    group.add_argument(
        "--allow-special", action="store_true",
        help="encode <|endoftext|> in a prompt as the special token, not as text",
    )  # fmt: skip
