"""What one call of `minigpt compare` is asked for: its flags, checked, with every default decided."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.model_flags import ModelFlags
from minigpt.cli.outputs import check_file
from minigpt.compare.flags import N_PROMPTS, PROMPT_TOKENS
from minigpt.compare.methods import Method, chosen
from minigpt.options import check_count, flag_of


@dataclass(frozen=True)
class CompareSettings:
    """What is asked for; the fields are those of the flags."""

    model: ModelFlags
    methods: tuple[Method, ...]
    text: str | None
    prompts: str | None
    held_out: str | None
    n_prompts: int | None  # of --held-out
    prompt_tokens: int | None
    max_new_tokens: int
    seed: int
    batch_size: int
    judge: str | None
    markdown: str | None
    json: str | None
    plot: str | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> CompareSettings:
        """Those of a command line.

        Raises:
            Failure: a flag has a value that it cannot have, or they do not go together.
        """
        model = ModelFlags.of(args)
        check_source(args)
        check_numbers(args)
        check_outputs(args)
        decided: dict[str, Any] = {"model": model, "methods": tuple(chosen(args.method, args.seed))}
        if args.held_out is not None:
            decided["n_prompts"] = args.n_prompts or N_PROMPTS
            decided["prompt_tokens"] = args.prompt_tokens or PROMPT_TOKENS
        flags: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(cls)}
        return cls(**(flags | decided))

    def record(self) -> dict[str, Any]:
        """What the results depend on, for the JSON."""
        names = (
            "prompts", "held_out", "n_prompts", "prompt_tokens", "max_new_tokens", "seed", "batch_size", "judge"
        )  # fmt: skip
        return {"model": self.model.name, **{name: getattr(self, name) for name in names}}


def check_source(args: argparse.Namespace) -> None:
    """Refuses anything but one source of prompts."""
    sources = [args.text is not None, args.prompts is not None, args.held_out is not None]
    if sum(sources) != 1:
        problem = "several sources of prompts" if any(sources) else "nothing to continue"
        raise Failure(BAD_FLAGS, f"{problem}: give one of PROMPT, --prompts FILE and --held-out FILE")
    for name in ("n_prompts", "prompt_tokens"):
        if args.held_out is None and getattr(args, name) is not None:
            raise Failure(BAD_FLAGS, f"{flag_of(name)} is for --held-out FILE: leave it out")
    if args.text == "":
        raise Failure(BAD_FLAGS, "the prompt is empty: give at least a word")


def check_numbers(args: argparse.Namespace) -> None:
    """Refuses numbers that no model can make sense of."""
    for name in ("n_prompts", "prompt_tokens", "max_new_tokens", "batch_size"):
        check_count(flag_of(name), getattr(args, name))
    if args.seed < 0:
        raise Failure(BAD_FLAGS, f"--seed must be at least 0, got {args.seed}")


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses files that cannot be written, before anything is computed."""
    others = {"--prompts": args.prompts, "--held-out": args.held_out}
    for flag in ("markdown", "json", "plot"):
        file = getattr(args, flag)
        if file is not None:
            check_file(f"--{flag}", file, others)
            others[f"--{flag}"] = file
    if args.plot is None:
        return
    if not args.plot.lower().endswith(".png"):
        raise Failure(BAD_FLAGS, f"--plot {args.plot}: it will be a PNG, so name it .png")
    if args.text is not None:
        raise Failure(
            BAD_FLAGS, "--plot shows metrics of many texts: give --prompts or --held-out, not PROMPT"
        )
    if find_spec("matplotlib") is None:
        raise Failure(BAD_FLAGS, "--plot needs the package matplotlib: pip install 'minigpt[plot]'")
