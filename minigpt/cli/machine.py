"""What measurements depend on: the processor, the memory used, and the versions in use."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import minigpt
from minigpt.errors import InvalidRequest
from minigpt.lazy import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def cpu_name() -> str:
    """The processor, as the machine names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor()])[0]


def peak_memory() -> int:
    """The most memory this process has held, in bytes: the GPU's if one was used; 0 where that is not known."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux; what getrusage says there includes the parent's, from before it became us
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0  # macOS, which counts bytes


def versions() -> dict[str, str]:
    """Of minigpt, torch and Python."""
    python = ".".join(map(str, sys.version_info[:3]))
    return {"minigpt": minigpt.__version__, "torch": torch.__version__, "python": python}


def device(wanted: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one.

    Raises:
        InvalidRequest: this machine has none.

    >>> device("cpu")
    device(type='cpu')
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, there in available.items() if there))
    if not available[wanted]:
        raise InvalidRequest(f"--device {wanted}: this machine has none that torch can use; use --device cpu")
    return torch.device(wanted)
