"""Measures speed against other programs, interleaved in one run.

    python scripts/bench.py                                      print the tables
    python scripts/bench.py --update docs/benchmarks.md          and put them between the page's marks for this maker's processors
    python scripts/bench.py --workloads a bundled --rounds 3     a part of them
    python scripts/bench.py --sides "transformers float32" "minigpt int8"     and of those who take part

All sides have the same weights: random ones at the shape of gpt2 (124M), and the bundled model's; each has a process
of its own. Machines are noisy, so each round runs every side once, and what counts is the median of the rounds'
ratios to transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import bench_sides
import torch
import transformers
from bench_many import many_table
from bench_sides import Crashed, Worker
from pages import maker, put
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt import GPT2, hub
from minigpt.cli.machine import cpu_name
from minigpt.json_files import counted

REFERENCE = "transformers float32"
OURS = ("minigpt float32", "minigpt float16", "minigpt int8")
BEST = "int8 to the best other int8"
# What we aim at on Intel's processors, and on AMD's: times transformers in float32, and in the last column times the
# fastest of the others' int8.
AIMS: dict[str, dict[str, tuple[float, float]]] = {
    "a": {OURS[0]: (1.25, 1.9), OURS[1]: (1.7, 4), OURS[2]: (3, 5.5), BEST: (1.15, 0.9)},
    "b": {OURS[0]: (1.25, 1.7), OURS[1]: (1.6, 2.7), OURS[2]: (2.5, 4.5), BEST: (1.4, 1.1)},
    "c": {OURS[0]: (1.6, 3), OURS[1]: (2, 3.3), OURS[2]: (3, 5.5), BEST: (1.4, 1.15)},
    "d": {OURS[0]: (1.6, 3.5), OURS[1]: (1.7, 4), OURS[2]: (2.5, 6), BEST: (1.5, 2)},
    "e": {OURS[0]: (1.15, 1.15), OURS[2]: (1.5, 2), BEST: (1.1, 1.5)},
    "bundled": {OURS[0]: (2, 2)},
}


@dataclass(frozen=True)
class Workload:
    """What is written, by which model; the speed is `counted` tokens in the time of a run."""

    title: str
    prompts: tuple[int, int]  # rows, length
    n_new: int
    counted: int
    beams: int = 1
    bundled: bool = False
    times: int = 1  # as many rounds: those of about a second vary more


WORKLOADS = {
    "a": Workload("one prompt, 32 + 128", (1, 32), 128, 128),
    "b": Workload("one prompt, 512 + 128", (1, 512), 128, 128),
    "c": Workload("8 prompts, 32 + 64", (8, 32), 64, 512),
    "d": Workload("5 beams, 32 + 60", (1, 32), 60, 60, beams=5),
    "e": Workload("prefill, 1,023 + 1", (1, 1023), 1, 1023, times=4),
    "bundled": Workload("bundled model, 8 + 200", (1, 8), 200, 200, bundled=True, times=4),
}

MANY = "many"  # a workload with a table of its own; see bench_many.py
Times = dict[str, list[float]]  # seconds of each side, round by round


def take_turns(run: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """What everyone says how many seconds it took, in every round; who goes first moves on from round to round."""
    times: Times = {name: [] for name in run}
    for number in tqdm(range(rounds), leave=False):
        for name in _rotated(list(run), number):
            times[name].append(run[name]())
    return times


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    now = bench_sides.clock()
    start = now()
    call()
    return now() - start


def measure_workload(sides: Mapping[str, Worker], work: Workload, rounds: int) -> Times:
    """All sides on one workload, once they are found to write what it asks for."""
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(4096, work.prompts, generator=random).tolist()
    run = {
        name: partial(side, prompts, work.n_new, work.beams)
        for name, side in sides.items()
        if work.beams == 1 or bench_sides.does_beams(name)
    }
    written = {name: call()[1] for name, call in run.items()}  # also the warm-up
    for name, texts in written.items():
        if [len(text) for text in texts] != [work.n_new] * len(prompts):
            lengths = [len(text) for text in texts]
            raise ValueError(f"{name} wrote texts of {lengths} tokens, not {work.n_new}")
    if len({str(written[name]) for name in ("minigpt float32", REFERENCE) if name in written}) > 1:
        print(f"note: {work.title}: minigpt and transformers do not write the same tokens")
    return take_turns({name: partial(_only_seconds, call) for name, call in run.items()}, rounds)


def _only_seconds(call: Callable[[], tuple[float, object]]) -> float:
    return call()[0]


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def ratios(times: Times, faster: str, slower: str) -> list[float]:
    return sorted(b / a for a, b in zip(times[faster], times[slower], strict=True))


def speed_table(measured: dict[str, Times]) -> Iterator[str]:
    """Tokens per second of every side, and in brackets the ratio to transformers and its range."""
    names = [name for name in bench_sides.SIDES if any(name in times for times in measured.values())]
    yield "| tokens/s (ratio to transformers, range) | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for key, times in measured.items():
        work, cells = WORKLOADS[key], []
        for name in names:
            if name not in times:
                cells.append("")
                continue
            cell = f"{work.counted / statistics.median(times[name]):.1f}"
            if name != REFERENCE and REFERENCE in times:
                found = ratios(times, name, REFERENCE)
                cell += f" (**{statistics.median(found):.2f}**, {found[0]:.2f} to {found[-1]:.2f})"
            cells.append(cell)
        yield f"| {key}: {work.title} | " + " | ".join(cells) + " |"


def aims_table(measured: dict[str, Times]) -> Iterator[str]:
    """How much of each aim is reached."""
    columns = (*OURS, BEST)
    yield "| reached of aimed | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for key, times in measured.items():
        cells = []
        for name in columns:
            found = _times_faster(times, name)
            if name not in AIMS[key] or found is None:
                cells.append("")
                continue
            aim = AIMS[key][name][maker() == "AMD"]
            reached = f"**{found:.2f}**" if found >= aim else f"{found:.2f}"
            cells.append(f"{reached} of {aim}")
        yield f"| {key}: {WORKLOADS[key].title} | " + " | ".join(cells) + " |"


def _times_faster(times: Times, column: str) -> float | None:
    """The median ratio that a column of the aims is about; None if who it takes was not measured."""
    ours, others = column, [REFERENCE]
    if column == BEST:
        ours, others = (
            OURS[2],
            [name for name in bench_sides.SIDES if name.endswith("int8") and name != OURS[2]],
        )
    measured = [name for name in others if {ours, name} <= {*times}]
    return min((statistics.median(ratios(times, ours, name)) for name in measured), default=None)


N_TOKENS = 96  # read while the peak is measured, 32 of them at once
PEAK = """
import pathlib, sys
import torch

