"""The parser of every command: one-line errors, near names, exit codes in the help."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minigpt.cli import EXIT_CODES, Failure
from minigpt.cli.parser import Parser, meant_flag
from minigpt.explore import flags as explore_flags
from minigpt.generate import flags as generate_flags
from minigpt.merge_lora import parser as merge_lora_parser
from minigpt.options import flag_of, options_of
from minigpt.quantize import parser as quantize_parser
from minigpt.right_names import ELSEWHERE
from minigpt.sampler.registry import find, names
from minigpt.sampler.requests import Limits
from minigpt.score.__main__ import parser as score_parser
from minigpt.train import parser as train_parser
from minigpt.train_tokenizer import parser as train_tokenizer_parser


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--max_length", "use --max-new-tokens"),
        ("--max-tokens=5", "use --max-new-tokens"),
        ("--do-sample", "use --strategy sample"),
        ("--n_ctx", "`minigpt info MODEL` shows it"),
        ("--block-size", "a model's context length is fixed"),
        ("--temp", "use --temperature"),
        ("--max-lenght", "use --max-new-tokens"),
        ("--num-beam", "did you mean --num-beams?"),
        ("--tok-p", "did you mean --top-p?"),
        ("--Temperature", "did you mean --temperature?"),
        ("-temperature", "did you mean --temperature?"),
        ("--fp16", "use --dtype float16"),
        ("--prompt_file", "use --file"),
        ("-k", "use --top-k"),
    ],
)
def test_a_flag_that_is_nearly_right_is_answered_with_the_right_one(flag: str, meant: str) -> None:
    with pytest.raises(Failure, match=r"^unrecognized arguments: -") as raised:
        generate_flags.parser().parse(["Once", flag])
    assert meant in str(raised.value)
    assert raised.value.code == 2


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--learning-rate", "--lr"), ("--epochs", "--steps"), ("--block_size", "--context"), ("--n-ctx", "--context"),
     ("--output_dir", "--out"), ("--n-layers", "--n-layer"), ("--gradient-accumulation-steps", "--accumulate")],
)  # fmt: skip
def test_training_knows_the_names_of_other_libraries(flag: str, meant: str) -> None:
    with pytest.raises(Failure, match=rf"unrecognized arguments: .*\(use {meant}\)"):
        train_parser().parse(["--data", "x", "--out", "y", flag, "3"])


def test_a_flag_after_two_hyphens_is_told_its_place() -> None:
    with pytest.raises(Failure, match=r"unrecognized arguments: --top-k 5 \(flags come before --\)"):
        generate_flags.parser().parse(["--", "-5 plus 3 is", "--top-k", "5"])


def test_each_command_is_told_its_own_flags() -> None:
    for flag, make, meant in (
        ("--quantize", quantize_parser, "use --to"),
        ("--prompt", score_parser, "use --text"),
        ("-o", score_parser, "use --out"),
    ):
        assert meant_flag(flag, make().actions()) == meant


@pytest.mark.parametrize("flag", ["-p", "--prompt"])
def test_a_prompt_without_a_flag_is_told_so_where_there_is_one(flag: str) -> None:
    with pytest.raises(Failure, match="the prompt has no flag: give it by itself, in quotes"):
        explore_flags.parser().parse([flag, "x", "-o", "y"])
    with pytest.raises(Failure) as raised:
        train_parser().parse(["--data", "x", "--out", "y", flag, "z"])
    assert "prompt has no" not in str(raised.value)


@pytest.mark.parametrize("flag", ["-out", "-out=x", "-output=x"])
def test_out_with_one_hyphen_is_no_folder_called_ut(flag: str) -> None:
    with pytest.raises(Failure, match=r"unrecognized arguments: -out.* \(use --out"):
        train_parser().parse(["--data", "x", flag, "y"])


def test_a_text_to_train_on_is_told_its_flag() -> None:
    with pytest.raises(Failure, match=r"unrecognized arguments: tale.txt \(write --data tale.txt\)"):
        train_parser().parse(["tale.txt", "--out", "x"])


@pytest.mark.parametrize("make", [train_parser, train_tokenizer_parser, merge_lora_parser, quantize_parser])
def test_o_is_out(make: Callable[[], Parser]) -> None:
    assert "-o" in make()._option_string_actions["--out"].option_strings


def test_what_resembles_help_only_is_not_answered_with_it() -> None:
    with pytest.raises(Failure, match=r"^unrecognized arguments: --heal; see --help$"):
        explore_flags.parser().parse(["x", "-o", "y", "--heal"])


@pytest.mark.parametrize("flag", ["--zzz", "--start", "-t"])  # one letter is the beginning of too many
def test_what_resembles_nothing_gets_no_advice(flag: str) -> None:
    with pytest.raises(Failure, match=rf"^unrecognized arguments: {flag} 3; see --help$"):
        generate_flags.parser().parse(["x", flag, "3"])


def test_what_a_name_is_elsewhere_leads_to_flags_and_arguments_that_exist() -> None:
    known = {
        flag
        for make in (generate_flags.parser, train_parser, score_parser, quantize_parser)
        for flag in make().actions()
    }
    for_python = {name for kind in map(find, names()) for name in options_of(kind)} | set(
        Limits.__annotations__
    )
    meant = {name.partition("=")[0] for means in ELSEWHERE.values() for name in means if " " not in name}
    assert {flag_of(name) for name in meant - for_python} <= known
    assert not set(map(flag_of, ELSEWHERE)) & set(generate_flags.parser().actions()) - {
        "--out", "--output", "--prompt", "--quantize",
    }  # fmt: skip


def test_the_help_ends_with_the_exit_codes() -> None:
    help = Parser("x", exits=(0, 130), epilog="examples:\n").format_help()
    assert help.endswith(f"examples:\n\nexit codes: 0 {EXIT_CODES[0]}, 130 {EXIT_CODES[130]}\n")
