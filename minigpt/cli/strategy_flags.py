"""The options of all strategies as flags, and the strategy that flags ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.fields import add_flag
from minigpt.cli.model_flags import ModelFlags
from minigpt.errors import InvalidRequest
from minigpt.options import Option, flag_of, options_of, require_in_range
from minigpt.sampler.choosing import SAMPLING
from minigpt.sampler.events import LanguageModel
from minigpt.sampler.option_values import MODEL
from minigpt.sampler.registry import find, having, implied_by, name_of, names
from minigpt.sampler.seed import Seeded
from minigpt.sampler.strategy import Strategy
from minigpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loaded:
    """What options may ask for: the tokenizer of the model in use, and other models beside it."""

    wanted: ModelFlags
    tokenizer: Tokenizer

    def other_model(self, name_or_dir: str) -> LanguageModel:
        """A second model, where the first one is; its tokens must mean the same."""
        model, tokenizer = self.wanted.beside(name_or_dir).load()
        differing = (
            i
            for i in range(max(self.tokenizer.vocab_size, tokenizer.vocab_size))
            if self.tokenizer.decode_bytes([i]) != tokenizer.decode_bytes([i])
        )
        if (token := next(differing, None)) is not None:
            raise Failure(
                BAD_FLAGS,
                f"{name_or_dir} has another vocabulary than the model: token {token} is {tokenizer.token_string(token)!r}"
                f" there and {self.tokenizer.token_string(token)!r} here; two models must share it to be used together",
            )
        return model


class _NotYetLoaded:
    """Stands for a second model while the numbers beside it are checked."""

    config = next_logits = new_cache = None


def add_flags(groups: Mapping[str, Any]) -> None:
    """Adds every option of every strategy to the group of flags that it names; one that several have is one flag."""
    for name, by_strategy in strategy_options().items():
        option = next(iter(by_strategy.values()))
        add_flag(groups[str(option.group)], name, option, _help(name, by_strategy))


def add_strategy_choice(group: Any) -> None:
    """Adds the flag that names a strategy."""
    group.add_argument(
        "--strategy", choices=names(), metavar="NAME",
        help="one of those listed below; by default the flags decide: sampling flags and --num-return-sequences imply "
        "sample, --num-beams implies beam, both together beam-sample, --penalty-alpha contrastive, and so on; none implies greedy",
    )  # fmt: skip


def listed() -> str:
    """The strategies for the end of a command's help: a line for each."""
    return "\n".join(f"  {name:21}{_first_line(find(name))}" for name in names())


def _first_line(documented: object) -> str:
    return (documented.__doc__ or "").partition("\n")[0]


def strategy_options() -> dict[str, dict[str, Option]]:
    """Every option that has a flag, by its name; as the strategies have it, by theirs, the simplest first.

    Raises:
        TypeError: strategies that share a flag disagree on what its values are.
    """
    with_flags = [
        name for kind in map(find, names()) for name, option in options_of(kind).items() if option.group
    ]
    shared = {
        name: {name_of(kind): options_of(kind)[name] for kind in having(name)}
        for name in dict.fromkeys(with_flags)
    }
    for name, by_strategy in shared.items():
        if len({(option.kind, option.choices, option.group) for option in by_strategy.values()}) > 1:
            raise TypeError(
                f"{', '.join(by_strategy)} declare the option {name} differently: its kind, choices and group"
                " must be the same, for it is one flag"
            )
    return shared


def _help(name: str, by_strategy: dict[str, Option]) -> str:
    """The help of the strategy that the option implies, or the simplest, and how it differs for others."""
    usual = next(iter(by_strategy.values()))
    with suppress(InvalidRequest):  # it implies none without another
        usual = by_strategy.get(name_of(implied_by([name])), usual)
    texts = {usual.described: usual.described}
    for strategy, option in by_strategy.items():
        other = option.help != usual.help
        text = f"{strategy}: {option.described}" if other else f"default for {strategy}: {option.default}"
        texts.setdefault(option.described, text)
    return "; ".join(texts.values())


