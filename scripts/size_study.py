"""Which size for the bundled model: several shapes trained with equal compute, and what each reaches.

    python scripts/size_study.py --corpus ../shared/corpus --work build/bundled    (again, to resume)

Each shape takes as many steps as cost it 3e13 floating-point operations (by `training_flops`, attention
included; the table says how many it were). What they are judged by is held out of train.txt, so that val.txt
has no say in the choice. Prints the table that goes into the model's card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from train_bundled import minigpt, train_tokenizer

from minigpt.config import GPT2Config
from minigpt.training.hardware import training_flops

CONTEXT = 512
BATCH = 4  # windows a step: more steps of so little compute


class Shape(NamedTuple):
    layers: int
    heads: int
    width: int
    steps: int
    lr: float

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"


SHAPES = (
    Shape(4, 3, 192, 745, 1.7e-3),
    Shape(6, 4, 256, 331, 1.5e-3),
    Shape(4, 5, 320, 325, 1.35e-3),
    Shape(8, 5, 320, 177, 1.35e-3),
)


def train(corpus: Path, tokenizer: Path, out: Path, shape: Shape) -> None:
    flags = {
        "data": corpus / "train.txt", "val": 0.01, "tokenizer": tokenizer, "out": out,
        "n-layer": shape.layers, "n-head": shape.heads, "n-embd": shape.width, "context": CONTEXT,
        "batch-size": BATCH, "steps": shape.steps, "optimizer": "adamw", "lr": shape.lr, "warmup": 50, "beta2": 0.95,
        "eval-every": 5000, "checkpoint-every": 5000, "dtype": "bfloat16",
    }  # fmt: skip
    minigpt("train", "--resume", **flags)


def row(out: Path) -> str:
    """One run as a line of the table: its shape, its cost, and what its last validation gave."""
    config, n = GPT2Config.load(out), json.loads((out / "run.json").read_text())["n_parameters"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "val_bits_per_byte" in line][-1]
    flops = last["tokens"] * training_flops(config, n, CONTEXT)
    return (
        f"| {config.n_layer} x {config.n_embd} ({config.n_head} heads) | {n / 1e6:.1f} M | {last['tokens'] / 1e6:.2f} M "
        f"| {flops:.2g} | {last['val_bits_per_byte']:.3f} |"
    )


def table(runs: Iterable[Path]) -> str:
    """The runs that there are, one a line."""
    head = "| layers x width | parameters | tokens | operations | bits per byte |\n|---|---|---|---|---|"
    return "\n".join([head, *(row(out) for out in runs if (out / "config.json").exists())])


def study(work: Path) -> str:
    """The study as far as it has been run."""
    return table(work / "study" / shape.name for shape in SHAPES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of train.txt and val.txt")
    parser.add_argument("--work", type=Path, default=Path("build/bundled"), help="where the runs go")
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.corpus, args.work)
    for shape in SHAPES:
        train(args.corpus, tokenizer, args.work / "study" / shape.name, shape)
    print(study(args.work))


if __name__ == "__main__":
    main()