def peak():
    return int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

before = peak()
from minigpt import GPT2
from minigpt.sampler import generate
generate(GPT2.from_pretrained(sys.argv[1]), [[1] * 32], max_new_tokens=int(sys.argv[2]) - 32, end_tokens=[])
print(peak() - before)
"""


def save_kinds(directory: Path) -> dict[str, Path]:
    """The model with each kind of weights, in a directory of its own."""
    folders = {kind: directory / f"weights-{kind}" for kind in ("float32", "float16", "int8")}
    for kind, folder in folders.items():
        GPT2.from_pretrained(directory, quantize=None if kind == "float32" else kind).save_pretrained(folder)
    return folders


def memory_table(folders: Mapping[str, Path]) -> Iterator[str]:
    """Peak memory above that of a process that imported torch, for each kind of weights in its own file."""
    yield "| weights | in the file, MB | cache, MB | peak while decoding, MB | 1.3 x (file + cache) + 100 MB |"
    yield "|---|---|---|---|---|"
    for kind, folder in folders.items():
        size = (folder / "model.safetensors").stat().st_size / 2**20
        config = GPT2Config.from_pretrained(folder)
        cache = 2 * config.n_layer * config.n_embd * N_TOKENS * torch.float32.itemsize / 2**20
        command = [sys.executable, "-c", PEAK, str(folder), str(N_TOKENS)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        yield f"| {kind} | {size:.0f} | {cache:.0f} | {peak:.0f} | {1.3 * (size + cache) + 100:.0f} |"


def share_of_bandwidth(times: Times, folders: Mapping[str, Path]) -> str:
    """How much of what the memory can deliver is used, every token reading every weight once."""
    shares, most = [], bandwidth()
    for kind, folder in folders.items():
        n_bytes = (folder / "model.safetensors").stat().st_size * WORKLOADS["a"].counted
        share = n_bytes / statistics.median(times[f"minigpt {kind}"]) / most
        shares.append(f"{kind} {share:.0%}")
    return f"Of the memory's bandwidth, one prompt uses: {', '.join(shares)}."


def bandwidth() -> float:
    """Bytes per second at which a large tensor is read, to sum its numbers or their squares; the best of several."""
    numbers = torch.ones(60_000_000)
    ways = (numbers.sum, partial(numbers.dot, numbers))  # which is faster depends on the processor
    return numbers.nbytes / min(seconds(way) for _ in range(9) for way in ways)


def machine() -> str:
    """What the figures were measured on, and when."""
    return (
        f"{counted(torch.get_num_threads(), 'threads')} of {counted(os.cpu_count() or 1, 'cores')} ({cpu_name()}, {bandwidth() / 1e9:.0f} GB/s); "
        f"{bench_sides.versions()}, Python {platform.python_version()}; {date.today().isoformat()}"
    )


def picture(measured: dict[str, Times], path: Path) -> None:
    """Ratios to transformers as bars."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
    for i, name in enumerate(OURS):
        heights = [statistics.median(ratios(times, name, REFERENCE)) for times in measured.values()]
        axes.bar([place + 0.25 * (i - 1) for place in range(len(measured))], heights, 0.25, label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(measured)), [WORKLOADS[key].title for key in measured], rotation=15)
    axes.set_ylabel("speed, transformers float32 = 1")
    axes.legend()
    figure.savefig(path, dpi=120)


