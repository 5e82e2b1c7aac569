"""Measures speed against transformers, both in the same run and taking turns.

    python scripts/bench.py                       print the table
    python scripts/bench.py --update docs/benchmarks.md    and put it between the file's bench marks

Both sides have the same random weights at the shape of gpt2 (124M), float32, and must write the same tokens.
Machines are noisy, so each round runs both, one after the other, and what counts is the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import transformers
from pages import put
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt import GPT2
from minigpt.cli.machine import cpu_name
from minigpt.sampler import Beam, Greedy, Strategy, generate

Side = Callable[[list[list[int]], int], list[list[int]]]


def ours(model: GPT2, strategy: Strategy) -> Side:
    def side(prompts: list[list[int]], n_new: int) -> list[list[int]]:
        completions = generate(model, prompts, strategy, max_new_tokens=n_new, end_tokens=[])
        return [best.tokens for best, *_ in completions]

    return side


def theirs(model: GPT2LMHeadModel, **how: object) -> Side:
    def side(prompts: list[list[int]], n_new: int) -> list[list[int]]:
        tokens = torch.tensor(prompts)
        out = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, do_sample=False,
            eos_token_id=None, pad_token_id=0, **how,
        )  # fmt: skip
        return out[:, tokens.size(1) :].tolist()

    return side


def take_turns(
    rounds: int, a: Side, b: Side, prompts: list[list[int]], n_new: int
) -> list[tuple[float, float]]:
    """Seconds of both sides, round by round; who goes first alternates too."""
    if a(prompts, n_new) != b(prompts, n_new):  # also the warm-up
        print("note: the two sides do not write the same tokens")
    times = []
    for number in tqdm(range(rounds), leave=False):
        taken = {}
        for side in (a, b) if number % 2 else (b, a):
            start = time.perf_counter()
            side(prompts, n_new)
            taken[side] = time.perf_counter() - start
        times.append((taken[a], taken[b]))
    return times


def row(name: str, times: list[tuple[float, float]], n_tokens: int) -> str:
    mine, reference = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    return (
        f"| {name} | {n_tokens / mine:.1f} | {n_tokens / reference:.1f} | "
        f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
    )


def table(rounds: int) -> str:
    torch.manual_seed(0)
    reference = GPT2LMHeadModel(GPT2Config()).eval()
    with tempfile.TemporaryDirectory() as directory:
        reference.save_pretrained(directory)
        model = GPT2.from_pretrained(directory)
    chance = torch.Generator().manual_seed(0)

    def prompts(rows: int, length: int) -> list[list[int]]:
        return torch.randint(50257, (rows, length), generator=chance).tolist()

    cases = [
        ("greedy, 32 + 128 tokens", Greedy(), {}, prompts(1, 32), 128, 128, rounds),
        ("prompt of 1,024 tokens, 1 new", Greedy(), {}, prompts(1, 1024), 1, 1024, rounds),
        ("greedy, batch of 8, 32 + 64", Greedy(), {}, prompts(8, 32), 64, 512, max(3, rounds // 2)),
        ("5 beams, 32 + 60", Beam(width=5), {"num_beams": 5}, prompts(1, 32), 60, 60, max(3, rounds // 2)),
    ]
    lines = [
        "| | minigpt, tokens/s | transformers, tokens/s | ratio, median of rounds (range) |",
        "|---|---|---|---|",
    ]
    for name, strategy, how, texts, n_new, counted, n_rounds in cases:
        times = take_turns(n_rounds, ours(model, strategy), theirs(reference, **how), texts, n_new)
        lines.append(row(name, times, counted))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on, and when."""
    return (
        f"{torch.get_num_threads()} threads of {os.cpu_count()} cores ({cpu_name()}); torch {torch.__version__}, transformers"
        f" {transformers.__version__}, Python {platform.python_version()}; {date.today().isoformat()}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--update", type=Path, nargs="+", default=[], metavar="FILE", help="put the table into these pages"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    what = "gpt2's shape (124M, random weights), float32"
    text = f"{table(args.rounds)}\n\n{what}, {machine()}, by `make bench`.\n"
    print(text)
    for page in args.update:
        put(text, page, "bench")


if __name__ == "__main__":
    main()
