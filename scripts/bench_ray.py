"""Measures jobs of many prompts: two workers of Ray against two processes, and the memory of a long job.

    python scripts/bench_ray.py                             print the figures
    python scripts/bench_ray.py --update docs/scale.md      and put them into the file

The two sides take turns. Each is timed from the block that each of its processes ends first to its last block, so
that starting Python, Ray and the model does not count. What counts is the median of the ratios. For memory, a job of
many prompts of one new token each runs in one process, and its resident memory is read at each tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from pages import put

WORDS = ("king", "queen", "fox", "wolf", "miller", "witch", "giant", "princess", "old woman", "youngest son")
NEW_TOKENS, SHARD_ROWS = 64, 32
ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def write_prompts(file: Path, n: int) -> Path:
    rows = ({"prompt": f"Once upon a time the {WORDS[i % len(WORDS)]} met {i} soldiers"} for i in range(n))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def start(prompts: Path, out: Path, *flags: object) -> subprocess.Popen[bytes]:
    command = [
        "-m",
        "minigpt.generate",
        "--prompts",
        prompts,
        "--out",
        out,
        "--threads",
        1,
        "--quiet",
        *flags,
    ]
    return subprocess.Popen([sys.executable, *map(str, command)], env=os.environ | ALONE)


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    if any([process.wait() for process in processes]):
        raise SystemExit("a job failed")


def blocks(out: Path) -> list[tuple[float, int]]:
    """When each block ended, and how many tokens it has, in order."""
    records = [
        (file.stat().st_mtime, json.loads(file.read_text())) for file in (out / "_job").glob("block-*")
    ]
    return sorted((when, record["done"][-1]) for when, record in records)


def rate(ends: list[tuple[float, int]], n_processes: int) -> float:
    """Tokens a second from the time at which each process may have ended its first block."""
    begin = ends[n_processes - 1][0]
    return sum(tokens for _, tokens in ends[n_processes:]) / (ends[-1][0] - begin)


def by_processes(folder: Path, halves: Sequence[Path]) -> float:
    outs = [folder / "first", folder / "second"]
    flags = ("--max-new-tokens", NEW_TOKENS, "--shard-rows", SHARD_ROWS)
    finish([start(half, out, *flags) for half, out in zip(halves, outs, strict=True)])
    return sum(rate(blocks(out), 1) for out in outs)


def by_ray(folder: Path, whole: Path) -> float:
    flags = ("--max-new-tokens", NEW_TOKENS, "--shard-rows", SHARD_ROWS, "--ray", "--workers", 2)
    finish([start(whole, folder / "ray", *flags)])
    return rate(blocks(folder / "ray"), 2)


def compare(n_prompts: int, rounds: int) -> str:
    times = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            halves = [write_prompts(folder / f"{name}.jsonl", n_prompts // 2) for name in "ab"]
            whole = write_prompts(folder / "whole.jsonl", n_prompts)
            times.append((by_processes(folder, halves), by_ray(folder, whole)))
            print(f"processes {times[-1][0]:.0f} tok/s, Ray {times[-1][1]:.0f} tok/s", flush=True)
    processes, ray = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    return (
        "| | two workers of Ray, tokens/s | two processes of one thread, tokens/s | ratio, median of rounds (range) |\n"
        "|---|---|---|---|\n"
        f"| {n_prompts:,} prompts, {NEW_TOKENS} new tokens | {ray:.0f} | {processes:.0f} |"
        f" **{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) |\n"
    )


def memory(n_prompts: int) -> str:
    """The resident memory of a long job at each tenth."""
    with tempfile.TemporaryDirectory() as root:
        out = Path(root, "out")
        process = start(
            write_prompts(Path(root, "p.jsonl"), n_prompts), out, "--max-new-tokens", 1, "--shard-rows", 1000
        )
        began, seen = time.perf_counter(), []
        while process.poll() is None:
            done = 1000 * len([*(out / "_job").glob("block-*")])
            if done >= (len(seen) + 1) * n_prompts / 10:
                status = Path(f"/proc/{process.pid}/status").read_text()
                seen.append(1024 * int(status.partition("VmRSS:")[2].split()[0]) / 1e6)
                print(f"{done:,} prompts: {seen[-1]:.0f} MB", flush=True)
            time.sleep(0.05)
        finish([process])
        seconds = time.perf_counter() - began
    columns = [1, 5, len(seen)]
    return (
        f"| {n_prompts:,} prompts, one new token each, one process | "
        + " | ".join(f"after {n_prompts * i // 10:,}" for i in columns)
        + " | prompts/s |\n|---|---|---|---|---|\n| resident memory, MB | "
        + " | ".join(f"{seen[i - 1]:.0f}" for i in columns)
        + f" | {n_prompts / seconds:.0f} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=640, metavar="N", help="of the comparison")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=100_000, metavar="N", help="prompts of the long job")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the figures into this file")
    args = parser.parse_args()
    text = (
        f"{compare(args.prompts, args.rounds)}\n{memory(args.long)}\nbundled model, float32; {machine()}.\n"
    )
    print(text)
    if args.update:
        put(text, args.update, "bench of ray")


if __name__ == "__main__":
    main()
