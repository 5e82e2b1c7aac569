"""Decoding methods by name, each written as the flags that `minigpt.generate` takes for it."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli import strategy_flags as options
from minigpt.cli.parser import Parser
from minigpt.cli.terminal import utf8
from minigpt.options import options_of
from minigpt.sampler.registry import name_of, names
from minigpt.sampler.strategy import Strategy

# What is compared unless the user says otherwise.
METHODS = {
    "greedy": "",
    "prompt lookup": "--strategy prompt-lookup",
    "beam 5": "--num-beams 5",
    "beam 5 no-repeat-3": "--num-beams 5 --no-repeat-ngram-size 3",
    "diverse beam 4": "--num-beams 4 --num-beam-groups 4",
    "contrastive 0.6/4": "--penalty-alpha 0.6 --top-k 4",
    "DoLa": "--dola-layers high",
    "pure sampling": "--strategy sample",
    "temperature 0.7": "--temperature 0.7",
    "top-k 40": "--top-k 40",
    "nucleus 0.95": "--top-p 0.95",
    "min-p 0.05": "--min-p 0.05",
    "typical 0.95": "--typical-p 0.95",
    "typical 0.2": "--typical-p 0.2",
    "epsilon 6e-4": "--epsilon-cutoff 6e-4",
    "eta 2e-3": "--eta-cutoff 2e-3",
    "top-n-sigma 1": "--top-n-sigma 1",
    "mirostat 5": "--mirostat-tau 5",
}


@dataclass(frozen=True)
class Method:
    """A strategy with its options, as the command line has them."""

    name: str
    flags: str
    kind: type[Strategy]
    args: argparse.Namespace
    seed: int  # to sample with, unless the flags have another

    @property
    def strategy_name(self) -> str:
        return name_of(self.kind)

    def strategy(self, loaded: options.Loaded | None) -> Strategy:
        """Ready to decode; with nothing loaded, only to check the numbers."""
        strategy = options.build_strategy(self.kind, self.args, loaded)
        if strategy.n_texts != 1:
            raise Failure(BAD_FLAGS, "one text a prompt is compared: leave out --num-return-sequences")
        unseeded = "seed" in options_of(self.kind) and self.args.seed is None
        return replace(strategy, seed=self.seed) if unseeded else strategy  # type: ignore[call-arg]


def chosen(given: list[str], seed: int) -> list[Method]:
    """The methods that --method asks for, or all of `METHODS`; each checked as far as it can be without a model."""
    named = [_named(text) for text in given] or list(METHODS.items())
    counts = Counter(name for name, _ in named)
    if twice := [name for name, n in counts.items() if n > 1]:  # results, failures and the plot go by names
        raise Failure(
            BAD_FLAGS, f"--method: {twice[0]!r} is named twice; write NAME: FLAGS with another name"
        )
    return [method(name, flags, seed) for name, flags in named]


def _named(text: str) -> tuple[str, str]:
    """The name and the flags in "NAME: FLAGS"; flags alone are their own name, a known name has its flags."""
    text = utf8(text).decode().strip()
    if text.startswith("-"):
        return text, text
    name, colon, flags = (part.strip() for part in text.partition(":"))
    if not name:
        raise Failure(BAD_FLAGS, f"--method {text!r} has no name; write NAME: FLAGS")
    if not colon and name not in METHODS:
        known = ", ".join(METHODS)
        raise Failure(
            BAD_FLAGS, f"--method {text!r} is not known; write NAME: FLAGS, or one of these: {known}"
        )
    return name, flags if colon else METHODS[name]


def method(name: str, flags: str, seed: int) -> Method:
    """The method of these flags; it samples with `seed`, unless they have another."""
    try:
        args = _parser().parse(shlex.split(flags))
        result = Method(name, flags, options.chosen_strategy(args), args, seed)
        result.strategy(loaded=None)
    except (Failure, ValueError) as error:  # a ValueError: quotes that do not end
        raise Failure(BAD_FLAGS, f"--method {name!r}: {error}") from error
    return result


def _parser() -> Parser:
    parser = Parser("compare", add_help=False)
    parser.add_argument("--strategy", choices=names())
    options.add_flags(defaultdict(lambda: parser))
    return parser
