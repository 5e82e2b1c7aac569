"""Figures for people and for programs: tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any


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


def left_table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as text, all columns to the left.

    >>> print(left_table([["token", "probability"], [" cat", "0.5"]]), end="")
    token  probability
     cat   0.5
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def json_line(facts: dict[str, Any]) -> str:
    r"""One object on one line; a figure that is infinite or NaN is null.

    >>> json_line({"loss": 3.2, "perplexity": float("inf")})
    '{"loss": 3.2, "perplexity": null}\n'
    """
    known = {key: number(value) if isinstance(value, float) else value for key, value in facts.items()}
    return json.dumps(known, ensure_ascii=False) + "\n"


def number(value: float) -> float | None:
    """The value, or None where JSON has no number for it: infinity and NaN."""
    return value if math.isfinite(value) else None
