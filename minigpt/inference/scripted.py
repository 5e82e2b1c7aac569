"""Functions that TorchScript's interpreter runs in Python's place: the same operations in the same order, called sooner.

Beside large weights, which drive all else out of the processor's caches, an operation called from Python waits for the
code of Python and of torch's bindings to come back from memory: for 10 µs where it computes for 2. TorchScript's
interpreter is small, and calls the same operations, so that the result is the same to the bit.

Such a function is written in the part of Python that TorchScript knows: tensors, numbers, strings, lists, named tuples;
no names of the module but functions and types, so a constant comes as the default of an argument. The functions that it
calls are compiled with it. torch no longer develops TorchScript: where it cannot compile, Python runs the function.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def run(function: Callable[..., Any], *args: object) -> Any:
    """`function(*args)` by TorchScript's interpreter, for which it is compiled the first time."""
    # Nothing is optimised: that takes 0.1 s, and would be for kernels of its own making.
    with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        return compiled(function)(*args)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as TorchScript, or as it is where torch cannot compile it."""
    with warnings.catch_warnings():  # of deprecation, each time
        warnings.simplefilter("ignore")
        try:
            script: Callable[..., Any] = torch.jit.script(function)
        except Exception:  # Python can do whatever TorchScript, of this torch and on this machine, cannot
            return function
    return script
