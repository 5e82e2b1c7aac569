"""Measures jobs of many prompts: two workers of Ray against two processes, and the memory of a long job.

    python scripts/bench_ray.py                             print the figures
    python scripts/bench_ray.py --update docs/scale.md      and put them into the file

The two workers and the two processes decode at the same time, so that whatever else the machine does slows both; what
is counted are the blocks that end while all four decode. For memory, a job of many prompts of one new token each runs
in one process, and its resident memory is read at each tenth.
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
NEW_TOKENS, SHARD_ROWS = 64, 16
# Ray gives its workers a niceness of 15, which counts where others want the same cores: here all have the same.
ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}


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


def side_by_side(folder: Path, n_prompts: int) -> tuple[float, float]:
    """Tokens a second of two workers of Ray, and of two processes together, while all decode."""
    flags = ("--max-new-tokens", NEW_TOKENS, "--shard-rows", SHARD_ROWS)
    outs = [folder / "ray", folder / "first", folder / "second"]
    ray = start(write_prompts(folder / "ray.jsonl", 20 * n_prompts), outs[0], *flags, "--ray", "--workers", 2)
    while ray.poll() is None and len([*(outs[0] / "_job").glob("block-*")]) < 2:
        time.sleep(0.1)
    half = write_prompts(folder / "half.jsonl", n_prompts // 2)
    finish([start(half, out, *flags) for out in outs[1:]])
    ray.terminate()
    ray.wait()
    ends = [blocks(out) for out in outs]
    begin, end = max(of_one[0][0] for of_one in ends), min(of_one[-1][0] for of_one in ends)
    tokens = [sum(n for when, n in of_one if begin < when <= end) for of_one in ends]
    return tokens[0] / (end - begin), sum(tokens[1:]) / (end - begin)


def compare(n_prompts: int, rounds: int) -> str:
    rates = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as root:
            rates.append(side_by_side(Path(root), n_prompts))
            print(f"Ray {rates[-1][0]:.0f} tok/s, processes {rates[-1][1]:.0f} tok/s", flush=True)
    ray, processes = (statistics.median(column) for column in zip(*rates, strict=True))
    ratios = sorted(a / b for a, b in rates)
    return (
        "| at the same time | two workers of Ray, tokens/s | two processes of one thread, tokens/s | ratio, median of rounds"
        f" (range) |\n|---|---|---|---|\n| {NEW_TOKENS} new tokens each, {SHARD_ROWS} rows a shard | {ray:.0f} | {processes:.0f} |"
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
    parser.add_argument("--prompts", type=int, default=640, metavar="N", help="of the two processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=100_000, metavar="N", help="prompts of the long job")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the figures into this file")
    args = parser.parse_args()
    for mark, made in (
        ("bench of ray", args.rounds and compare(args.prompts, args.rounds)),
        ("bench of memory", args.long and memory(args.long)),
    ):
        if made:
            text = f"{made}\nbundled model, float32; {machine()}.\n"
            print(text)
            if args.update:
                put(text, args.update, mark)


if __name__ == "__main__":
    main()
