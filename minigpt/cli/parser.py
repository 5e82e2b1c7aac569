"""The argument parser of every command: one-line errors, and the right flag for one that is nearly right."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import takewhile
from textwrap import fill
from typing import Any, NoReturn

from minigpt.cli import BAD_FLAGS, EXIT_CODES, Failure
from minigpt.options import flag_of
from minigpt.right_names import ELSEWHERE, meant_by, nearest

WIDTH = 100  # characters of a line of help


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
        argv = hyphens(argv)
        self._refuse_single_hyphen(argv)
        args, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown[0])}")
        return args

    def _refuse_single_hyphen(self, argv: Sequence[str]) -> None:
        """Refuses -out=x, which argparse would take for -o and the name ut=x."""
        out = self._option_string_actions.get("-o")
        if out is None:
            return
        for flag in takewhile(lambda flag: flag != "--", argv):
            if re.match(r"-out(put)?(=|$)", flag):
                self.error(f"unrecognized arguments: {flag} (use {max(out.option_strings, key=len)})")

    def actions(self) -> dict[str, argparse.Action]:
        """What every flag with two hyphens does, by its name with them."""
        return {flag: action for flag, action in self._option_string_actions.items() if flag.startswith("--")}

    def _advice(self, unknown: str) -> str:
        """What was probably meant by an argument that is none, after a space; nothing where that is open."""
        takes_prompt = any(action.metavar == "PROMPT" for action in self._actions)
        if takes_prompt and unknown.partition("=")[0] in ("-p", "--prompt"):
            return " (the prompt has no flag: give it by itself, in quotes)"
        if not unknown.startswith("-") and "--data" in self.actions():
            return f" (write --data {unknown})"
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
    >>> meant_flag("--learnign-rate", ["--lr"]), meant_flag("--fp16", ["--dtype"])
    ('use --lr', 'use --dtype float16')
    """
    name = unknown.lstrip("-").lower().replace("-", "_")
    names = [flag.lstrip("-").replace("-", "_") for flag in known]
    if meant := meant_by(name, names):
        return _use(meant)
    near = nearest(name, names) if len(name) > 1 else ""
    if near:
        return f"did you mean {flag_of(near)}?"
    others = get_close_matches(name, ELSEWHERE, n=1, cutoff=0.85)
    return _use(meant_by(others[0], names)) if others else ""


def _use(meant: str) -> str:
    """Advice to use a flag, from its name in `ELSEWHERE`; what is advice already, and nothing, stay so."""
    name, _, value = meant.partition("=")
    return meant if " " in meant or not meant else f"use {flag_of(name)} {value}".rstrip()


def hyphens(argv: Sequence[str]) -> list[str]:
    """The arguments with hyphens in their flags; values, and all that follows a bare --, stay as they are.

    >>> hyphens(["--top_k=1", "--stop=a_b", "-- a_b", "--", "--a_b"])
    ['--top-k=1', '--stop=a_b', '-- a_b', '--', '--a_b']
    """
    end = argv.index("--") if "--" in argv else len(argv)
    flags = [re.sub(r"^--\w[\w-]*(?==|$)", lambda flag: flag[0].replace("_", "-"), arg) for arg in argv[:end]]
    return [*flags, *argv[end:]]
