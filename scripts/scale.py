"""Tables for docs/scale.md: what the cost model says against what this machine needs, and the published sizes on GPUs.

python scripts/scale.py --update docs/scale.md
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pages import put

from minigpt import GPT2, GPT2Config
from minigpt.cli.machine import cpu_name, peak_memory
from minigpt.config import PUBLISHED
from minigpt.data.token_file import TokenFile
from minigpt.data.windows import Windows
from minigpt.training.cost import FLOAT32, Plan, memory, seconds
from minigpt.training.distributed import Processes, joined
from minigpt.training.learner import Learner
from minigpt.training.settings import Settings

CPU = torch.device("cpu")
# Memory that is freed goes back to the system at once (glibc), so that what a process holds is what it uses.
ONE_TENSOR_A_MAPPING = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
MEASURED = {
    "width 256, 6 layers": Plan(
        GPT2Config(n_layer=6, n_head=4, n_embd=256, n_positions=256, vocab_size=8192), 8, 2, dtype="float32"
    ),
    "width 256, 6 layers, bfloat16": Plan(
        GPT2Config(n_layer=6, n_head=4, n_embd=256, n_positions=256, vocab_size=8192), 8, 2
    ),
    "width 256, 12 layers, recomputing": Plan(
        GPT2Config(n_layer=12, n_head=4, n_embd=256, n_positions=512, vocab_size=8192),
        4,
        2,
        1,
        "float32",
        True,
    ),
    "gpt2's width, 4 layers": Plan(GPT2Config(n_layer=4, n_positions=256), 4, 2, dtype="float32"),
    "width 512, 8 layers, bfloat16, 2 processes": Plan(
        GPT2Config(n_layer=8, n_head=8, n_embd=512, n_positions=128, vocab_size=2048), 4, 2, 2
    ),
    "gpt2's width, 4 layers, 2 processes": Plan(GPT2Config(n_layer=4, n_positions=256), 4, 2, 2, "float32"),
}

# A GPU as data sheets have it (H100 SXM, dense bfloat16), and what is assumed of it.
PEAK, UTILISATION, GPU_MEMORY, IN_HOST = 989e12, 0.4, 80e9, 8
BETWEEN_GPUS, BETWEEN_HOSTS = 450e9, 50e9  # bytes a second in each direction: NVLink; 400 Gbit/s for each GPU
SIZES = {name: config for name, config in PUBLISHED.items() if name != "distilgpt2"}  # those of GPT-2 itself
GPUS = (1, 2, 4, 8, 16, 32, 64)
ROWS, BATCH = 8, 512  # sequences in a pass of a GPU; in a step, as GPT-2 (Radford et al. 2019, section 2.3)
TOKENS = 9e9  # of OpenWebText


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", type=Path, metavar="PAGE", help="write the tables into a page, too")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(MEASURED[args.measure])
        return
    tables = {"cost, measured": measured_table, "cost, published sizes": published_tables}
    for mark, table in tables.items():
        lines = []
        for line in table():
            print(line, flush=True)
            lines.append(line)
        if args.update:
            put("\n".join(lines), args.update, mark)


def measure(plan: Plan) -> None:
    """Prints what a process needs for a step, as JSON: bytes beyond those before it, and seconds of its processor."""
    torch.set_num_threads(1)
    small = replace(plan.config, n_layer=1, n_head=4, n_embd=64, n_positions=16, vocab_size=512)
    with joined(CPU) as processes:
        # what torch itself needs, it has from here on
        new_learner(replace(plan, config=small), processes).step(0)
        learner = new_learner(plan, processes)
        # is there by now: weights and averages
        kept = 3 * FLOAT32 * plan.config.n_parameters // plan.processes
        before = resident() - kept
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        learner.step(0)
        began = time.process_time()
        learner.step(1)
        found = {"bytes": peak_memory() - before, "seconds": time.process_time() - began}
        if processes.is_main:
            print(json.dumps(found))


def new_learner(plan: Plan, processes: Processes) -> Learner:
    settings = Settings(
        batch_size=plan.rows * plan.processes,
        accumulate=plan.accumulate,
        optimizer="adamw",
        gradient_checkpointing=plan.recompute,
        shard=plan.processes > 1,
    ).with_defaults(plan.config.n_embd)
    windows = Windows(random_tokens(plan), plan.config.n_positions, seed=0)
    return Learner(GPT2(settings.with_dropout(plan.config)), windows, settings, plan.dtype, processes)


def random_tokens(plan: Plan) -> TokenFile:
    n = 8 * plan.tokens_of_step
    ids = np.random.default_rng(0).integers(plan.config.vocab_size, size=n).astype(np.uint16)
    return TokenFile(Path(), ids, np.array([[0, n]]), np.zeros(1), "")


def resident() -> int:
    """The memory that this process holds now, in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])


