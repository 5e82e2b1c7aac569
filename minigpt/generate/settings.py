"""What one call of `minigpt generate` is asked for: its flags, checked, with every default decided."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.inputs import STDIN, check_stdin_once
from minigpt.cli.model_flags import ModelFlags
from minigpt.cli.outputs import check_file
from minigpt.cli.strategy_flags import StrategyFlags
from minigpt.cli.terminal import is_terminal
from minigpt.options import check_count
from minigpt.sampler.requests import USUAL_LENGTH
from minigpt.sampler.strategies.beam import Beam

Overflow = Literal["error", "truncate", "stop", "slide"]

OTHER_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf")  # than .svg


@dataclass(frozen=True)
class GenerateSettings:
    """What is asked for. The fields are those of the flags, in the groups of the help."""

    model: ModelFlags
    strategy: StrategyFlags

    prompts: tuple[str, ...]  # PROMPT and --prompt, in the order of the help; "-" is stdin
    file: str | None
    prompts_file: str | None
    allow_special: bool
    heal: bool
    interactive: bool

    max_new_tokens: int | None  # None: the usual length, or what fits
    overflow: Overflow
    stride: int | None
    stop: tuple[str, ...]

    show_beams: bool
    lattice: str | None

    stream: bool
    json: bool
    logprobs: int | None
    explain: bool
    top: int | None
    echo: bool
    quiet: bool
    output: str | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> GenerateSettings:
        """Those of a command line.

        Raises:
            Failure: a flag has a value that it cannot have, or they do not go together.
        """
        strategy = StrategyFlags.of(args)
        decided: dict[str, Any] = {
            "model": ModelFlags.of(args),
            "strategy": strategy,
            "prompts": (*([] if args.text is None else [args.text]), *args.prompt),
            "overflow": args.overflow or ("slide" if args.interactive else "error"),
            "stop": tuple(args.stop),
        }
        flags: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        settings = cls(**(flags | decided))
        settings = replace(settings, stream=_streams(settings, args.stream))
        check_numbers(settings, args.min_new_tokens or 0, args.bad_words or ())
        check_input(settings)
        check_prompts_file(settings)
        check_beams(settings)
        check_output(settings, given_stream=args.stream)
        return settings

    @property
    def several(self) -> bool:
        """Whether more than one text is asked for."""
        sequences = getattr(self.strategy.flags, "num_return_sequences", None) or 1
        several_prompts = len(self.prompts) + (self.file is not None) > 1 or self.prompts_file is not None
        return several_prompts or sequences > 1

    @property
    def top_logprobs(self) -> int:
        """How many of the most likely tokens are reported at each step."""
        return self.logprobs or self.top or 0


def _streams(settings: GenerateSettings, given: bool | None) -> bool:
    """Whether one text is shown as it grows: what the flag says, or where a person reads it."""
    if given is not None:
        return given
    s = settings
    shown_at_end = s.several or s.json or s.output is not None or s.show_beams
    return s.interactive or (is_terminal(sys.stdout) and not shown_at_end)


def check_numbers(settings: GenerateSettings, min_new_tokens: int, bad_words: tuple[str, ...]) -> None:
    """Refuses numbers and texts that no model can make sense of."""
    for flag, value, least in (
        ("--max-new-tokens", settings.max_new_tokens, 1),
        ("--logprobs", settings.logprobs, 0),
        ("--top", settings.top, 1),
        ("--stride", settings.stride, 1),
    ):
        check_count(flag, value, least)
    most = settings.max_new_tokens or USUAL_LENGTH
    if min_new_tokens > most:
        raise Failure(BAD_FLAGS, f"--min-new-tokens {min_new_tokens} exceeds --max-new-tokens {most}")
    for flag, words in (("--stop", settings.stop), ("--bad-words", bad_words)):
        if "" in words:
            raise Failure(BAD_FLAGS, f"{flag} needs at least one character, got ''")
    if settings.stride is not None and settings.overflow != "slide":
        raise Failure(
            BAD_FLAGS, f"--stride is for --overflow slide, not for {settings.overflow}: leave one out"
        )


def check_input(settings: GenerateSettings) -> None:
    """Refuses to read stdin for two purposes."""
    inputs = [*settings.prompts, settings.file]
    check_stdin_once(inputs)
    if STDIN in inputs and settings.interactive:
        raise Failure(
            BAD_FLAGS, "--interactive reads what you type from stdin, so - cannot read a prompt from it"
        )


def check_prompts_file(settings: GenerateSettings) -> None:
    """Refuses what has no meaning for many prompts."""
    if settings.prompts_file is None:
        return
    if settings.prompts or settings.file is not None:
        raise Failure(BAD_FLAGS, "--prompts has all prompts: leave out PROMPT, --prompt and --file")
    for flag, value in (
        ("--interactive", settings.interactive),
        ("--show-beams", settings.show_beams),
        ("--lattice", settings.lattice),
        ("--explain", settings.explain),
    ):
        if value:
            raise Failure(BAD_FLAGS, f"{flag} is for a few prompts, --prompts for many: leave one out")


def check_beams(settings: GenerateSettings) -> None:
    """Refuses to show beams where there are none."""
    for flag, value in (("--show-beams", settings.show_beams), ("--lattice", settings.lattice)):
        if value and not issubclass(settings.strategy.kind, Beam):
            raise Failure(
                BAD_FLAGS,
                f"{flag} is not supported by {settings.strategy.name}, which has no beams: add --num-beams 5",
            )
        if value and settings.interactive:
            raise Failure(BAD_FLAGS, f"{flag} is for one text, --interactive for many: leave one out")
    if settings.show_beams and settings.quiet:
        raise Failure(BAD_FLAGS, "--show-beams draws on stderr, which --quiet forbids: leave one out")
    if settings.lattice is not None:
        check_lattice(settings.lattice, {"--file": settings.file})


def check_lattice(name: str, others: Mapping[str, str | None]) -> None:
    """Refuses a file for a trace that cannot be written, is one of the others, or is named as a picture of another format."""
    if name.lower().endswith(OTHER_PICTURES):
        raise Failure(
            BAD_FLAGS, f"--lattice {name}: a picture is written as .svg, a trace as .json; name it so"
        )
    check_file("--lattice", name, others)


def check_output(settings: GenerateSettings, given_stream: bool | None) -> None:
    """Refuses flags that contradict each other, and files that cannot be written."""
    s = settings
    if s.interactive and (s.several or s.json or s.output or given_stream is False):
        raise Failure(
            BAD_FLAGS, "--interactive shows one text as it grows: not several, and not --json, --output"
            " or --no-stream",
        )  # fmt: skip
    if given_stream and (s.several or s.json or s.output or s.show_beams):
        raise Failure(
            BAD_FLAGS,
            "--stream shows one text as it grows: not several, and not --json, --output or --show-beams",
        )
    if s.logprobs is not None and not s.json:
        raise Failure(BAD_FLAGS, "--logprobs goes into the JSON: add --json")
    if s.echo and s.json:
        raise Failure(
            BAD_FLAGS, "--echo has no effect with --json, whose objects have the prompt: leave one out"
        )
    if s.top is not None and (not s.explain or s.logprobs is not None):
        raise Failure(BAD_FLAGS, "--top is for --explain, --logprobs for --json: give one of these pairs")
    if s.explain and s.quiet and not s.json:
        raise Failure(BAD_FLAGS, "--explain writes its table to stderr, which --quiet forbids: add --json")
    if s.output is not None:
        others = {"--file": s.file, "--prompts": s.prompts_file, "--lattice": s.lattice}
        check_file("--output", s.output, others)
    elif sys.stdout is None:
        raise Failure(BAD_FLAGS, "stdout is closed: give --output FILE")
