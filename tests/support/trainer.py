"""`minigpt.train` as tests use it: tiny runs, in this process, or in one that can be told to stop or be killed."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from command import Result
from safetensors.torch import load_file

from minigpt import train as command
from minigpt.tokenizer.files import END_OF_TEXT

SIZES = {"n-layer": 1, "n-head": 2, "n-embd": 16, "context": 16, "batch-size": 4, "tokenizer": "bytes"}
TIMES = {"steps": 6, "eval-every": 3, "checkpoint-every": 2, "dtype": "float32", "threads": 1}
TINY = [part for name, value in {**SIZES, **TIMES}.items() for part in (f"--{name}", value)]
BORDER = f"\n{END_OF_TEXT}\n"
Folder = Callable[[str], Path]  # a path of that name, in a folder where nothing else is

# Of runs that are compared with those of other numbers of processes.
# The learning rate of a step must not depend on how many there will be: some runs here end where they are stopped.
SHAPE = ("--n-layer", 2, "--accumulate", 2, "--val", 0.2, "--lr", 0.3, "--warmup", 1000, "--device", "cpu")
ADAMW = ("--optimizer", "adamw")  # the default with --shard
RHYTHM = ("--steps", 8, "--eval-every", 4, "--checkpoint-every", 4)


def write_text(file: Path, n_documents: int = 20) -> Path:
    file.write_text(
        BORDER.join(f"Tale {i}: the cat saw {i * 7} mice and ate {i}." for i in range(n_documents))
    )
    return file


def flags(text: Path, out: Path, *more: object) -> list[str]:
    """Those of a tiny run; of a flag that is given twice, the second counts."""
    files = ("--data", text, "--token-cache", text.parent / "tokens", "--out", out)
    return [str(flag) for flag in (*files, *TINY, *more)]


def train(*flags: object, terminal: bool = False) -> Result:
    """Runs the command in this process, without measuring the machine's peak, which takes a second."""
    out, err = io.StringIO(), io.StringIO()
    err.isatty = lambda: terminal  # type: ignore[method-assign]
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch("minigpt.training.hardware.matmul_rate", lambda *_: 1e9),
    ):
        code = command.main([str(flag) for flag in flags])
    return Result(code, out.getvalue(), err.getvalue())


def well(result: Result) -> list[str]:
    """What was said by a run that went well, line by line."""
    assert result.code == 0, result.err
    assert result.out == ""
    return said(result)


def said(result: Result) -> list[str]:
    lines = result.err.splitlines()
    assert all(line.startswith("minigpt.train: ") for line in lines), result.err
    return [line.removeprefix("minigpt.train: ") for line in lines]


def metrics(out: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [
        json.loads(line, parse_constant=refuse) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]


def learned(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """All that must be the same in two runs that are the same: metrics but for the clock, and all weights."""
    lines = [{k: v for k, v in line.items() if "second" not in k} for line in metrics(out)]
    return lines, [load_file(folder / "model.safetensors") for folder in (out, out / "best")]


def assert_same_run(out: Path, other: Path) -> None:
    (lines, models), (other_lines, other_models) = learned(out), learned(other)
    assert lines == other_lines
    for model, other_model in zip(models, other_models, strict=True):
        assert model.keys() == other_model.keys()
        assert all(torch.equal(model[name], other_model[name]) for name in model)


def assert_close(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def assert_like(run: Path, other: Path) -> None:
    """The same run, up to floating-point summation order: losses, validations, learning rates, weights; no step twice."""
    (lines, models), (other_lines, other_models) = learned(run), learned(other)
    assert [line["step"] for line in lines] == list(range(1, len(other_lines) + 1))
    for line, other_line in zip(lines, other_lines, strict=True):
        assert line == pytest.approx(other_line, rel=1e-5)
    for model, other_model in zip(models, other_models, strict=True):
        assert_close(model, other_model)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


# Long enough for checkpoints at 3, 6 and 8, and with all that is random.
STEPS = 8
RUN = ("--steps", STEPS, "--dropout", 0.1, "--accumulate", 2, "--checkpoint-every", 3)


def goes_on(text: Path, out: Path, whole: Path) -> list[str]:
    """Resumes a run to its end, where it must be the same as the whole one; what it said."""
    lines = well(train(*flags(text, out, *RUN, "--resume")))
    assert_same_run(out, whole)
    if not any("is finished" in line for line in lines):  # else it was killed while it tidied up
        assert checkpoints(out) == checkpoints(whole)
        assert contents(out).keys() == contents(whole).keys()  # nothing half written is left
    return lines


# ------------------------------------------------------------------------------ processes


@cache
def _context() -> ForkServerContext:
    """Processes that are forked from one that has imported torch already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["minigpt.training.api"])
    return context


def start(log: Path, *flags: object, before: Callable[[], object] | None = None) -> ForkServerProcess:
    """Runs the command in a process of its own; `before` is called there first, what it says is written to `log`."""
    process = _context().Process(target=_work, args=(log, [str(flag) for flag in flags], before), daemon=True)
    process.start()
    return process


def wait(process: ForkServerProcess) -> int:
    process.join(100)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


def run(log: Path, *flags: object, before: Callable[[], object] | None = None) -> Result:
    code = wait(start(log, *flags, before=before))
    return Result(code, "", log.read_text())


def _work(log: Path, flags: list[str], before: Callable[[], object] | None) -> None:
    sys.stderr = log.open("w", buffering=1)
    if before is not None:
        before()
    with patch("minigpt.training.hardware.matmul_rate", lambda *_: 1e9):
        code = command.main(flags)
    sys.stderr.flush()
    os._exit(code)


class KillAt:
    """Kills the process when it is about to touch a file of a folder for the n-th time.

    >>> KillAt(Path("out"), 3).matches("open", ("out/model.safetensors", "r", 0))
    True
    """

    EVENTS = re.compile(r"open|os\.(mkdir|rename|remove|rmdir|truncate|link)|shutil\.rmtree")

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.left = str(folder), n

    def __call__(self) -> None:
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.matches(event, args):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def matches(self, event: str, args: tuple[Any, ...]) -> bool:
        return bool(self.EVENTS.fullmatch(event)) and any(
            str(arg).startswith(self.folder) for arg in args[:2]
        )
