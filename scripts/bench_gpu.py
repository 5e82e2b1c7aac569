"""Measures speed on one GPU: decoding by size and by batch, and training, against transformers; in 80 seconds.

    python scripts/bench_gpu.py --json gpu.json                                 measure, and print the tables
    python scripts/bench_gpu.py --from gpu.json --update docs/benchmarks.md     put them into the page, without a GPU
    python scripts/bench_gpu.py --device cpu --tiny                             try the script

Each side has a process of its own. All are made ready at once, which is when they compile; then they are measured one
after the other, in turns. What is not ready after --prepare seconds, or fails, is reported as not measured, with the reason.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench_gpu_machine import measurer
from bench_gpu_sides import MAKE_DECODING, MAKE_TRAINING, Sizes
from bench_gpu_tables import report
from bench_gpu_worker import NotMeasured, Worker
from pages import put

PARTS = ("decoding", "batches", "training")
SHAPES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
OURS = ("minigpt", "minigpt --compile")
THEIRS = ("transformers", "transformers, static cache, compiled")
BATCHED = ("minigpt", "transformers")
TRAINING = ("minigpt", "minigpt --compile", "transformers")
Key = tuple[str, str, str]  # "decoding" or "training", side, shape


def decoding_side(name: str, shape: str, device: str, tiny: bool) -> Callable[..., float]:
    """A side that has decoded already, so that all is compiled."""
    sizes = sizes_for(device, tiny)
    work = MAKE_DECODING[name](shape, sizes)
    for _ in range(2):  # graphs of compiled functions are recorded the second time
        work(1, sizes.new)
    return work


def training_side(name: str, shape: str, device: str, tiny: bool) -> Callable[..., float]:
    """A side that has trained already."""
    work = MAKE_TRAINING[name](shape, sizes_for(device, tiny))
    work(1, 0)
    return work


def machine_side(device: str, tiny: bool) -> Callable[[], dict[str, Any]]:
    """A side that measures the machine itself."""
    return measurer(sizes_for(device, tiny))


def sizes_for(device: str, tiny: bool) -> Sizes:
    """How many texts, tokens and steps are measured."""
    return Sizes.for_trying(device) if tiny else Sizes(device)


def wanted(parts: Sequence[str], shapes: Sequence[str], sides: Sequence[str]) -> list[Key]:
    """The processes to start; those that matter most come first, for they are measured first."""
    keys: list[Key] = []
    if "decoding" in parts:
        keys += [("decoding", name, shape) for shape in shapes for name in OURS]
        keys += [("decoding", name, "gpt2") for name in THEIRS]
    if "batches" in parts:
        keys += [("decoding", name, "gpt2") for name in BATCHED]
    if "training" in parts:
        keys += [("training", name, "gpt2") for name in TRAINING]
    return [key for key in dict.fromkeys(keys) if key[1] in sides]


class Measurement:
    """All sides, what was measured of them, and what is missing and why."""

    def __init__(self, keys: Sequence[Key], device: str, tiny: bool) -> None:
        self.start = time.monotonic()
        self.end = float("inf")
        self.found: dict[str, Any] = {part: {} for part in (*PARTS, "missing", "ready")}
        make = {"decoding": decoding_side, "training": training_side}
        self._machine = Worker(partial(machine_side, device, tiny))
        self._workers = {key: Worker(partial(make[key[0]], *key[1:], device, tiny)) for key in keys}

    def prepare(self, until: float, end: float) -> None:
        """Waits for the sides, then measures the machine.

        Args:
            until: seconds after the start, from which on no side is waited for.
            end: seconds after the start, from which on no more is measured.

        Raises:
            NotMeasured: the machine cannot be.
        """
        self._machine.wait_until_ready(self.start + until)
        for key, worker in self._workers.items():
            with self._reported(" ".join(key)):
                self.found["ready"][" ".join(key)] = worker.wait_until_ready(self.start + until)
        self.found |= self._machine()
        self.sizes = self.found["sizes"]
        self.end = self.start + end

    def close(self) -> None:
        """Ends all processes."""
        for worker in (self._machine, *self._workers.values()):
            worker.close()

    def decoding(self) -> None:
        """One text, by the model's size."""
        for shape in dict.fromkeys(shape for kind, _, shape in self._workers if kind == "decoding"):
            sides = self._sides("decoding", shape, (*OURS, *THEIRS))
            self.found["decoding"][shape] = self._turns(sides, (1, self.sizes["new"]), f"decoding, {shape}")

    def batches(self) -> None:
        """Texts side by side, by their number."""
        sides = self._sides("decoding", "gpt2", BATCHED)
        for rows in self.sizes["rows"]:
            work, what = (rows, self.sizes["batch_new"]), f"{rows} side by side"
            self._turn(sides, work, what)  # the warm-up
            self.found["batches"][str(rows)] = self._turns(sides, work, what)

    def training(self) -> None:
        """Steps of training."""
        sides = self._sides("training", "gpt2", TRAINING)
        self.found["training"] = self._turns(sides, (self.sizes["steps"], 0), "training")

    def _sides(self, kind: str, shape: str, names: Sequence[str]) -> dict[str, Worker]:
        asked = {name: self._workers.get((kind, name, shape)) for name in names}
        return {name: worker for name, worker in asked.items() if worker and not worker.failed}

    def _turns(self, sides: dict[str, Worker], work: tuple[int, int], what: str) -> dict[str, list[float]]:
        """Seconds of every side, round by round; who goes first moves on."""
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(self.sizes["rounds"]):
            names = list(sides)
            first = number % max(1, len(names))
            turn = {name: sides[name] for name in names[first:] + names[:first]}
            for name, seconds in self._turn(turn, work, what).items():
                times[name].append(seconds)
        return {name: rounds for name, rounds in times.items() if rounds}

    def _turn(self, sides: Mapping[str, Worker], work: tuple[int, int], what: str) -> dict[str, float]:
        times = {}
        for name, worker in sides.items():
            with self._reported(f"{what}, {name}"):
                if time.monotonic() > self.end:
                    raise NotMeasured("no time was left")
                times[name] = worker(*work)
        return times

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except NotMeasured as reason:
            self.found["missing"].setdefault(what, str(reason))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All parts; after each, the file has what there is."""
    keys = wanted(args.parts, args.shapes, args.sides)
    measurement = Measurement(keys, args.device, args.tiny)
    try:
        measurement.prepare(args.prepare, args.seconds)
        for part in args.parts:
            getattr(measurement, part)()
            if args.json:
                args.json.write_text(json.dumps(measurement.found, indent=2) + "\n")
    except NotMeasured as reason:
        raise SystemExit(f"{args.device} cannot be measured: {reason}") from None
    finally:
        measurement.close()
    return measurement.found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = list(dict.fromkeys((*OURS, *THEIRS, *TRAINING)))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--sides", nargs="+", choices=every, default=every, metavar="SIDE")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and short texts, to try the script")
    parser.add_argument(
        "--prepare", type=float, default=45, metavar="SECONDS", help="until all have compiled"
    )
    parser.add_argument("--seconds", type=float, default=75, help="after which nothing more is begun")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every time that was measured")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="what --json has written")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the tables into this page")
    args = parser.parse_args()
    measured = json.loads(args.source.read_text()) if args.source else measure(args)
    text = report(measured)
    print(text)
    if args.update:
        put(text, args.update, "bench on a GPU")


if __name__ == "__main__":
    main()
