"""Flags from the options of dataclasses, so that a setting or a strategy needs no code of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from minigpt.options import Option, flag_of, options_of


def add_flags(parser: argparse.ArgumentParser, kind: type) -> None:
    """Adds every option of a dataclass, under the headings that they name."""
    groups: dict[str, Any] = {}
    for name, option in options_of(kind).items():
        if option.group is not None:
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            add_flag(groups[option.group], name, option)


def add_flag(group: Any, name: str, option: Option, help: str | None = None) -> None:
    """Adds one option's flag; without the flag its value is None."""
    how: dict[str, Any] = {
        "dest": name,
        "default": None,
        "help": (help or option.described).replace("%", "%%"),
    }
    if option.kind.parse is bool and not option.choices:
        how["action"] = "store_true"
    else:
        how |= {"type": _reader(option), "metavar": option.metavar, "nargs": option.nargs}
        how["action"] = "append" if option.collect else "store"
    group.add_argument(flag_of(name), **how)


def _reader(option: Option) -> Callable[[str], Any]:
    """Reads an option's value from the command line, and says what it takes if it cannot."""
    names = {int: "a whole number", float: "a number"}
    wanted = ", ".join(option.by_text) or names.get(option.kind.parse, option.metavar)  # type: ignore[call-overload]

    def read(text: str) -> Any:
        try:
            return option.parse(text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None

    return read
