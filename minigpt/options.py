"""Options: fields of a dataclass in Python, flags on the command line, with one help text and one range for both.

>>> @dataclass(frozen=True, kw_only=True)
... class Settings:
...     num_beams: int = option(5, "number of beams", group="beams", least=1)
...
...     def __post_init__(self) -> None:
...         check_options(self)
>>> Settings(num_beams=0)
Traceback (most recent call last):
minigpt.errors.InvalidRequest: num_beams (--num-beams) must be a whole number of at least 1, got 0
"""

from __future__ import annotations

import numbers
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any, NamedTuple, TypeVar

from minigpt.errors import InvalidRequest
from minigpt.json_files import shown

T = TypeVar("T")

REQUIRED = MISSING  # the default of an option without which its class makes no sense
# The smallest and the largest size of a number that loses no precision as a float32.
FLOAT32 = (1.1754943508222875e-38, 3.4028234663852886e38)


class Kind(NamedTuple):
    """A type of values: how messages call it, which values it has, and how one is read from a flag's text."""

    name: str
    has: Callable[[Any], bool]
    parse: Callable[[str], Any] = str
    metavar: str = "X"


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


KINDS: dict[type, Kind] = {
    bool: Kind("True or False", lambda value: isinstance(value, bool), bool),
    int: Kind("a whole number", _is_whole, int, "N"),
    float: Kind("a number", _is_number, float),
    str: Kind("a string", lambda value: isinstance(value, str), str, "TEXT"),
}


HUGE = 2**31  # nothing that is counted comes near: tokens, rows, texts


def _plain(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) and bound >= HUGE else f"{bound:g}"


@dataclass(frozen=True)
class Range:
    """Which numbers an option takes.

    >>> str(Range(least=0, most=1)), str(Range(least=1)), str(Range(above=0, below=1))
    ('from 0 to 1', 'at least 1', 'above 0 and below 1')
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {_plain(self.least)} to {_plain(self.most)}"
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(
            f"{words} {_plain(bound)}" for words, bound in bounds.items() if bound is not None
        )

    @property
    def shown(self) -> Range:
        """What `--help` and most messages say of it: nothing of an upper end that nobody comes near."""
        return replace(self, below=None) if self.below is not None and self.below >= HUGE else self


@dataclass(frozen=True, eq=False)
class Option:
    """All that is known of an option but its name; see `option`. An option that is inherited is the same object."""

    default: Any
    help: str
    in_python: str | None
    group: str | None
    kind: Kind
    range: Range
    off: Any
    choices: tuple[Any, ...]
    collect: Callable[[list[Any], Any], Any] | None
    resolve: Callable[[Any, Any], Any] | None
    needs: str | None
    default_is: str | None
    metavar: str
    nargs: str | None

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def limits(self) -> str:
        """What the kind does not say of the values: 'from 0 to 1', 'at least 1, or 0 for off', or nothing."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        off = "" if self.off is None or self.off in self.range else f", or {self.off}"
        return f"{self.range}{off}{' for off' * (bool(off) and self.off == self.default)}"

    @cached_property
    def described(self) -> str:
        """The help with what is needed, the range and the default, where there is something to say of them.

        >>> option(0.1, "growth", group="control", above=0, needs="penalty").metadata["option"].described
        'with --penalty: growth (above 0; default: 0.1)'
        """
        return self._described(self.help)

    @cached_property
    def described_in_python(self) -> str:
        """The same for `help()`: with what a value is in Python, and with names instead of flags.

        >>> option((), "a text; repeatable", in_python="a list of ids", group="control", needs="penalty"
        ... ).metadata["option"].described_in_python
        'with penalty: a list of ids'
        """
        return re.sub(
            r"--([a-z][\w-]*)",
            lambda flag: flag[1].replace("-", "_"),
            self._described(self.in_python or self.help),
        )

    def _described(self, help_text: str) -> str:
        notes = [] if self.choices else [replace(self, range=self.range.shown).limits]
        if self.required:
            notes.append("required by the strategy")
        elif self.default_is:
            notes.append(f"default: {self.default_is}")
        elif not (self.default is None or self.default is False or self.default in (self.off, (), {})):
            notes.append(
                f"default: {self.default:g}"
                if isinstance(self.default, float)
                else f"default: {self.default}"
            )
        noted = "; ".join(filter(None, notes))
        needed = f"with {flag_of(self.needs)}: " if self.needs else ""
        return f"{needed}{help_text}{f' ({noted})' * bool(noted)}"

    def problem(self, value: Any, may_be_off: bool = True) -> str | None:
        """What a value must be, if it is not that."""
        if value is None and self.default is None:
            return None
        if self.choices:
            known = any(type(value) is type(choice) and value == choice for choice in self.choices)
            return None if known else self.limits
        wanted = replace(self, range=self.range.shown)._wanted
        if not self.kind.has(value):
            return wanted
        if self.kind not in (KINDS[int], KINDS[float]) or (may_be_off and value == self.off):
            return None
        if value not in self.range:
            return self._wanted if value >= HUGE else wanted
        if self.kind is KINDS[float] and value != 0 and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
            bounds = f"from {FLOAT32[0]:.2g} to {FLOAT32[1]:.2g}"
            return f"{wanted}, and within what float32 represents, {bounds} in size"
        return None

    @property
    def _wanted(self) -> str:
        """The kind and its limits: 'a whole number of at least 1'."""
        if not self.limits:
            return self.kind.name
        return f"{self.kind.name} {'of ' * self.limits.startswith('at ')}{self.limits}"

    @property
    def by_text(self) -> dict[str, Any]:
        """The choices by their texts on the command line."""
        return {str(choice).lower(): choice for choice in self.choices}

    def parse(self, text: str) -> Any:
        """One value from its text on the command line; a ValueError or KeyError if it is none."""
        return self.by_text[text.lower()] if self.choices else self.kind.parse(text)


