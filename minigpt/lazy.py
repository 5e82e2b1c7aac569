"""Slow libraries, imported when first used: files can name them at their top, and `--help` need not wait.

    from minigpt.lazy import Tensor, torch

Importing torch takes seconds; the command line reads every strategy's file to answer `--help`. `hub_constants`,
`hub_errors` and `hub_tqdm` are modules of the Hugging Face hub's client. Those of `arrow`, `fsspec` and `ray` are optional:
who uses them asks before whether they are there. Our own packages import their public names in the same way, by
`imported_when_used`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from importlib import import_module
from threading import current_thread, main_thread
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

__all__ = [
    "NamesElsewhere", "Tensor", "arrow", "arrow_fs", "arrow_parquet", "fsspec", "fsspec_arrow", "hub_constants", "hub_errors", "hub_tqdm",
    "huggingface_hub", "imported_when_used", "numpy", "ray", "ray_data", "torch",
]  # fmt: skip
# Packages whose public names are quickly known.
EXPORTERS = ("minigpt", "minigpt.sampler", "minigpt.training")


class _Lazy:
    """Stands for a module until one of its attributes is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == "__wrapped__":  # which doctest asks of everything that a file names
            raise AttributeError(name)
        return getattr(self._module, name)

    @cached_property  # for it is asked for at every token
    def _module(self) -> ModuleType:
        return _imported_whole(self._name)


def imported_when_used(
    package: str,
    homes: Mapping[str, str],
    packages: Collection[str] = (),
    commands: Mapping[str, str] | None = None,
) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names are imported when they are first asked for.

    Args:
        package: the package's `__name__`.
        homes: the module below the package that each name comes from.
        packages: those below this one that are attributes of it, too.
        commands: modules below it that one may take for functions, and what to write in Python.

    Source: PEP 562.
    """

    def find(name: str) -> Any:
        if name in homes:
            return getattr(_imported_whole(f"{package}.{homes[name]}"), name)
        if name in packages:
            return _imported_whole(f"{package}.{name}")
        if commands and name in commands:
            module = import_module(f"{package}.{name}")
            module.__class__, module.__dict__["in_python"] = _Command, commands[name]
            return module
        raise AttributeError(f"module {package!r} has no attribute {name!r}{_where(name)}")

    return find


class _Command(ModuleType):
    """The module of a command, which answers who calls it."""

    in_python: str

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{self.__name__} is the command; in Python: {self.in_python}")


class NamesElsewhere:
    """The last of `sys.meta_path`: where a name is that `from PACKAGE import NAME` looks for in another of our packages.

    It finds no modules. Of a package that has not the name, Python asks finders for a module; `__getattr__` cannot answer.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ImportError for a public name of ours; the arguments are those of every finder."""
        package, _, wanted = name.rpartition(".")
        if package in EXPORTERS and (where := _where(wanted)):
            raise ImportError(f"cannot import name {wanted!r} from {package!r}{where}", name=package)


def _where(name: str) -> str:
    """Where a public name is, for the end of a message; nothing if there is none of that name."""
    packages = (package for package in EXPORTERS if name in import_module(package).__all__)
    package = next(packages, None)
    return f": it is {package}.{name}" if package else ""


def _imported_whole(name: str) -> ModuleType:
    """A module, imported to its end: Ctrl-C waits for that, because torch does not survive an import in halves."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is None:
        return import_module(name)  # signals come to the main thread, or are not Python's to handle
    pressed: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        return import_module(name)
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


if TYPE_CHECKING:
    import fsspec
    import fsspec.implementations.arrow as fsspec_arrow
    import huggingface_hub
    import huggingface_hub.constants as hub_constants
    import huggingface_hub.errors as hub_errors
    import huggingface_hub.utils.tqdm as hub_tqdm
    import numpy
    import pyarrow as arrow
    import pyarrow.fs as arrow_fs
    import pyarrow.parquet as arrow_parquet
    import ray
    import ray.data as ray_data
    import torch
    from torch import Tensor
else:
    huggingface_hub = _Lazy("huggingface_hub")
    hub_constants = _Lazy("huggingface_hub.constants")
    hub_errors = _Lazy("huggingface_hub.errors")
    hub_tqdm = _Lazy("huggingface_hub.utils.tqdm")
    numpy = _Lazy("numpy")
    torch = _Lazy("torch")
    arrow = _Lazy("pyarrow")
    arrow_fs = _Lazy("pyarrow.fs")
    arrow_parquet = _Lazy("pyarrow.parquet")
    fsspec = _Lazy("fsspec")
    fsspec_arrow = _Lazy("fsspec.implementations.arrow")
    ray = _Lazy("ray")
    ray_data = _Lazy("ray.data")
    Tensor = "torch.Tensor"  # for annotations alone; `torch.Tensor` is the class
