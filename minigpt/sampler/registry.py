"""Which strategies there are: one file in `strategies/` is one strategy, and the file's name is its name."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules
from types import ModuleType

from minigpt.sampler import strategies
from minigpt.sampler.strategy import Strategy


def names() -> list[str]:
    """The strategies, by the names that the command line uses.

    >>> {"beam", "beam-sample", "greedy"} <= set(names())
    True
    """
    files = (module.name for module in iter_modules(strategies.__path__))
    return sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


@cache
def find(name: str) -> type[Strategy]:
    """The strategy of that name: the one subclass of `Strategy` that its file defines.

    Raises:
        ValueError: there is no strategy of that name.
        TypeError: its file defines no strategy, or several.

    >>> find("beam-sample").__name__
    'BeamSample'
    """
    if name not in names():
        raise ValueError(f"there is no strategy {name!r}; there are {', '.join(names())}")
    return only_strategy(import_module(f"{strategies.__name__}.{name.replace('-', '_')}"))


def name_of(strategy: type[Strategy]) -> str:
    """The name under which `find` finds it."""
    return strategy.__module__.rpartition(".")[2].replace("_", "-")


def only_strategy(module: ModuleType) -> type[Strategy]:
    """The one concrete strategy that a module defines itself; what it imports does not count."""
    defined = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Strategy)
        and value.__module__ == module.__name__
        and not isabstract(value)
    ]
    if len(defined) != 1:
        listed = ", ".join(strategy.__name__ for strategy in defined) or "none"
        raise TypeError(
            f"{module.__file__} must define exactly one strategy (a concrete subclass of Strategy), and defines {listed};"
            " helpers belong into minigpt/sampler/engine"
        )
    return defined[0]
