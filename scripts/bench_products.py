"""Measures the ways in which a CPU can multiply rows by the linear layers of gpt2 (124M): the table in `kernels/products.py`.

    python scripts/bench_products.py                      every way that there is here, from 1 to 1,024 rows
    python scripts/bench_products.py --rows 1 5 8

340 MB of weights, so that each product reads them from memory. All ways take turns in each round; what counts is the
median.
"""

from __future__ import annotations

import argparse
import statistics
import time
from datetime import date

import torch
from torch import Tensor

from minigpt.cli.machine import cpu_name
from minigpt.kernels import WeightMemory, c_functions
from minigpt.kernels.products import product_with_kernel

SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # in, out
LAYERS = 12
ROWS = (1, 2, 4, 5, 8, 12, 16, 64, 1024)
WAYS = {  # how a weight lies, and the kernel
    "(in, out), MKL": (False, "mkl"),
    "(in, out), oneDNN": (False, "onednn"),
    "(out, in), MKL": (True, "mkl"),
    "(out, in), in blocks": (True, "in blocks"),
    "(out, in), in blocks, transposed": (True, "in blocks, transposed"),
    "(out, in), oneDNN": (True, "onednn"),
    "(out, in), in C": (True, "in C"),
}


def new_weights(output_major: bool) -> list[Tensor]:
    """Weights as (out, in), which lie in memory as they are, or the other way round."""
    room = WeightMemory(torch.device("cpu"))
    shapes = [shape[::-1] if output_major else shape for shape in SHAPES * LAYERS]
    weights = [room.reserve(shape, torch.float32).normal_() for shape in shapes]
    return [weight if output_major else weight.t() for weight in weights]


def milliseconds(kernel: str, weights: list[Tensor], inputs: dict[int, Tensor]) -> float:
    """How long one product with each weight takes."""
    start = time.perf_counter()
    for weight in weights:
        product_with_kernel(kernel, inputs[weight.size(1)], weight, None)
    return 1e3 * (time.perf_counter() - start)


@torch.inference_mode()
def measured(rows: int, rounds: int, weights: dict[bool, list[Tensor]]) -> dict[str, float]:
    """The median time of each way for all layers."""
    inputs = {n_in: torch.randn(rows, n_in) for n_in, _ in SHAPES}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    if not c_functions.available():
        del times["(out, in), in C"]
    for _ in range(rounds):
        for way, taken in times.items():
            output_major, kernel = WAYS[way]
            taken.append(milliseconds(kernel, weights[output_major], inputs))
    return {way: statistics.median(taken) for way, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights = {output_major: new_weights(output_major) for output_major in (True, False)}
    columns = [measured(rows, args.rounds if rows < 64 else 3, weights) for rows in args.rows]
    print(f"{'milliseconds':34}" + "".join(f"{rows:>8,}" for rows in args.rows), "rows")
    for way in columns[0]:
        print(f"{way:34}" + "".join(f"{column[way]:8.1f}" for column in columns))
    print(
        f"{args.threads} threads; {args.rounds} rounds, 3 from 64 rows on; {cpu_name()}, torch {torch.__version__}; {date.today()}"
    )


if __name__ == "__main__":
    main()
