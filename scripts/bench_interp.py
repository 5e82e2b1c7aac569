"""Measures what recording costs: one forward pass with it against one without, interleaved.

python scripts/bench_interp.py                                       print the table
python scripts/bench_interp.py --update docs/interpretability.md     and put it, and the table of points, into the page
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from bench import machine
from pages import put

import minigpt
from minigpt import GPT2, GPT2Config
from minigpt.interp import points, record

Watch = Callable[[GPT2], AbstractContextManager[object]]
RECORDED: dict[str, Watch] = {
    "nothing": lambda model: nullcontext(),
    "the stream after each layer": lambda model: record(model, "blocks.*.resid_post"),
    "all patterns": lambda model: record(model, "blocks.*.attn.pattern"),
    "all patterns, reduced to the first token's share": lambda model: record(
        model, "blocks.*.attn.pattern", take=lambda pattern: pattern[..., 0]
    ),
}
LENGTHS = (256, 1024)


def ratio(model: GPT2, n_tokens: int, watch: Watch, rounds: int) -> float:
    """The median over rounds of (time while recording) / (time alone)."""
    tokens = torch.randint(model.config.vocab_size, (1, n_tokens), generator=torch.Generator().manual_seed(0))

    def seconds(how: Watch) -> float:
        began = time.perf_counter()
        with how(model):
            model(tokens)
        return time.perf_counter() - began

    with torch.no_grad():
        seconds(watch), seconds(RECORDED["nothing"])
        pairs = []
        for i in range(rounds):
            if i % 2:
                watched, alone = seconds(watch), seconds(RECORDED["nothing"])
            else:
                alone, watched = seconds(RECORDED["nothing"]), seconds(watch)
            pairs.append(watched / alone)
    return statistics.median(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--update", type=Path, metavar="PAGE")
    args = parser.parse_args()
    bundled, _ = minigpt.load()
    torch.manual_seed(0)
    models = {"bundled": bundled, "gpt2's shape": GPT2(GPT2Config()).eval()}
    columns = [(name, n) for name, model in models.items() for n in LENGTHS if n <= model.config.n_positions]
    lines = ["| recorded | " + " | ".join(f"{name}, {n} tokens" for name, n in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for label, watch in RECORDED.items():
        cells = [f"{ratio(models[name], n, watch, args.rounds):.2f}" for name, n in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    table = "\n".join([*lines, "", machine()])
    print(table)
    if args.update:
        put(table, args.update, "interp")
        put(points.table(), args.update, "points")


if __name__ == "__main__":
    main()
