"""Options: one declaration gives a field's type and range in Python, and a flag with its help."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from minigpt.cli.fields import add_flags
from minigpt.errors import InvalidRequest
from minigpt.options import REQUIRED, check_options, option, options_of, require_in_range


@dataclass(frozen=True, kw_only=True)
class Oven:
    """Something with options of every kind."""

    degrees: float = option(180.0, "temperature in degrees", group="heat", above=0, below=300)
    fan: bool = option(False, "switch the fan on", group="heat")
    minutes: int = option(0, "time in minutes, 100% of it", group="time", least=1, off=0)
    mode: str = option("auto", "what to heat", group="heat", choices=("auto", "grill"))
    label: str | None = option(None, "a name", group="time", kind=str)
    bell: int = option(3, "rings of the bell", group="time", least=1, needs="minutes")
    probe: Any = option(None, "for Python alone", group=None, kind=int)

    def __post_init__(self) -> None:
        check_options(self)


def test_what_is_in_range_is_taken_whatever_kind_of_number_it_is() -> None:
    for degrees in (200, 200.0, np.float32(200), np.int64(200)):
        assert Oven(degrees=degrees).degrees == 200
    assert Oven(minutes=0) == Oven()
    assert Oven(minutes=np.int64(5), label="cake", mode="grill", probe=1).minutes == 5


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("degrees", 0, r"a number above 0 and below 300"),
        ("degrees", 300.0, r"a number above 0 and below 300"),
        ("degrees", "hot", r"a number above 0 and below 300"),
        ("degrees", True, r"a number above 0 and below 300"),
        ("degrees", None, r"a number above 0 and below 300"),
        ("degrees", math.nan, r"a number above 0 and below 300"),
        ("degrees", 1e-320, r"a number above 0 and below 300, and within what float32 represents, from 1.2e-38 to 3.4e\+38 in size"),
        ("minutes", -1, r"a whole number of at least 1, or 0 for off"),
        ("minutes", 1.0, r"a whole number of at least 1, or 0 for off"),
        ("fan", 1, r"True or False"),
        ("mode", "fry", r"one of 'auto', 'grill'"),
        ("label", 7, r"a string"),
    ],
)  # fmt: skip
def test_the_error_names_option_flag_limit_and_value(name: str, value: Any, limit: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name} \(--{name}\) must be {limit}, got {value!r}$"):
        Oven(**{name: value})


def test_an_option_of_python_alone_has_no_flag_in_its_message() -> None:
    with pytest.raises(InvalidRequest, match=r"^probe must be a whole number, got 'x'$"):
        Oven(probe="x")


def test_what_is_off_is_no_value_of_what_is_on() -> None:
    require_in_range(Oven, minutes=1, degrees=1.0)
    with pytest.raises(InvalidRequest, match=r"^minutes \(--minutes\) must be .* got 0$"):
        require_in_range(Oven, minutes=0)


def parsed(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, Oven)
    return parser.parse_args(flags)


def test_every_option_with_a_group_is_a_flag() -> None:
    flags = parsed("--degrees", "200", "--fan", "--minutes", "5", "--mode", "GRILL", "--label", "cake")
    assert vars(flags) == {
        "degrees": 200.0,
        "fan": True,
        "minutes": 5,
        "mode": "grill",
        "label": "cake",
        "bell": None,
    }
    assert set(vars(parsed()).values()) == {None}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--degrees", "hot"], "--degrees: expected a number, got 'hot'"),
        (["--minutes", "1.5"], "--minutes: expected a whole number, got '1.5'"),
        (["--mode", "fry"], "--mode: expected auto, grill, got 'fry'"),
    ],
)
def test_what_a_flag_takes_is_said(flags: list[str], message: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=f"argument {message}"):
        parsed(*flags)


def test_the_help_shows_range_default_and_what_is_needed() -> None:
    described = {name: declared.described for name, declared in options_of(Oven).items()}
    assert described == {
        "degrees": "temperature in degrees (above 0 and below 300; default: 180)",
        "fan": "switch the fan on",
        "minutes": "time in minutes, 100% of it (at least 1, or 0 for off)",
        "mode": "what to heat (default: auto)",
        "label": "a name",
        "bell": "with --minutes: rings of the bell (at least 1; default: 3)",
        "probe": "for Python alone",
    }
    assert (
        options_of(Oven)["bell"].described_in_python
        == "with minutes: rings of the bell (at least 1; default: 3)"
    )
    parser = argparse.ArgumentParser()
    add_flags(parser, Oven)
    assert "100% of it (at least 1, or 0 for off)" in " ".join(parser.format_help().split())


def test_an_option_may_be_required() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy:
        name: str = option(REQUIRED, "a name", group="x", kind=str)

    assert options_of(Needy)["name"].required
    assert options_of(Needy)["name"].described == "a name (required by the strategy)"
    with pytest.raises(TypeError, match="name"):
        Needy()
