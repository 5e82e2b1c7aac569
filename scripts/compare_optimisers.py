"""Muon against AdamW: the same shape, text and windows, at equal tokens and at equal time; each at its best rate.

    python scripts/compare_optimisers.py --corpus ../shared/corpus                                 the table
    python scripts/compare_optimisers.py --corpus ../shared/corpus --update docs/training.md       and put it there
    python scripts/compare_optimisers.py --corpus ../shared/corpus --device cuda --side-by-side 6 --longer 4e7

Runs that are there already are not repeated, but for one whose time was not measured to its end. They are judged by
documents held out of train.txt. Time is that of the processor, so that other work on the machine does not count. "Equal
time" is one more run of AdamW, at its best rate, with as many more steps as a step of Muon took longer. Side by side,
runs are compared at equal tokens alone; --longer adds one run of each optimiser, at its best rate, with more tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pages import markdown, put

from minigpt.training.settings import SHAPES

RATES = {"adamw": (1e-3, 2e-3, 4e-3), "muon": (2e-3, 4e-3, 8e-3)}
CONTEXTS = {"tiny": 256, "small": 512}
BATCH = 8
Job = tuple[str, float, int]  # optimiser, learning rate, steps


@dataclass(frozen=True)
class Result:
    """What one run came to."""

    optimizer: str
    lr: float
    steps: int
    bits_per_byte: float
    torch: str  # its version


def run(args: argparse.Namespace, job: Job) -> Result:
    """Trains once, or reads what an earlier run came to."""
    out = folder(args, job)
    optimizer, lr, steps = job
    if not is_finished(out, steps):
        flags = {
            "data": args.corpus / "train.txt", "val": 0.01, "out": out, "config": args.config, "optimizer": optimizer,
            "context": CONTEXTS[args.config], "batch-size": BATCH, "lr": lr, "steps": steps, "beta2": 0.95,
            "dtype": "bfloat16", "threads": 1, "eval-every": steps, "checkpoint-every": steps, "token-cache": args.token_cache,
            "device": args.device,
        }  # fmt: skip
        words = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
        subprocess.run([sys.executable, "-m", "minigpt.train", "--resume", *words], check=True)
    last = metrics(out)[-1]
    known = json.loads((out / "run.json").read_text())
    return Result(optimizer, lr, steps, last["val_bits_per_byte"], known["versions"]["torch"])


def is_finished(out: Path, steps: int) -> bool:
    """Whether a run has come to its last step."""
    return (out / "metrics.jsonl").exists() and metrics(out)[-1]["step"] == steps


def metrics(out: Path) -> list[dict[str, Any]]:
    """What a run has written of each step."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def processor_seconds(args: argparse.Namespace, job: Job) -> float:
    """Of a step, with nothing beside it that this process started; kept in the run's folder."""
    cost = folder(args, job) / "cpu_seconds.txt"
    if not cost.exists():
        # of a run that was stopped, only the rest would be measured
        shutil.rmtree(cost.parent, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(args, job)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost.write_text(str(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return float(cost.read_text()) / job[2]


def folder(args: argparse.Namespace, job: Job) -> Path:
    """Where a run is kept."""
    optimizer, lr, steps = job
    return Path(args.work) / f"{args.config}-{optimizer}-{lr:g}-{steps}"


def best(results: Iterable[Result], optimizer: str) -> Result:
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


def jobs(args: argparse.Namespace) -> list[Job]:
    """Every optimiser at each of its rates, at equal tokens."""
    steps = round(args.tokens / window(args))
    return [(name, lr, steps) for name, rates in RATES.items() for lr in rates]


def window(args: argparse.Namespace) -> int:
    """The tokens of a step."""
    return BATCH * CONTEXTS[args.config]


def at_equal_time(args: argparse.Namespace) -> str:
    """The table and what it says, of runs one after the other."""
    seconds = {job: processor_seconds(args, job) for job in jobs(args)}
    results = {run(args, job): cost for job, cost in seconds.items()}
    adamw, muon = best(results, "adamw"), best(results, "muon")
    longer = ("adamw", adamw.lr, round(adamw.steps * max(1.0, results[muon] / results[adamw])))
    cost = processor_seconds(args, longer)
    more = run(args, longer)
    results[more] = cost
    rows = (
        [r.optimizer, f"{r.lr:g}", f"{r.steps * window(args) / 1e6:.2f} M", f"{took * 1e3:,.0f} ms", f"{r.bits_per_byte:.3f}"]
        for r, took in results.items()
    )  # fmt: skip
    table = markdown(["optimiser", "learning rate", "tokens", "processor time a step", "bits per byte"], rows)
    return f"""{introduction(args, adamw.steps)}

{table}

{verdict(adamw, muon)} at equal tokens, and {more.bits_per_byte - muon.bits_per_byte:.3f} at equal processor time (a step takes {results[muon] / results[adamw] - 1:.0%} longer)."""


def at_equal_tokens(args: argparse.Namespace) -> str:
    """The table and what it says, of runs side by side, and of a longer one of each optimiser."""
    with ThreadPoolExecutor(args.side_by_side) as pool:
        results = list(pool.map(lambda job: run(args, job), jobs(args)))
        adamw, muon = best(results, "adamw"), best(results, "muon")
        steps = round(args.longer / window(args))
        longer = list(
            pool.map(lambda job: run(args, job), [(r.optimizer, r.lr, steps) for r in (adamw, muon)])
        )
    rows = (
        [r.optimizer, f"{r.lr:g}", f"{r.steps * window(args) / 1e6:.1f} M", f"{r.bits_per_byte:.3f}"]
        for r in (*results, *longer)
    )
    table = markdown(["optimiser", "learning rate", "tokens", "bits per byte"], rows)
    return f"""{introduction(args, adamw.steps)} Torch {adamw.torch}, {date.today()}.

{table}

{verdict(adamw, muon)}; after {longer[0].steps * window(args) / 1e6:.0f} M tokens at these rates, {longer[0].bits_per_byte - longer[1].bits_per_byte:.3f}."""


def introduction(args: argparse.Namespace, steps: int) -> str:
    """What all runs have in common."""
    shape = SHAPES[args.config]
    return (
        f"{shape.n_layer} layers, {shape.n_head} heads, width {shape.n_embd}, context {CONTEXTS[args.config]}; "
        f"{steps:,} steps of {window(args):,} tokens; cosine schedule; AdamW beside Muon at half its learning rate; judged "
        "by 1% of the documents of train.txt, which were held out."
    )


def verdict(adamw: Result, muon: Result) -> str:
    """The difference between the best of both."""
    return (
        f"Each at its best learning rate (AdamW {rate(adamw)}, Muon {rate(muon)}), Muon is "
        f"{adamw.bits_per_byte - muon.bits_per_byte:.3f} bits per byte below AdamW"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER", help="where train.txt is")
    parser.add_argument("--work", type=Path, default=Path("build/optimisers"), help="where the runs go")
    parser.add_argument("--token-cache", type=Path, default=Path("build/tokens"), metavar="FOLDER")
    parser.add_argument("--config", choices=CONTEXTS, default="small", help="the shape (default: small)")
    parser.add_argument("--tokens", type=float, default=4e6, help="of each run (default: 4e6)")
    parser.add_argument("--device", default="cpu", help="where they run (default: cpu)")
    parser.add_argument(
        "--side-by-side",
        type=int,
        default=1,
        metavar="N",
        help="runs at once; their time is then not compared",
    )
    parser.add_argument(
        "--longer",
        type=float,
        default=4e7,
        metavar="TOKENS",
        help="side by side: of one more run of each (default: 4e7)",
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this file")
    args = parser.parse_args()
    text, mark = (
        (at_equal_time(args), "optimisers")
        if args.side_by_side == 1
        else (at_equal_tokens(args), "optimisers at equal tokens")
    )
    print(text)
    if args.update:
        put(text, args.update, mark)


if __name__ == "__main__":
    main()
