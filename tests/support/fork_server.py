"""Commands in processes of their own at the price of a fork: a server that has imported torch forks for each.

    with ForkServer() as server:
        outcome = server.run(["generate", "Once"], folder)

The server starts no thread, so its children are as good as fresh processes; each has limits of time and memory.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, NamedTuple, Self

import minigpt

ROOT = Path(__file__).parents[2]
SECONDS, MEGABYTES = 60, 1500  # of one command: processor time; memory beyond what the server has mapped
WAITING = 600  # seconds by the clock, for a command that waits for what never comes
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


class Outcome(NamedTuple):
    """How a command ended: its exit code (negative: the signal that killed it), and what it wrote."""

    code: int
    out: bytes
    err: bytes
    timed_out: bool


class Fault(NamedTuple):
    """What goes wrong in a command's folder: at the n-th call that changes it, or at the n-th byte of any file.

    `kind` is the name of an error ("ENOSPC"), or "SIGKILL"; with "EFBIG", `at` counts bytes, else calls, from 1.
    """

    kind: str
    at: int


class ForkServer:
    """The client's side."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | ALONE
        )
        assert self._answer() == "ready"
        return self

    def run(
        self, argv: Sequence[str], folder: Path, stdin: bytes = b"", fault: Fault | None = None
    ) -> Outcome:
        """Runs `minigpt ARGV...` in a folder; stdout and stderr are taken from files beside it."""
        streams = {name: folder.parent / f"{folder.name}.{name}" for name in ("stdin", "stdout", "stderr")}
        streams["stdin"].write_bytes(stdin)
        order = {"argv": list(argv), "folder": str(folder), "fault": fault} | {
            name: str(file) for name, file in streams.items()
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        code, timed_out = self._answer()
        return Outcome(code, streams["stdout"].read_bytes(), streams["stderr"].read_bytes(), timed_out)

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


def serve() -> None:
    """Reads an order a line, and answers each with the exit code and whether time ran out."""
    for module in walk_packages(minigpt.__path__, "minigpt."):
        if module.name == "minigpt.inference.fused_step":  # needs Triton, which is where a GPU may be
            continue
        import_module(module.name)
    # A second of measuring for every training run, which changes nothing that it writes.
    hardware = import_module("minigpt.training.hardware")
    hardware.matmul_rate = lambda *_: 1e9  # type: ignore[attr-defined]
    _answer("ready")
    for line in sys.stdin.buffer:
        order = json.loads(line)
        child = os.fork()
        if not child:
            _become(order)
        _answer(_wait(child))


def _answer(value: object) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


def _wait(child: int) -> tuple[int, bool]:
    handle = os.pidfd_open(child)
    try:
        timed_out = not select.select([handle], [], [], WAITING)[0]
    finally:
        os.close(handle)
    if timed_out:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, timed_out or code == -signal.SIGXCPU


# Calls that change a folder, as Python's audit events name them. What a library in C or Rust does by itself is not
# among them; a limit on the size of files reaches that, too.
CHANGES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "os.link",
    "os.symlink",
}


def _arrange(fault: Fault, folder: str) -> None:
    """Makes the fault happen, once, in this process."""
    if fault.kind == "EFBIG":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails, and the process lives on
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, fault.at))
        return
    calls = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal calls
        if not _changes(event, args, folder):
            return
        calls += 1
        if calls != fault.at:
            return
        if fault.kind == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, fault.kind)
        raise OSError(number, os.strerror(number), str(args[0]))

    sys.addaudithook(watch)


def _changes(event: str, args: tuple[Any, ...], folder: str) -> bool:
    if event == "open":
        writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        writes = event in CHANGES
    if not writes or isinstance(args[0], int):
        return False
    name = os.fsdecode(args[0])
    return not os.path.isabs(name) or name.startswith(folder)


def _become(order: dict[str, Any]) -> None:
    """What the child does: the command, as `python -m minigpt` would run it, and nothing after it."""
    modes = {"stdin": os.O_RDONLY, "stdout": os.O_WRONLY | os.O_CREAT | os.O_TRUNC}
    modes["stderr"] = modes["stdout"]
    for number, (name, mode) in enumerate(modes.items()):
        os.dup2(os.open(order[name], mode, 0o644), number)
    os.chdir(order["folder"])
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEGABYTES * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200 * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    if order["fault"]:
        _arrange(Fault(*order["fault"]), order["folder"])
    # An argument that is not UTF-8 comes as surrogates, which JSON carries as they are.
    sys.argv = ["minigpt", *order["argv"]]
    code = 1
    try:
        code = import_module("minigpt.__main__").main(order["argv"])
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