def started(names: list[str], source: Path, crashes: list[str]) -> dict[str, Worker]:
    """The sides; which of them crashed at once is added to `crashes`."""
    sides = {}
    for name in names:
        try:
            sides[name] = Worker(name, source)
        except Crashed as crash:
            crashes.append(str(crash))
    return sides


def measure_without_crashed(
    sides: dict[str, Worker], work: Workload, rounds: int, crashes: list[str]
) -> Times:
    """As `measure_workload`; a side that crashes is taken from `sides` and added to `crashes`, and all begins anew."""
    while True:
        try:
            return measure_workload(sides, work, rounds)
        except Crashed as crash:
            crashes.append(f"{work.title}: {crash}")
            del sides[crash.side]
            if not sides:
                raise


def measure(
    keys: list[str], names: list[str], rounds: int, directory: Path
) -> tuple[dict[str, Times], list[str]]:
    """All sides of these names on all workloads of these keys; and which of them crashed, where, and is left out."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(directory)
    shutil.copytree(hub.bundled(), directory / "bundled")  # some sides write their own form beside it
    measured, crashes = {}, list[str]()
    for bundled, source in ((False, directory), (True, directory / "bundled")):
        chosen = {key: WORKLOADS[key] for key in keys if WORKLOADS[key].bundled == bundled}
        sides = started(names, source, crashes) if chosen else {}
        for key, work in chosen.items():
            measured[key] = measure_without_crashed(sides, work, rounds * work.times, crashes)
            print(list(speed_table({key: measured[key]}))[-1], flush=True)
        for side in sides.values():
            side.close()
    return measured, crashes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workloads", nargs="+", choices=[*WORKLOADS, MANY], default=[*WORKLOADS, MANY])
    present = bench_sides.present()
    parser.add_argument(
        "--sides", nargs="+", choices=present, default=present, help="(default: all that are installed)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every time that was measured")
    parser.add_argument("--png", type=Path, metavar="FILE", help="a picture of the ratios")
    parser.add_argument(
        "--update", type=Path, nargs="+", default=[], metavar="FILE", help="put the tables into these pages"
    )
    args = parser.parse_args()
    if args.update and maker() == "another maker":
        parser.error(f"--update: the pages have figures of processors by AMD and Intel, this is {cpu_name()}")
    if args.png and not {REFERENCE, *OURS} <= {*args.sides}:
        parser.error(
            f"--png shows {', '.join(OURS)} beside {REFERENCE}: name them all after --sides, or leave it out"
        )
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        measured, crashes = measure(
            [key for key in args.workloads if key != MANY], args.sides, args.rounds, Path(folder)
        )
        folders = save_kinds(Path(folder))
        memory = "\n".join(memory_table(folders))
        if "a" in measured and {*OURS} <= {*measured["a"]}:
            memory += f"\n\n{share_of_bandwidth(measured['a'], folders)}"
    what = "gpt2's shape (124M, random weights) unless it is the bundled model"
    times = f"medians of {counted(args.rounds, 'rounds')}, of prefill and the bundled model {4 * args.rounds}"
    parts = [
        "\n".join(speed_table(measured)),
        *([f"Left out: {'; '.join(crashes)}."] if crashes else []),
        "\n".join(aims_table(measured)),
        memory,
        f"{what}; {times}; {machine()}, by `make bench`.\n",
    ]
    text = "\n\n".join(parts)
    print(text)
    if MANY in args.workloads:  # a part of the page of its own, which `make bench-many` writes
        for line in many_table(200, 3):
            print(line, flush=True)
    for page in args.update:
        put(text, page, f"bench on {maker()}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "seconds": measured}, indent=2) + "\n")
    if args.png:
        picture(measured, args.png)


if __name__ == "__main__":
    main()
