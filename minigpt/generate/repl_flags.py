"""The flags of an interactive session: listed, and changed one by one, by the names of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.parser import meant_flag
from minigpt.generate.flags import parser

NOT_HERE = {
    "help", "model", "revision", "offline", "tokenizer", "device", "dtype", "quantize", "compile", "threads",
    "prompt", "file", "prompts_file", "interactive", "json", "lattice", "logprobs", "output", "replay", "show_beams",
    "stream", "out", "format", "shard_rows", "ray", "workers",
}  # fmt: skip


class ReplFlags:
    """What can be set in a session."""

    def __init__(self) -> None:
        self._parser = parser()
        self._actions = {
            flag: action for flag, action in self._parser.actions().items() if action.dest not in NOT_HERE
        }

    @property
    def names(self) -> list[str]:
        """What can be set, by the names of the flags without --."""
        return [flag[2:] for flag in self._actions]

    def changed(self, args: argparse.Namespace, name: str, values: Sequence[str]) -> argparse.Namespace:
        """The flags with another value for one of them; its default where there is none.

        Raises:
            Failure: there is no such flag, or it cannot have that value.
        """
        flag = f"--{name.lstrip('-').replace('_', '-')}"
        action = self._actions.get(flag)
        if action is None:
            if flag in self._parser.actions():
                raise Failure(BAD_FLAGS, f"{flag} cannot be set here: leave, and start again with it")
            meant = meant_flag(flag, self._actions)
            hint = f" ({meant})" if meant else ""
            raise Failure(BAD_FLAGS, f"there is no {flag}{hint}; !set lists all settings")
        return argparse.Namespace(**{**vars(args), action.dest: self._parsed(flag, action, values)})

    def _parsed(self, flag: str, action: argparse.Action, values: Sequence[str]) -> Any:
        """What the command line makes of a flag with these values."""
        if action.nargs != 0:
            given = [f"{flag}={value}" for value in values]
        elif list(values) in ([], ["off"], ["on"]):
            given = [flag] if values == ["on"] else []
        else:
            raise Failure(BAD_FLAGS, f"{flag} is on or off, got {values[0]!r}")
        value = getattr(self._parser.parse(given), action.dest)
        if len(values) > 1 and not isinstance(value, list):
            raise Failure(BAD_FLAGS, f"{flag} takes one value, got {len(values)}")
        return value

    def listed(self, args: argparse.Namespace) -> dict[str, Any]:
        """Every setting by its flag's name; None where it is not set."""
        values = {flag[2:]: getattr(args, action.dest) for flag, action in self._actions.items()}
        return {name: value if is_set(value) else None for name, value in values.items()}

    def value(self, args: argparse.Namespace, name: str) -> str:
        """One setting, to be shown."""
        value = self.listed(args)[name.lstrip("-").replace("_", "-")]
        return "not set" if value is None else str(value)


def is_set(value: Any) -> bool:
    """Whether a flag was given, by its value."""
    return value is not None and value is not False and value != []
