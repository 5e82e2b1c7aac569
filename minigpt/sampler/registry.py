"""Which strategies there are: one file in `strategies/` is one strategy, and the file's name is its name."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from types import ModuleType

from minigpt.errors import InvalidRequest
from minigpt.options import flag_of, options_of
from minigpt.sampler import strategies
from minigpt.sampler.strategy import Strategy


@cache
def names() -> tuple[str, ...]:
    """The strategies, by the names that the command line uses.

    Raises:
        InvalidRequest: a file's name is none that Python can import.

    >>> {"beam", "beam-sample", "greedy"} <= set(names())
    True
    """
    files = [module.name for module in iter_modules(strategies.__path__)]
    for name in files:
        if not name.isidentifier():
            module = re.sub(r"\W", "_", name)
            raise InvalidRequest(
                f"{name}.py: write {module}.py, which --strategy {module.replace('_', '-')} names"
            )
    return tuple(sorted(name.replace("_", "-") for name in files if not name.startswith("_")))


@cache
def find(name: str) -> type[Strategy]:
    """The strategy of that name: the one subclass of `Strategy` that its file defines.

    Raises:
        InvalidRequest: there is no strategy of that name, or its file defines none, or several.

    >>> find("beam-sample").__name__
    'BeamSample'
    """
    if name not in names():
        raise InvalidRequest(f"there is no strategy {name!r}; there are {', '.join(names())}")
    return only_strategy(import_module(f"{strategies.__name__}.{name.replace('-', '_')}"))


def name_of(strategy: type[Strategy]) -> str:
    """The name under which `find` finds it."""
    return strategy.__module__.rpartition(".")[2].replace("_", "-")


def own_options(strategy: type[Strategy]) -> frozenset[str]:
    """The options that not every strategy has."""
    return frozenset(options_of(strategy)) - frozenset(options_of(Strategy))


def having(option: str) -> list[type[Strategy]]:
    """The strategies that have an option, the simplest first."""
    every = [find(name) for name in names()]
    return sorted(
        (kind for kind in every if option in options_of(kind)), key=lambda kind: len(own_options(kind))
    )


def implied_by(given: Collection[str]) -> type[Strategy]:
    """The strategy that options imply by themselves: greedy, if every strategy has them.

    It is the one that has them all and of which the fewest characteristic options were left out, those that
    no unrelated strategy has (so `top_k` alone is not contrastive search, which is about `penalty_alpha`);
    among equals the one with the fewest options. A seed implies nothing.

    Raises:
        InvalidRequest: no strategy has all of them.

    >>> [name_of(implied_by(given)) for given in (["seed"], ["top_k"], ["top_k", "penalty_alpha"])]
    ['greedy', 'sample', 'contrastive']
    """
    wanted = frozenset(given) - frozenset(options_of(Strategy)) - {"seed"}
    if not wanted:
        return find("greedy")
    able = [
        kind for kind in map(find, names()) if wanted <= own_options(kind) and _could_be_meant(kind, wanted)
    ]
    if not able:
        raise InvalidRequest(_why_none(wanted))
    return min(able, key=lambda kind: (len(_characteristic(kind) - wanted), len(own_options(kind))))


def _why_none(given: frozenset[str]) -> str:
    flags = " and ".join(map(flag_of, sorted(given)))
    able = [kind for kind in map(find, names()) if given <= own_options(kind)]
    missing = sorted(
        {flag_of(name) for kind in able for name in options_of(kind) if options_of(kind)[name].required}
    )
    if missing:
        return f"{flags} has no effect without {' or '.join(missing)}: add it, or leave {flags} out"
    return f"{flags} cannot be combined: no strategy has them all; leave one out"


def _could_be_meant(kind: type[Strategy], given: frozenset[str]) -> bool:
    """Whether nothing is missing, and the strategy adds an option to what it is derived from."""
    options = options_of(kind)
    missing = {name for name, option in options.items() if option.required} - given
    bases = [options_of(base) for base in kind.__bases__ if issubclass(base, Strategy)]
    return not missing and all(options.keys() > base.keys() for base in bases)


@cache
def _characteristic(kind: type[Strategy]) -> frozenset[str]:
    """The options that no unrelated strategy has."""
    every = [find(name) for name in names()]
    roots = [root for root in every if issubclass(kind, root)]
    unrelated = [other for other in every if not issubclass(other, tuple(roots))]
    return own_options(kind).difference(*map(own_options, unrelated))


def only_strategy(module: ModuleType) -> type[Strategy]:
    """The one concrete strategy that a module defines itself; what it imports does not count."""
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Strategy) and value.__module__ == module.__name__
    ]
    defined = [kind for kind in own if not isabstract(kind)]
    if own and not defined:
        methods = " and ".join(f"{name}()" for name in sorted(own[-1].__abstractmethods__))
        raise InvalidRequest(
            f"{module.__file__}: {own[-1].__name__} lacks {methods}, which a strategy must define"
        )
    if len(defined) != 1:
        listed = ", ".join(strategy.__name__ for strategy in defined) or "none"
        raise InvalidRequest(
            f"{module.__file__} must define exactly one strategy (a concrete subclass of Strategy), and defines {listed};"
            " helpers belong into minigpt/sampler/engine"
        )
    return defined[0]
