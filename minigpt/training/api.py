"""Training from Python: `train` makes a run, runs it to its end, and returns what it has made."""

from __future__ import annotations

import math
import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minigpt.cli.machine import device as device_of
from minigpt.errors import InvalidRequest
from minigpt.json_files import counted
from minigpt.model import GPT2
from minigpt.pretrained import load
from minigpt.tokenizer import Tokenizer
from minigpt.training.distributed import Processes, joined
from minigpt.training.hardware import keep_freed_memory
from minigpt.training.prepare import prepare
from minigpt.training.report import Callback, Log, read_metrics
from minigpt.training.request import RunRequest, refuse_unknown
from minigpt.training.run import TrainingRun
from minigpt.training.run_folder import locked

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Trained(NamedTuple):
    """A trained model, its tokenizer, and the metrics of every step."""

    model: GPT2
    tokenizer: Tokenizer
    metrics: list[dict[str, Any]]

    def __repr__(self) -> str:
        last = self.metrics[-1]
        losses = [line["val_loss"] for line in self.metrics if line.get("val_loss") is not None]
        lowest = f", lowest validation loss {min(losses):.4f}" if losses else ""
        n = sum(p.numel() for p in self.model.parameters())
        return (
            f"Trained({counted(last['step'], 'steps')}, loss {last['loss']:.4f}{lowest}; {n:,} parameters, "
            f"vocabulary {self.tokenizer.vocab_size:,})"
        )


def train(
    *,
    out: str | os.PathLike[str],
    data: Paths = (),
    resume: bool = False,
    callback: Callback | None = None,
    log: Log | None = None,
    **settings: Any,
) -> Trained:
    """Trains a GPT-2 on text files, from scratch or from a pretrained model; `minigpt.train` is this on the command line.

    A progress bar is shown on a terminal and in a notebook. Ctrl-C, or a notebook's stop button, ends the run
    after the current step with a checkpoint, and the model as it is then is returned; `resume=True` continues.

    Args:
        out: the run's folder, new or to be resumed: the last model, the best one in `best`, metrics.jsonl, checkpoints.
        data: text files, .jsonl files, or folders of them; may be left out with `resume`.
        resume: continue the run in `out` from its newest checkpoint, if there is one.
        callback: is given the metrics of every step, a dict; a KeyboardInterrupt that it raises stops the run as
            Ctrl-C does.
        log: takes every line of text that a run reports; to stderr unless given.
        settings: the flags of the command with underscores: `steps=500, init="bundled", lora=8`, ... See
            `minigpt.training.settings.Settings`.

    Returns:
        model: the last one, in evaluation mode; an adapter is merged into it.
        tokenizer: what it reads.
        metrics: a dict for each step: step, loss (with teachers, the weighted one), lr, grad_norm, tokens, seconds,
            tokens_per_second, and where there was a validation val_loss, val_perplexity, val_bits_per_byte.

    Raises:
        InvalidRequest: a setting or a text is wrong, or there is no such setting: the message names the right one.
        Diverged: the loss is no longer finite; a ValueError.
        OSError: a model does not exist, or something cannot be written (`CannotWrite`).

    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "tale.txt").write_text("Once upon a time there was a king. " * 40)
    >>> model, tokenizer, metrics = train(
    ...     data=folder / "tale.txt", out=folder / "run", token_cache=folder, tokenizer="bytes", n_layer=1,
    ...     n_embd=16, context=16, steps=3, dtype="float32", log=lambda line: None)
    >>> [line["step"] for line in metrics], model.config.n_layer
    ([1, 2, 3], 1)
    """
    refuse_unknown(settings)
    given = {name: _plain(value) for name, value in settings.items() if value is not None}
    if "val" in given:
        given["val"] = str(given["val"])  # a fraction is a number here, and a flag's text on the command line
    if data:
        given["data"] = _several(data)
    if "teacher" in given:
        given["teacher"] = _several(given["teacher"])
    request = RunRequest.make(out, given, resume)
    run_to_end(request, _to_stderr if log is None else log, callback)
    model, tokenizer = load(request.out)
    return Trained(model, tokenizer, read_metrics(request.out))


def run_to_end(request: RunRequest, log: Log, callback: Callback | None = None) -> bool:
    """Runs what is asked for in this process, or in all that torchrun started; False if it was stopped before its end.

    Raises:
        InvalidRequest, Diverged: a setting or a text is wrong, or the loss is no longer finite.
        OSError: a model does not exist; `CannotWrite` if something of the run cannot be written.
    """
    settings = request.settings
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = device_of(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    with joined(device) as processes:
        if not processes.is_main:
            warnings.simplefilter("ignore")  # rank 0 warns of the same
            log = _discard
        torchrun = "RANK" in os.environ
        request = request.for_processes(processes.world_size) if torchrun else request.for_one_process()
        finished = _prepare_and_run(request, device, processes, log, callback)
        processes.wait()  # rank 0 writes longest, and when one process exits, torchrun stops the others
        return finished


def _prepare_and_run(
    request: RunRequest, device: torch.device, processes: Processes, log: Log, callback: Callback | None
) -> bool:
    """The run, from its beginning or its newest checkpoint.

    A function of its own, so that the run is gone when the processes part: DistributedDataParallel would
    otherwise be the last to hold gloo, and hang now and then, when it waits for gloo's thread, which waits
    for Python's lock (torch 2.13).
    """
    if request.resume and not request.was_begun:
        log(f"{request.out} holds no run to resume: starting one")
    try:
        run = prepare(request, device, processes, log, callback)
    except ValueError as error:  # a text, tokenizer or model cannot be used; from here on, one is a bug
        raise InvalidRequest(error) from error
    with locked(request.out) if processes.is_main else nullcontext():
        return _run(run, request, log)


def _run(run: TrainingRun, request: RunRequest, log: Log) -> bool:
    """The run to its end, in a folder where no other process is running.

    Raises:
        InvalidRequest: the folder is another one on another host.
    """
    try:
        run.processes.check_shared(request.out)
    except ValueError as error:
        raise InvalidRequest(error) from error
    if request.was_begun:
        run.restore(log)
    if run.finished:
        log(f"{request.out} is finished, at step {run.progress.step}; give more --steps to extend it")
        return True
    finished = run.go()
    p = run.progress
    best = "" if p.best is None or p.best == math.inf else f", lowest validation loss {p.best:.4f}"
    log(
        f"{'done' if finished else 'stopped'} at step {p.step}{best}; {request.out} holds the model"
        + ("" if finished else f", `{_resuming(request.out, run.processes.world_size)}` continues")
    )
    return finished


def _resuming(out: Path, world_size: int) -> str:
    """The command that resumes a run; torchrun's own flags are those that it was started with.

    >>> _resuming(Path("my tales"), world_size=1)
    "minigpt train --resume --out 'my tales'"
    """
    start = "minigpt train" if world_size == 1 else "torchrun ... -m minigpt.train"
    return f"{start} --resume --out {shlex.quote(str(out))}"


def _plain(value: Any) -> Any:
    """A setting as the command line gives it: paths as strings."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _several(paths: Any) -> tuple[Any, ...]:
    """A setting of several paths as the command line gives it; a single one may stand by itself."""
    several = isinstance(paths, Iterable) and not isinstance(paths, str | bytes)
    return tuple(map(_plain, paths if several else [paths]))


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _discard(line: str) -> None:
    pass
