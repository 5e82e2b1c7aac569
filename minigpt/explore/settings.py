"""What one call of `minigpt explore` is asked for: its flags, checked, with every default decided."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.inputs import STDIN, check_stdin_once, read_text, stdin_is_piped
from minigpt.cli.model_flags import ModelFlags
from minigpt.cli.outputs import check_file
from minigpt.cli.parser import hyphens
from minigpt.cli.strategy_flags import StrategyFlags
from minigpt.explore.flags import add_output_flags
from minigpt.options import check_count


@dataclass(frozen=True)
class ExploreSettings:
    """What is asked for. The fields are those of the flags."""

    model: ModelFlags
    strategy: StrategyFlags
    prompts: tuple[str, ...]  # one, or two to be compared
    max_new_tokens: int | None
    overflow: Literal["error", "truncate", "stop"]
    stop: tuple[str, ...]
    allow_special: bool
    output: str
    open: bool
    quiet: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> ExploreSettings:
        """Those of a command line; the prompt is read last.

        Raises:
            Failure: a flag has a value that it cannot have, or they do not go together.
        """
        strategy, model = StrategyFlags.of(args), ModelFlags.of(args)
        _check(args)
        prompts = (_prompt(args), *([] if args.compare is None else [args.compare]))
        return cls(
            model, strategy, prompts, args.max_new_tokens, args.overflow, tuple(args.stop),
            args.allow_special, args.output, args.open, args.quiet,
        )  # fmt: skip


def command_line(argv: Sequence[str], seed: int | None) -> str:
    """The command that makes this page again, without the flags that change nothing on it.

    Args:
        argv: the flags as they were given.
        seed: that the text was sampled with, if it was.

    >>> command_line(["Once upon", "--top_p=0.9", "-o", "page.html", "--open"], seed=7)
    "minigpt explore 'Once upon' --top-p=0.9 --seed 7"
    """
    end = argv.index("--") if "--" in argv else len(argv)
    outputs = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_output_flags(outputs)
    _, flags = outputs.parse_known_args(hyphens(argv[:end]))
    if seed is not None and not any(flag.startswith("--seed") for flag in flags):
        flags += ["--seed", str(seed)]
    return shlex.join(["minigpt", "explore", *flags, *argv[end:]])


def _check(args: argparse.Namespace) -> None:
    if args.compile:
        raise Failure(
            BAD_FLAGS, "--compile hides what the layers compute inside, which the page shows: leave it out"
        )
    check_count("--max-new-tokens", args.max_new_tokens, least=0)
    if (args.num_return_sequences or 1) != 1:
        raise Failure(
            BAD_FLAGS, f"--num-return-sequences must be 1, got {args.num_return_sequences}: a page shows one text, and "
            "all beams that were looked at for it",
        )  # fmt: skip
    for flag, words in (("--stop", args.stop), ("--bad-words", args.bad_words or ())):
        if "" in words:
            raise Failure(BAD_FLAGS, f"{flag} needs at least one character, got ''")
    if args.text is not None and args.file is not None:
        raise Failure(BAD_FLAGS, "the prompt is given twice, as PROMPT and with --file: leave one out")
    check_stdin_once([args.text, args.file])
    check_file("--output", args.output, {"--file": args.file})


def _prompt(args: argparse.Namespace) -> str:
    """The text of PROMPT or of --file; without either a pipe, or an empty one."""
    if args.file is not None:
        return read_text(args.file, "--file")
    if args.text == STDIN or (args.text is None and stdin_is_piped()):
        return read_text(STDIN)
    return args.text or ""
