"""`cli.run`: what every command does around its own work."""

from __future__ import annotations

import argparse
import warnings

import pytest

from minigpt import cli
from minigpt.cli.parser import Parser
from minigpt.lazy import hub_tqdm


def parser() -> Parser:
    parser = Parser("toy")
    parser.add_argument("--quiet", action="store_true")
    return parser


def warned(args: argparse.Namespace) -> int:
    warnings.warn("the model is small", stacklevel=1)
    return cli.DONE


@pytest.mark.parametrize(
    ("flags", "said"), [([], "minigpt.toy: warning: the model is small\n"), (["--quiet"], "")]
)
def test_warnings_are_one_line_each_and_none_with_quiet(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.run("toy", parser, warned, flags) == cli.DONE
    assert capsys.readouterr().err == said
    with pytest.warns(UserWarning, match="small"):  # and the process warns as before
        warned(argparse.Namespace())


@pytest.mark.parametrize("bars", ["minigpt", "huggingface_hub.http_get"])
def test_quiet_switches_our_bars_and_those_of_downloads_off_until_the_command_ends(bars: str) -> None:
    off = []

    def body(args: argparse.Namespace) -> int:
        off.append(hub_tqdm.are_progress_bars_disabled(bars))
        assert not hub_tqdm.are_progress_bars_disabled()  # those of other libraries
        return cli.DONE

    for flags in ([], ["--quiet"]):
        cli.run("toy", parser, body, flags)
        assert not hub_tqdm.are_progress_bars_disabled(bars)
    assert off == [False, True]


def test_a_wrong_flag_is_one_line_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("toy", parser, warned, ["--quite"]) == cli.BAD_FLAGS
    assert capsys.readouterr().err == (
        "minigpt.toy: unrecognized arguments: --quite (did you mean --quiet?); see --help\n"
    )
