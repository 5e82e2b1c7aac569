"""torch, imported when it is first used: files can name it at their top, and `--help` need not wait for it.

    from minigpt.lazy import torch

Importing torch takes seconds; the command line reads every strategy's file to answer `--help`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["torch"]


class _Lazy(ModuleType):
    """Stands for a module until one of its attributes is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


if TYPE_CHECKING:
    import torch
else:
    torch = _Lazy("torch")
