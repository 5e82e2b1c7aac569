"""What `minigpt compare` shows: tables for people and for pages, JSON for programs, a plot."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from minigpt.cli.machine import cpu_name, versions
from minigpt.cli.table import number, table
from minigpt.evaluation.diversity import Figures
from minigpt.json_files import counted
from minigpt.lazy import torch

if TYPE_CHECKING:
    from minigpt.model import GPT2

HUMAN = "human"
NAMES = 26  # characters; the widest that the column of names may be beside the texts


def _decimals(n: int) -> Callable[[float], str]:
    return lambda value: f"{value:,.{n}f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:,.1f}"


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {  # figure: its heading, how it is written
    "perplexity": ("perplexity", _decimals(2)),
    "judge_perplexity": ("judge's", _decimals(2)),
    "mauve": ("MAUVE", _decimals(3)),
    "distinct_1": ("distinct-1", _decimals(3)),
    "distinct_2": ("-2", _decimals(3)),
    "distinct_3": ("-3", _decimals(3)),
    "self_bleu": ("self-BLEU", _decimals(3)),
    "zipf": ("Zipf", _decimals(3)),
    "rep_4": ("rep-4", _percent),
    "loops": ("loops", _percent),
    "mean_tokens": ("tokens", _decimals(0)),
    "tokens_per_s": ("tok/s", _decimals(0)),
    "passes_per_token": ("passes/tok", _decimals(2)),
    "cache_bytes": ("cache MB", _megabytes),
}
JUDGED = "; judge's: under the evaluator model (--judge)"
LEGEND = (
    "distinct-1, -2, -3: unique / total n-grams of all texts. self-BLEU: higher is less diverse.",
    "Zipf: exponent of the tokens' frequencies by rank. rep-4: repeated 4-grams within a text.",
    "loops: texts that end in a phrase repeated 3 times. tokens: mean length. tok/s: new tokens per second.",
    "passes/tok: forward passes per generated token. cache MB: peak KV-cache size.",
)


@dataclass(frozen=True)
class Row:
    """One method, or the human, with its metrics and its texts."""

    name: str
    flags: str | None  # of `minigpt generate`; None for a human
    strategy: str | None
    figures: Figures
    texts: list[str]


@dataclass(frozen=True)
class Report:
    """All results: `facts` are settings, machine, versions and date."""

    facts: Mapping[str, Any]
    prompts: list[str]
    rows: list[Row]

    def metrics_table(self) -> str:
        """The metrics for a terminal."""
        return "\n".join([table(self._cells()), *self._notes(), ""])

    def markdown(self) -> str:
        """The metrics for a page, each method with its flags."""
        (heading, *lines), rule = self._cells(), "|---|---|" + "---:|" * (len(self._columns()))
        rows = [
            _markdown_row(
                [name, "" if row.flags is None else f"`{row.flags}`" if row.flags else "none", *cells]
            )
            for row, (name, *cells) in zip(self.rows, lines, strict=True)
        ]
        notes = [f"- {note}" for note in self._notes()]
        return "\n".join([_markdown_row(["", "flags", *heading[1:]]), rule, *rows, "", *notes, ""])

    def texts_table(self, width: int) -> str:
        """The texts of one prompt beside their methods, wrapped to so many characters."""
        widest = max((len(part) for row in self.rows for part in (row.name, row.flags or "")), default=0)
        left = min(NAMES, widest)
        return "\n".join("".join(_beside(row, left, max(20, width - left - 2))) for row in self.rows)

    def texts_markdown(self) -> str:
        """The texts of one prompt for a page."""
        lines = (
            _markdown_row(
                [row.name, f"`{row.flags}`" if row.flags else "none", " ".join(row.texts[0].split())]
            )
            for row in self.rows
        )
        return "\n".join([_markdown_row(["", "flags", "text"]), "|---|---|---|", *lines, ""])

    def json(self) -> str:
        """Everything as one object; a metric without a value is null."""
        known = [
            asdict(row) | {"figures": {k: number(v) for k, v in row.figures.items()}} for row in self.rows
        ]
        human = next((row for row in known if row["flags"] is None), None)
        methods = [row for row in known if row["flags"] is not None]
        whole = {**self.facts, "prompts": self.prompts, "human": human, "methods": methods}
        return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"

    def plot(self, path: Path) -> None:
        """A quality-diversity plot, as a PNG; a method of which one is not known is left out."""
        from minigpt.compare.plot import quality_and_diversity  # here, for matplotlib is an extra

        places = [(row, (row.figures["distinct_2"], row.figures["perplexity"])) for row in self.rows]
        known = [(row, place) for row, place in places if all(map(math.isfinite, place))]
        human = next((place for row, place in known if row.flags is None), None)
        methods = {row.name: place for row, place in known if row.flags is not None}
        quality_and_diversity(methods, human, path)

    def _columns(self) -> list[str]:
        return [name for name in COLUMNS if any(name in row.figures for row in self.rows)]

    def _cells(self) -> Iterator[list[str]]:
        """A heading, and a row a method."""
        columns = self._columns()
        yield ["", *(COLUMNS[name][0] for name in columns)]
        for row in self.rows:
            yield [row.name, *(_cell(name, row.figures.get(name, math.nan)) for name in columns)]

    def _notes(self) -> list[str]:
        """What the metrics mean, and how they were measured: prompts, settings, machine, versions, date."""
        given, machine, versions = self.facts["settings"], self.facts["machine"], self.facts["versions"]
        return [
            f"perplexity: under the generating model, given the prompt{JUDGED if given['judge'] else ''}.",
            *LEGEND,
            *self._notes_on_mauve(),
            f"{counted(len(self.prompts), 'prompts')} of {given['prompts'] or given['held_out']}, at most"
            f" {counted(given['max_new_tokens'], 'new tokens')}, seed {given['seed']}, batches of"
            f" {given['batch_size']}; model {given['model']}"
            + (f", judge {given['judge']}." if given["judge"] else "."),
            f"{machine['name']}, {machine['threads']} of {counted(machine['cores'], 'cores')}, {machine['dtype']};"
            f" minigpt {versions['minigpt']}, torch {versions['torch']}, Python {versions['python']};"
            f" {self.facts['date']}.",
        ]

    def _notes_on_mauve(self) -> Iterator[str]:
        if any("mauve" in row.figures for row in self.rows):
            yield (
                f"MAUVE: {counted(len(self.prompts), 'texts')} a side, features from the generating model's last hidden"
                " state (the paper: gpt2-large); unreliable below a few hundred texts."
            )
        elif find_spec("mauve") is None:
            yield "MAUVE: left out, its package is missing: pip install 'minigpt[compare]'."


def surroundings(model: GPT2) -> dict[str, Any]:
    """What the cost of a method depends on: machine, versions, date."""
    on_gpu = model.device.type == "cuda"
    return {
        "machine": {
            "name": torch.cuda.get_device_name() if on_gpu else cpu_name(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "dtype": str(model.position_embedding.weight.dtype).removeprefix("torch."),
        },
        "versions": versions(),
        "date": date.today().isoformat(),
    }


def _cell(name: str, value: float) -> str:
    return COLUMNS[name][1](value) if math.isfinite(value) else "–"


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _beside(row: Row, left: int, right: int) -> Iterator[str]:
    """Name and flags on the left, the text on the right."""
    label = [
        *wrap(row.name, left),
        *(wrap(row.flags or "", left, break_on_hyphens=False) if row.flags != row.name else []),
    ]
    lines = [part for line in row.texts[0].strip().splitlines() for part in wrap(line, right) or [""]]
    for name, line in zip_longest(label, lines, fillvalue=""):
        yield f"{name.ljust(left)}  {line}".rstrip() + "\n"
