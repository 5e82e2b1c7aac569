"""Progress bars for long work: on a terminal and in a notebook, and nothing where stderr goes to a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from minigpt.cli.machine import peak_memory
from minigpt.json_files import counted
from minigpt.lazy import hub_tqdm

QUICK = 1.0  # seconds; work that takes less shows no progress bar


def bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar, around something to go through, or to be moved by `update`.

    It is that of the hub's client: one switch (HF_HUB_DISABLE_PROGRESS_BARS, or `disable_progress_bars`) governs
    its downloads and our own work. `cli.run` switches it off for --quiet.

    >>> list(bar(range(3)))  # no terminal, no bar
    [0, 1, 2]
    """
    disable = False if in_notebook() else None  # None: shown only on a terminal
    return hub_tqdm.tqdm(iterable, disable=disable, name="minigpt", **options)  # type: ignore[no-untyped-call]


def in_notebook() -> bool:
    """Whether this process runs a notebook's cells: their output is no terminal, and yet shows bars.

    >>> in_notebook()
    False
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def late_bar(**options: Any) -> Any:
    """A bar on a terminal's stderr that comes only if the work lasts, and is gone when it is done."""
    return bar(delay=QUICK, leave=False, **options)


class Progress:
    """A bar on a terminal's stderr while long work lasts, counted in tokens."""

    def __init__(self, n_tokens: int) -> None:
        self._bar = late_bar(total=n_tokens, unit="tok", unit_scale=True)
        self._n_tokens, self._began = n_tokens, time.perf_counter()

    def advance(self, n_tokens: int) -> None:
        self._bar.update(n_tokens)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        self._seconds = time.perf_counter() - self._began

    def summary(self) -> str:
        """What was done, once it is done: tokens, speed, memory."""
        speed = f"{counted(self._n_tokens, 'tokens')} at {self._n_tokens / self._seconds:,.0f} tok/s"
        return f"{speed}, peak memory {peak_memory() / 1e6:.0f} MB"
