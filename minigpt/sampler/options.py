"""A strategy's options: fields in Python, flags on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from minigpt.sampler.events import LanguageModel


class Loaded(Protocol):
    """What an option may ask for when its text alone does not say it."""

    @property
    def tokenizer(self) -> Any: ...
    def other_model(self, name_or_dir: str) -> LanguageModel:
        """A second model, which must share the first one's vocabulary."""


REQUIRED = MISSING  # the default of an option without which its strategy makes no sense


def option(
    default: Any,
    help: str,
    *,
    group: str,
    flag: str | None = None,
    parse: Callable[[str], Any] | None = None,
    collect: Callable[[list[Any], Loaded], Any] | None = None,
    resolve: Callable[[Any, Loaded], Any] | None = None,
    needs: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A strategy's option, in Python a field and on the command line a flag.

    Args:
        default: as of a dataclass field; a dict or list is copied for each strategy; REQUIRED for none.
        help: one line for `--help`.
        group: the heading under which `--help` shows it.
        flag: its name on the command line, if not the field's.
        parse: one value from its text; float unless given. bool makes a flag without a value.
        collect: (values, what is loaded) -> the field's value, for a flag that may be repeated.
        resolve: (value, what is loaded) -> the field's value, for one that needs the tokenizer or a model.
        needs: another option, without which this one means nothing.
        metavar: what `--help` calls the value.
    """
    metadata = {
        "help": help,
        "group": group,
        "flag": flag,
        "parse": parse or float,
        "collect": collect,
        "resolve": resolve,
        "needs": needs,
        "metavar": metavar,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)