def chosen_strategy(args: argparse.Namespace) -> type[Strategy]:
    """The strategy that was named, or the one that the flags imply.

    A temperature of 0 is no sampling, whatever the other flags of sampling. A seed implies nothing, and is taken
    where nothing is sampled.

    Raises:
        Failure: no strategy has all the flags, or the one that was named has not, or a flag needs another one.
        InvalidRequest: the seed is out of its range.
    """
    given = {name for name in strategy_options() if getattr(args, name) is not None}
    if args.seed is not None:
        require_in_range(Seeded, seed=args.seed)  # also where it changes nothing
    if args.temperature == 0:
        given -= SAMPLING
    if args.strategy is None:
        try:
            chosen = implied_by(given)
        except InvalidRequest as error:
            raise Failure(BAD_FLAGS, f"{error}; see --help") from error
    elif args.strategy == "beam" and (given & SAMPLING) - {"seed"}:
        chosen = find("beam-sample")
    else:
        chosen = find(args.strategy)
    for name in sorted(given - options_of(chosen).keys() - {"seed"}):
        _refuse(name, chosen)
    _check_needs(given, options_of(chosen))
    return chosen


def samples(kind: type[Strategy], args: argparse.Namespace) -> bool:
    """Whether a strategy samples, given these flags: some do only if flags of sampling are given."""
    asked = any(getattr(args, name) is not None for name in SAMPLING - {"seed"})
    can = "seed" in options_of(kind) and args.temperature != 0
    return can and (asked or "do_sample" not in options_of(kind))


def _refuse(name: str, chosen: type[Strategy]) -> None:
    """Nothing that was asked for is left out in silence."""
    able = [name_of(kind) for kind in having(name)]
    raise Failure(
        BAD_FLAGS,
        f"{flag_of(name)} is not supported by {name_of(chosen)}, but by {', '.join(able)}: use --strategy {able[0]}, or"
        f" leave {flag_of(name)} out",
    )


def _check_needs(given: set[str], options: dict[str, Option]) -> None:
    for name in sorted(given & options.keys()):
        needed = options[name].needs
        if needed is not None and needed not in given:
            flag = flag_of(name)
            raise Failure(
                BAD_FLAGS, f"{flag} has no effect without {flag_of(needed)}: add it, or leave {flag} out"
            )


def build_strategy(kind: type[Strategy], args: argparse.Namespace, loaded: Loaded | None) -> Strategy:
    """The strategy from its flags; with nothing loaded yet, only to check the numbers.

    Raises:
        Failure: a flag that the strategy requires is missing, or a second model cannot be used.
        InvalidRequest: an option is out of its range.
    """
    return kind(**_values(kind, args, loaded))


def _values(kind: type[Strategy], args: argparse.Namespace, loaded: Loaded | None) -> dict[str, Any]:
    """The options that flags give."""
    values: dict[str, Any] = {}
    for name, option in options_of(kind).items():
        value = getattr(args, name, None)
        making = option.collect or option.resolve
        if value is None and option.required:
            raise Failure(BAD_FLAGS, f"{name_of(kind)} needs {flag_of(name)}: {option.help}")
        if value is not None and making and loaded:
            values[name] = making(value, loaded)
        elif value is not None and (option.required or not making):
            values[name] = _NotYetLoaded() if option.kind is MODEL else value
    if "do_sample" in options_of(kind):
        values["do_sample"] = samples(kind, args)
    return values


@dataclass(frozen=True)
class StrategyFlags:
    """The strategy that the flags ask for."""

    kind: type[Strategy]
    flags: argparse.Namespace

    @classmethod
    def of(cls, args: argparse.Namespace) -> StrategyFlags:
        """That of a command line; its numbers are checked, for which no model is needed.

        Raises:
            Failure: the flags do not go together, or one has a value that it cannot have.
        """
        chosen = cls(chosen_strategy(args), args)
        build_strategy(chosen.kind, args, loaded=None)
        return chosen

    @property
    def name(self) -> str:
        return name_of(self.kind)

    def build(self, model: ModelFlags, tokenizer: Tokenizer) -> Strategy:
        """The strategy, ready to decode; second models are loaded as the first one was."""
        return build_strategy(self.kind, self.flags, Loaded(model, tokenizer))
