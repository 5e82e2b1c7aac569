"""What a GPU can do: how fast it copies and multiplies, measured, and what its maker says of it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from bench_gpu_sides import Sizes, seconds

from minigpt.cli.machine import cpu_name
from minigpt.config import PUBLISHED
from minigpt.training.hardware import training_flops

PACKAGES = ("torch", "triton", "transformers")
# Products in bfloat16 without sparsity, operations a second, from NVIDIA's data sheets of these GPUs.
PEAKS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "A100": 312e12}
COPIES = 10


def measurer(sizes: Sizes) -> Callable[[], dict[str, Any]]:
    """What measures the machine, and says what is measured and what a token of each shape needs."""
    bandwidth(sizes)  # the warm-up

    def measure() -> dict[str, Any]:
        machine = named(sizes) | {"bandwidth": bandwidth(sizes), "product": product_rate(sizes)}
        facts = asdict(sizes) | {"context": sizes.config("gpt2").n_positions}
        return {
            "machine": machine,
            "sizes": facts,
            "needs": {shape: needs(shape, sizes) for shape in PUBLISHED},
        }

    return measure


def named(sizes: Sizes) -> dict[str, Any]:
    """Device, driver, versions and date."""
    cuda = sizes.device == "cuda"
    gpu = torch.cuda.get_device_name() if cuda else cpu_name()
    return {
        "device": gpu,
        "driver": driver() if cuda else "",
        "cuda": torch.version.cuda or "",
        "peak": next((peak for name, peak in PEAKS.items() if name in gpu), None),
        "versions": {name: installed(name) for name in PACKAGES},
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def driver() -> str:
    """The version of NVIDIA's driver, if its tool is there to say it."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def bandwidth(sizes: Sizes) -> float:
    """Bytes a second, read and written, when a large tensor is copied; the best of several."""
    source = torch.ones(1 << (20 if sizes.tiny else 30), dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(COPIES))


def product_rate(sizes: Sizes) -> float:
    """Operations a second in one large product of random numbers in bfloat16; the best of those that fit half a second."""
    n = 256 if sizes.tiny else 8192
    a, b = (torch.randn(n, n, device=sizes.device).bfloat16() for _ in range(2))
    best, end = float("inf"), time.monotonic() + 0.5
    while time.monotonic() < end:
        best = min(best, seconds(lambda: a @ b))
    return 2 * n**3 / best


def needs(shape: str, sizes: Sizes) -> dict[str, float]:
    """Bytes of weights that one row's next token reads, in bfloat16, and operations to train on a token.

    All weights are read but those of the other positions; a tied embedding is read as the head.
    """
    config = sizes.config(shape)
    read = config.n_parameters - config.n_positions * config.n_embd
    flops = training_flops(config, config.n_parameters, config.n_positions)
    return {"bytes": 2 * read, "flops": flops}
