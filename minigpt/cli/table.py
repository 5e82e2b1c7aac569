"""What a command that measures shows: a table, JSON, and a bar while it takes long."""

from __future__ import annotations

import io
import json
import math
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minigpt import cli

QUICK = 1.0  # seconds; work that takes less shows no progress bar


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as text: the first column to the left, the others to the right.

    >>> print(table([["", "loss"], ["story.txt", "3.2"]]), end="")
               loss
    story.txt   3.2
    """
    first, *others = ([*column] for column in zip(*rows, strict=True))
    left = [cell.ljust(max(map(len, first))) for cell in first]
    right = [[cell.rjust(max(map(len, column))) for cell in column] for column in others]
    return "".join("  ".join(line).rstrip() + "\n" for line in zip(left, *right, strict=True))


def json_line(facts: dict[str, Any]) -> str:
    r"""One object; a figure that is infinite or NaN is null.

    >>> json_line({"loss": 3.2, "perplexity": float("inf")})
    '{"loss": 3.2, "perplexity": null}\n'
    """
    known = {key: number(value) if isinstance(value, float) else value for key, value in facts.items()}
    return json.dumps(known, ensure_ascii=False) + "\n"


def cpu_name() -> str:
    """The processor, as the machine names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor()])[0]


def number(value: float) -> float | None:
    """JSON knows neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def late_bar(quiet: bool, **how: Any) -> Any:
    """A bar on a terminal's stderr that comes only if the work lasts, and is gone when it is done."""
    from minigpt.cli.progress import bar  # here, for `--help` need not wait for it

    screen = io.StringIO() if quiet else sys.stderr  # no bar is shown where there is no terminal
    return bar(delay=QUICK, leave=False, file=screen, **how)


class Progress:
    """A bar on a terminal's stderr while long work lasts, counted in tokens."""

    def __init__(self, n_tokens: int, quiet: bool) -> None:
        self._bar = late_bar(quiet, total=n_tokens, unit="tok", unit_scale=True)
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
        speed = f"{self._n_tokens:,} tokens at {self._n_tokens / self._seconds:,.0f} tok/s"
        return f"{speed}, peak memory {cli.peak_memory() / 1e6:.0f} MB"