def measured(name: str) -> dict[str, float]:
    """`measure` in a process of its own, or in as many as the plan has."""
    n = MEASURED[name].processes
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    command = [sys.executable, *torchrun, __file__, "--measure", name]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | ONE_TENSOR_A_MAPPING
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measured_table() -> Iterator[str]:
    yield "| | parameters | memory by the formulas | measured | ratio | time by the formulas | measured | ratio |"
    yield "|---|---|---|---|---|---|---|---|"
    rates: dict[str, float] = {}
    for name, plan in MEASURED.items():
        found, needed = measured(name), memory(plan).total
        # the first one says how fast this machine is; others are predicted from it
        if plan.dtype not in rates:
            rates[plan.dtype] = seconds(plan, 1.0, math.inf).total / found["seconds"]
            predicted, ratio = "", ""
        else:
            expected = seconds(plan, rates[plan.dtype], math.inf).total
            predicted, ratio = f"{expected:.1f} s", f"{found['seconds'] / expected:.2f}"
        yield (
            f"| {name} | {plan.config.n_parameters / 1e6:.1f} M | {needed / 1e6:,.0f} MB | "
            f"{found['bytes'] / 1e6:,.0f} MB | {found['bytes'] / needed:.2f} | {predicted} | "
            f"{found['seconds']:.1f} s | {ratio} |"
        )
    reached = ", ".join(f"{rate / 1e9:.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    yield (
        f"\nEach process on one thread; time is the processor's, for one step of two batches; {reached} in the first "
        f"row of each dtype, from which the other times follow. {cpu_name()}, torch {torch.__version__}, Python "
        f"{platform.python_version()}."
    )


def published_tables() -> Iterator[str]:
    yield f"Memory of each GPU, in GB, for {ROWS} sequences per batch; in brackets with `--gradient-checkpointing`:\n"
    yield head()
    for name, config in SIZES.items():
        plans = [[Plan(config, ROWS, processes=n, recompute=r) for r in (False, True)] for n in GPUS]
        cells = [f"{gigabytes(kept)} ({gigabytes(less)})" for kept, less in plans]
        yield f"| {name} | {' | '.join(cells)} |"
    yield f"\nHours for {TOKENS / 1e9:.0f} billion tokens, {BATCH} sequences of 1,024 a step:\n"
    yield head()
    for name, config in SIZES.items():
        yield f"| {name} | {' | '.join(hours(config, n) for n in GPUS)} |"
    yield (
        f"\nAssumed, not measured: GPUs of {GPU_MEMORY / 1e9:.0f} GB and {PEAK / 1e12:.0f} TFLOP/s (H100 SXM, dense "
        f"bfloat16), of which {UTILISATION:.0%} are reached; {IN_HOST} in a host, with {BETWEEN_GPUS / 1e9:.0f} GB/s "
        f"between them, and {BETWEEN_HOSTS / 1e9:.0f} GB/s for each where there are several hosts. "
        "With *, exchanging weights and gradients takes longer than computing."
    )


def head() -> str:
    names = " | ".join("1 GPU" if n == 1 else f"{n} GPUs" for n in GPUS)
    return f"| | {names} |\n|---|{'---|' * len(GPUS)}"


def gigabytes(plan: Plan) -> str:
    return f"{memory(plan).total / 1e9:.0f}"


def hours(config: GPT2Config, n: int) -> str:
    """The time of a run; marked where exchanging weights takes longer than computing."""
    plan = Plan(config, ROWS, accumulate=BATCH // (ROWS * n), processes=n)
    step = seconds(plan, UTILISATION * PEAK, BETWEEN_GPUS if n <= IN_HOST else BETWEEN_HOSTS)
    bound = "*" if step.communicating > step.computing else ""
    return f"{step.total * TOKENS / plan.tokens_of_step / 3600:.1f}{bound}"


if __name__ == "__main__":
    main()
