"""A strategy's fields as command-line flags, so that a new strategy needs no code of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.model_flags import ModelFlags
from minigpt.sampler.options import REQUIRED
from minigpt.sampler.registry import find, name_of, names
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Loaded:
    """What options may ask for: the tokenizer of the model in use, and other models beside it."""

    wanted: ModelFlags
    tokenizer: Tokenizer

    def other_model(self, name_or_dir: str) -> GPT2:
        """A second model, where the first one is; its tokens must mean the same."""
        model, tokenizer = self.wanted.load_beside(name_or_dir)
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


def add_flags(groups: Mapping[str, Any]) -> None:
    """Adds every option of every strategy to the group of flags that it names."""
    for flag, option in strategy_flags().items():
        how: dict[str, Any] = {"dest": option.name, "help": option.metadata["help"], "default": None}
        if option.metadata["parse"] is bool:
            how["action"] = "store_true"
        else:
            how |= {"type": _reader(option), "metavar": option.metadata["metavar"]}
            how["action"] = "append" if option.metadata["collect"] else "store"
        groups[option.metadata["group"]].add_argument(flag, **how)


def _reader(option: Field[Any]) -> Callable[[str], Any]:
    """Reads an option's value from the command line, and says what it takes if it cannot."""
    parse = option.metadata["parse"]
    wanted = {int: "a whole number", float: "a number"}.get(parse, option.metadata["metavar"])

    def read(text: str) -> Any:
        try:
            return parse(text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None

    return read


def strategy_flags() -> dict[str, Any]:
    """Every option of every strategy, by its flag; an option that several share is one flag."""
    return {_flag(option): option for name in names() for option in fields(find(name)) if option.metadata}


def _flag(option: Field[Any]) -> str:
    return f"--{option.metadata['flag'] or option.name.replace('_', '-')}"


def _required(option: Field[Any]) -> bool:
    return option.default is REQUIRED and option.default_factory is REQUIRED


def chosen_strategy(args: argparse.Namespace) -> type[Strategy]:
    """The strategy that was named, or the simplest that the flags imply."""
    flags = strategy_flags()
    given = {option.name: flag for flag, option in flags.items() if getattr(args, option.name) is not None}
    strategies = [find(name) for name in names()]
    implying = frozenset().union(*(strategy.implied_by for strategy in strategies)) & given.keys()
    if args.strategy is None and not implying:
        chosen = find("greedy")
    elif args.strategy is None:
        able = [strategy for strategy in strategies if implying <= strategy.implied_by]
        if not able:
            together = " and ".join(sorted(given[name] for name in implying))
            raise Failure(BAD_FLAGS, f"no strategy knows {together} together: leave one out; see --help")
        chosen = min(able, key=lambda strategy: len(strategy.implied_by))
    elif args.strategy == "beam" and implying & find("sample").implied_by:
        chosen = find("beam-sample")
    else:
        chosen = find(args.strategy)
    for flag in given.values():
        _refuse_meaningless(flag, flags, set(given), chosen)
    return chosen


def _refuse_meaningless(flag: str, flags: dict[str, Any], given: set[str], chosen: type[Strategy]) -> None:
    """Nothing that was asked for is left out in silence."""
    name, needed = flags[flag].name, flags[flag].metadata["needs"]
    if needed is not None and needed not in given:
        other = next(other for other, option in flags.items() if option.name == needed)
        raise Failure(BAD_FLAGS, f"{flag} has no meaning without {other}: add it, or leave {flag} out")
    having = [kind for kind in map(find, names()) if name in {option.name for option in fields(kind)}]
    if chosen not in having:
        having.sort(key=lambda kind: len(kind.implied_by))  # the simplest first
        raise Failure(
            BAD_FLAGS,
            f"{flag} has no meaning for {name_of(chosen)}; it belongs to {', '.join(map(name_of, having))}:"
            f" use --strategy {name_of(having[0])}, or leave it out",
        )


def build_strategy(kind: type[Strategy], args: argparse.Namespace, loaded: Loaded | None) -> Strategy:
    """The strategy from its flags; with nothing loaded yet, only to check the numbers."""
    values = {}
    try:
        for option in fields(kind):
            value = getattr(args, option.name, None) if option.metadata else None
            making = option.metadata.get("collect") or option.metadata.get("resolve")
            if value is None and _required(option):
                raise Failure(BAD_FLAGS, f"{name_of(kind)} needs {_flag(option)}: {option.metadata['help']}")
            if value is not None and making and loaded:
                values[option.name] = making(value, loaded)
            elif value is not None and (not making or _required(option)):
                values[option.name] = value
        return kind(**values)
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
