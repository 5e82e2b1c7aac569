"""Muon against AdamW: the same shape, text and windows, at equal tokens and at equal time; each at its best rate.

    python scripts/compare_optimisers.py --corpus ../shared/corpus                                 the table
    python scripts/compare_optimisers.py --corpus ../shared/corpus --update docs/training.md       and put it there

Runs that are there already are not repeated. They are judged by documents held out of train.txt. Time is that of the
processor, so that other work on the machine does not count. "Equal time" is one more run of AdamW, at its best rate,
with as many more steps as a step of Muon took longer.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pages import put

from minigpt.training.settings import SHAPES

MARK = "optimisers"
RATES = {"adamw": (1e-3, 2e-3, 4e-3), "muon": (2e-3, 4e-3, 8e-3)}
CONTEXTS = {"tiny": 256, "small": 512}
BATCH = 8


@dataclass(frozen=True)
class Result:
    """What one run came to."""

    optimizer: str
    lr: float
    steps: int
    seconds: float  # of the processor, a step
    bits_per_byte: float


def run(args: argparse.Namespace, optimizer: str, lr: float, steps: int) -> Result:
    """Trains once, or reads what an earlier run came to."""
    out = args.work / f"{args.config}-{optimizer}-{lr:g}-{steps}"
    cost = out / "cpu_seconds.txt"
    if not cost.exists():
        flags = {
            "data": args.corpus / "train.txt", "val": 0.01, "out": out, "config": args.config, "optimizer": optimizer,
            "context": CONTEXTS[args.config], "batch-size": BATCH, "lr": lr, "steps": steps, "beta2": 0.95,
            "dtype": "bfloat16", "threads": 1, "eval-every": steps, "checkpoint-every": steps, "token-cache": args.token_cache,
        }  # fmt: skip
        command = [sys.executable, "-m", "minigpt.train"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            command + [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)],
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost.write_text(str(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return Result(optimizer, lr, steps, float(cost.read_text()) / steps, last["val_bits_per_byte"])


def table(results: list[Result], window: int) -> str:
    """One run a line."""
    head = "| optimiser | learning rate | tokens | processor time a step | bits per byte |\n|---|---|---|---|---|"
    rows = (
        f"| {r.optimizer} | {r.lr:g} | {r.steps * window / 1e6:.2f} M | {r.seconds * 1e3:,.0f} ms | {r.bits_per_byte:.3f} |"
        for r in results
    )
    return "\n".join([head, *rows])


def best(results: list[Result], optimizer: str) -> Result:
    """The run of an optimiser that predicts best."""
    return min((r for r in results if r.optimizer == optimizer), key=lambda r: r.bits_per_byte)


def rate(result: Result) -> str:
    """A learning rate, and whether a better one may lie beyond it."""
    rates = RATES[result.optimizer]
    edge = (
        ", the highest tried"
        if result.lr == max(rates)
        else ", the lowest tried"
        if result.lr == min(rates)
        else ""
    )
    return f"{result.lr:g}{edge}"


def section(args: argparse.Namespace) -> str:
    """The table and what it says."""
    window = BATCH * CONTEXTS[args.config]
    steps = round(args.tokens / window)
    results = [run(args, name, lr, steps) for name, rates in RATES.items() for lr in rates]
    adamw, muon = best(results, "adamw"), best(results, "muon")
    longer = run(args, "adamw", adamw.lr, round(steps * max(1.0, muon.seconds / adamw.seconds)))
    shape = SHAPES[args.config]
    return f"""{shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embd}, context {CONTEXTS[args.config]}; {steps:,} steps of {window:,} tokens; cosine schedule; AdamW beside Muon at half its learning rate; judged by 1% of the documents of train.txt, which were held out.

{table([*results, longer], window)}

Each at its best learning rate (AdamW {rate(adamw)}, Muon {rate(muon)}), Muon is {adamw.bits_per_byte - muon.bits_per_byte:.3f} bits per byte below AdamW at equal tokens, and {longer.bits_per_byte - muon.bits_per_byte:.3f} at equal processor time (a step takes {muon.seconds / adamw.seconds - 1:.0%} longer)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER", help="where train.txt is")
    parser.add_argument("--work", type=Path, default=Path("build/optimisers"), help="where the runs go")
    parser.add_argument("--token-cache", type=Path, default=Path("build/tokens"), metavar="FOLDER")
    parser.add_argument("--config", choices=CONTEXTS, default="small", help="the shape (default: small)")
    parser.add_argument("--tokens", type=float, default=4e6, help="of each run (default: 4e6)")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this file")
    args = parser.parse_args()
    text = section(args)
    print(text)
    if args.update:
        put(text, args.update, MARK)


if __name__ == "__main__":
    main()
