"""C code of the package, compiled on the machine that runs it and kept for the next time.

A wheel of Python alone runs everywhere, and has no kernels of its own. Where there is a C compiler, a few seconds make a
library of them; where there is none, torch's kernels are used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from minigpt.atomic import all_or_none

# Only instructions that `runs_here` asks for: several machines may share a home folder. And no contraction: to fuse a
# product and a sum that the code keeps apart would change last bits.
FLAGS = (
    "-O3", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=off",
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma",
)  # fmt: skip
SECONDS = 120  # after which a compiler is given up
DIGEST = hashlib.sha256().digest_size


def runs_here() -> bool:
    """Whether this is Linux on a processor with the instructions that `FLAGS` name, and torch may use them."""
    capability = torch.backends.cpu.get_cpu_capability()
    return sys.platform == "linux" and capability == "AVX512" and torch.cpu._is_vnni_supported()


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The library of a C file; None where it cannot be made or would not run."""
    # gcc first: its OpenMP is torch's own, with the number of threads that torch was given.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if not compiler or not runs_here():
        return None
    try:
        command = [*shlex.split(compiler), *FLAGS]
        parts = [source, *sorted(source.parent.glob("*.h"))]  # all that it may include
        code = b"".join(part.read_bytes() for part in parts)
        key = hashlib.sha256(code + repr((command, platform.libc_ver())).encode()).hexdigest()
        name = f"{source.stem}-{key[:16]}.so"
        return _kept(name) or _compiled(command, source, name)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        output = str(getattr(error, "stderr", None) or error).strip()
        reason = output.splitlines()[0] if output else type(error).__name__
        warnings.warn(
            f"{source.name} cannot be compiled or loaded ({reason:.200}): torch's kernels are used, which take up to three times as long",
            stacklevel=2,
        )
        return None


def folder() -> Path:
    """Where libraries are kept: $XDG_CACHE_HOME/minigpt/compiled."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigpt" / "compiled"


def _kept(name: str) -> ctypes.CDLL | None:
    """A library that was kept, if it is whole and can be loaded: part of one would end the process."""
    with suppress(OSError, RuntimeError):  # there is no such file, or no home
        content = (folder() / name).read_bytes()
        if hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]:
            return ctypes.CDLL(str(folder() / name))
    return None


def _compiled(command: list[str], source: Path, name: str) -> ctypes.CDLL:
    """A new library, which is kept if it can be: with its digest after its end, where a loader does not look."""
    with tempfile.TemporaryDirectory(prefix="minigpt-") as aside:
        made = Path(aside, name)
        whole = [*command, str(source), "-o", str(made), "-lm"]
        subprocess.run(whole, check=True, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        content = made.read_bytes()
        with suppress(OSError, RuntimeError), all_or_none(folder()) as kept:
            (kept / name).write_bytes(content + hashlib.sha256(content).digest())
        return _kept(name) or ctypes.CDLL(str(made))  # once it is loaded, its file is needed no longer