def option(
    default: Any,
    help: str,
    *,
    in_python: str | None = None,
    group: str | None,
    kind: type | Kind | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    off: Any = None,
    choices: Iterable[Any] = (),
    collect: Callable[[list[Any], Any], Any] | None = None,
    resolve: Callable[[Any, Any], Any] | None = None,
    needs: str | None = None,
    default_is: str | None = None,
    metavar: str | None = None,
    nargs: str | None = None,
    **facts: Any,
) -> Any:
    """A dataclass field that is an option: in Python a keyword, on the command line a flag.

    Args:
        default: as of a dataclass field; a dict is copied for each instance; REQUIRED for none. Where it is
            None, None is a value as well.
        help: one line for `--help` and `help()`; range and default are added by themselves.
        in_python: the line for `help()`, where a value in Python is something else than the text of a flag.
        group: the heading under which `--help` shows it; None for an option of Python alone.
        kind: bool, int, float, str or a `Kind`; that of the default unless given. bool makes a flag without
            a value.
        least: the smallest value allowed.
        most: the largest value allowed.
        above: every value is greater than this.
        below: every value is less than this.
        off: the one value that switches the option off, and may lie outside the range.
        choices: the only values allowed.
        collect: (values, what the command has loaded) -> the field's value, for a flag that may be repeated.
        resolve: (value, what the command has loaded) -> the field's value, for one that needs a tokenizer or
            a model.
        needs: another option, without which this one has no effect; the command line says so.
        default_is: what the default is in words, where it follows from something else.
        metavar: what `--help` calls the value.
        nargs: "+" for a flag with several values, as in argparse.
        facts: whatever else the class wants to remember of the field, in its metadata.
    """
    chosen = kind if isinstance(kind, Kind) else KINDS.get(kind or type(default), KINDS[str])
    declared = Option(
        default=default,
        help=help,
        in_python=in_python,
        group=group,
        kind=chosen,
        range=Range(least, most, above, below),
        off=off,
        choices=tuple(choices),
        collect=collect,
        resolve=resolve,
        needs=needs,
        default_is=default_is,
        metavar=metavar or chosen.metavar,
        nargs=nargs,
    )
    metadata = {"option": declared, **facts}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


@cache
def options_of(kind: type) -> dict[str, Option]:
    """The options of a dataclass by name, its bases' first."""
    return {f.name: f.metadata["option"] for f in fields(kind) if "option" in f.metadata}


def documented(kind: type[T]) -> type[T]:
    """A dataclass whose docstring, and so `help()`, lists its options."""
    plain: type = kind  # to mypy, type[T] cannot be hashed
    kind.__doc__ = f"{kind.__doc__ or ''}\n{arguments(options_of(plain))}"
    return kind


def arguments(options: Mapping[str, Option]) -> str:
    """The options as a section of a docstring, indented as the docstring of a class is."""
    return "\n".join(["    Args:", *(_argument(name, option) for name, option in options.items()), "    "])


@cache  # most options are inherited, and wrapping lines takes time that `--help` would have to wait for
def _argument(name: str, option: Option) -> str:
    text = f"{name}: {option.described_in_python}"
    return textwrap.fill(
        text, 108, initial_indent=" " * 8, subsequent_indent=" " * 12, break_on_hyphens=False
    )


def flag_of(name: str) -> str:
    """An option's flag.

    >>> flag_of("num_beams")
    '--num-beams'
    """
    return "--" + name.replace("_", "-")


def named(kind: type, name: str) -> str:
    """An option as messages call it, by its name and, where it has one, its flag."""
    return name if options_of(kind)[name].group is None else f"{name} ({flag_of(name)})"


def check_options(instance: object) -> None:
    """Checks the options of a dataclass: for its `__post_init__`.

    Raises:
        InvalidRequest: a value is of the wrong type or out of its range; one line that names the option, its
            flag, the value and the limit.
    """
    kind: type = type(instance)
    for name, option in options_of(kind).items():
        value = getattr(instance, name)
        if (limit := option.problem(value)) is not None:
            raise InvalidRequest(f"{named(kind, name)} must be {limit}, got {shown(value)}")


def check_count(name: str, value: int | None, least: int = 1) -> None:
    """Refuses a number of things that cannot be: too few, or more than can exist. None passes.

    Raises:
        InvalidRequest: it is refused.

    >>> check_count("--batch-size", 10**30)
    Traceback (most recent call last):
    minigpt.errors.InvalidRequest: --batch-size must be below 2,147,483,648, got 1000000000000000000000000000000
    """
    if value is not None and not least <= value < HUGE:
        limit = f"at least {least}" if value < least else f"below {HUGE:,}"
        raise InvalidRequest(f"{name} must be {limit}, got {shown(value)}")


def require_in_range(kind: type, **values: Any) -> None:
    """Checks values against the options of that name of a class; what is off is none of them.

    Raises:
        InvalidRequest: a value is of the wrong type or out of its range.
    """
    for name, value in values.items():
        if (limit := options_of(kind)[name].problem(value, may_be_off=False)) is not None:
            raise InvalidRequest(f"{named(kind, name)} must be {limit}, got {shown(value)}")
