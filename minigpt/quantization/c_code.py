"""C code of the package, compiled on the machine that runs it and kept for the next time.

A wheel of Python alone runs everywhere, and has no kernels of its own. Where there is a C compiler, two seconds make a
library of them; where there is none, torch's kernels are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

# No more than the instructions that `runs_here` asks for, so that a home folder on several machines does no harm. Nothing
# that gives other bits than the code says: products and sums are not fused but where it says so.
FLAGS = (
    "-O3", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off",
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma",
)  # fmt: skip
SECONDS = 120  # after which a compiler is given up


def runs_here() -> bool:
    """Whether this is Linux on a processor with the instructions that `FLAGS` name, and torch may use them."""
    capability = torch.backends.cpu.get_cpu_capability()
    return sys.platform == "linux" and capability == "AVX512" and torch.cpu._is_vnni_supported()


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The library of a C file; None where it cannot be made or would not run."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or not runs_here():
        return None
    command = [*compiler.split(), *FLAGS]
    key = hashlib.sha256(source.read_bytes() + repr(command).encode()).hexdigest()[:16]
    name = f"{source.stem}-{key}.so"
    try:
        with _folder_to_write_to() as there:
            if not (there / name).exists():
                _compile([*command, str(source), "-lm"], there / name)
            return ctypes.CDLL(str(there / name))
    except (OSError, subprocess.SubprocessError) as error:
        output = str(getattr(error, "stderr", None) or error).strip()
        reason = output.splitlines()[0] if output else type(error).__name__
        warnings.warn(
            f"{source.name} cannot be compiled ({reason:.200}): 8-bit weights take about twice as long",
            stacklevel=2,
        )
        return None


@contextmanager
def _folder_to_write_to() -> Iterator[Path]:
    """`folder()`, or one for the time being: a library that was loaded needs its file no longer."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        is_kept = os.access(folder(), os.W_OK)
    except OSError:
        is_kept = False
    if is_kept:
        yield folder()
        return
    with tempfile.TemporaryDirectory(prefix="minigpt-") as passing:
        yield Path(passing)


def folder() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME/minigpt/compiled."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigpt" / "compiled"


def _compile(command: list[str], kept: Path) -> None:
    """Aside first: another process may do the same at the same time."""
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".unfinished-") as aside:
        made = Path(aside, kept.name)
        subprocess.run(
            [*command, "-o", str(made)], check=True, capture_output=True, text=True, timeout=SECONDS
        )
        os.replace(made, kept)
