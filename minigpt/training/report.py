"""What a run reports while it runs: a progress bar, a line for each validation, metrics.jsonl, a curve at the end."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigpt.atomic import replace_text
from minigpt.cli.progress import bar
from minigpt.cli.table import json_line
from minigpt.json_files import counted, expect, field, parse

Log = Callable[[str], object]  # takes a message to the user
Callback = Callable[[Mapping[str, Any]], object]  # takes the metrics of a step

METRICS = "metrics.jsonl"
EVERY = 30.0  # seconds between two lines, at most, where no bar is shown
FIRST = 5.0  # seconds until the first of them, which says how long it will take
JUMP = 1.5  # times; a learning rate that rises by more when a run is resumed is reported


@dataclass
class TrainingReport:
    """Writes metrics and shows progress; one for rank 0, `SilentReport` for the others.

    Args:
        out: the run's folder.
        log: takes a message to the user.
        logger: "tensorboard", or None.
        peak_tokens_per_second: what the hardware would reach at its peak.
        callback: is given the metrics of every step.
        clock: seconds from any point in time on.
    """

    out: Path
    log: Log
    logger: str | None
    peak_tokens_per_second: float
    callback: Callback | None = None
    clock: Callable[[], float] = time.monotonic

    def begin(self, step: int, steps: int) -> None:
        """Removes from metrics.jsonl the steps after this one: they will be run again."""
        self._steps = steps
        kept = [line for line in read_metrics(self.out) if line["step"] <= step]
        replace_text(self.out / METRICS, "".join(map(json_line, kept)))
        self._file = (self.out / METRICS).open("a")
        self._board = _tensorboard(self.out, step + 1) if self.logger else None
        self._bar = bar(total=steps, initial=step, unit="step")
        self._last_line = self.clock() - EVERY + FIRST
        self._last_lr = kept[-1].get("lr") if kept else None

    def step(self, metrics: Mapping[str, Any]) -> None:
        """One step's metrics, with those of a validation if there was one."""
        self._report_jump(metrics)
        self._file.write(json_line(dict(metrics)))
        self._file.flush()
        self._bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {self._speed(metrics)}")
        self._bar.update()
        if self._board:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, metrics["step"])
        if self._bar.disable and self.clock() - self._last_line >= EVERY:
            self._line(metrics, f"loss {metrics['loss']:.4f}")
        if self.callback is not None:
            self.callback(metrics)

    def validation(self, metrics: Mapping[str, Any], sample: str) -> None:
        """A line with the validation's results, the speed, and what the model writes without a prompt."""
        m = metrics
        self._line(
            m,
            f"validation loss {m['val_loss']:.4f}, perplexity {m['val_perplexity']:.2f}, "
            f"{m['val_bits_per_byte']:.4f} bits per byte",
            f" | {sample}",
        )

    def end(self) -> None:
        """Closes all files, and draws the curve."""
        self._bar.close()
        self._file.close()
        if self._board:
            self._board.close()
        if find_spec("matplotlib") is None:
            self.log("no loss curve, for matplotlib is missing: pip install 'minigpt[plot]'")
            return
        from minigpt.training.loss_curve import loss_curve  # an optional package

        loss_curve(read_metrics(self.out), self.out / "loss.png")

    def _report_jump(self, metrics: Mapping[str, Any]) -> None:
        """Says at the first step of a resumed run if its learning rate is much higher than it was."""
        if self._last_lr and metrics["lr"] > JUMP * self._last_lr:
            self.log(
                f"the learning rate rises from {self._last_lr:.2g} to {metrics['lr']:.2g}: the schedule is stretched "
                f"to {self._steps} steps"
            )
        self._last_lr = None

    def _line(self, metrics: Mapping[str, Any], results: str, sample: str = "") -> None:
        step = metrics["step"]
        minutes = (self._steps - step) * metrics["seconds"] / step / 60
        left = f"{counted(round(minutes), 'minutes')} left"
        line = f"step {step} of {self._steps}: {results}; {self._speed(metrics)}, {left}{sample}"
        self._bar.clear()
        self.log(line)
        self._bar.refresh()
        self._last_line = self.clock()

    def _speed(self, metrics: Mapping[str, Any]) -> str:
        speed = f"{metrics['tokens_per_second']:,.0f} tokens/s"
        mfu = metrics["tokens_per_second"] / self.peak_tokens_per_second
        slowed = mfu > 1  # by other programs: the peak, while it was measured
        return speed if slowed else f"{speed}, {mfu:.0%} MFU"


class SilentReport:
    """The report of every process but rank 0: none."""

    def begin(self, step: int, steps: int) -> None: ...

    def step(self, metrics: Mapping[str, Any]) -> None: ...

    def validation(self, metrics: Mapping[str, Any], sample: str) -> None: ...

    def end(self) -> None: ...


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run, a dict for each step; lines that are damaged are left out, with a warning.

    A process that was killed may have left half of a line, and a bad disk anything.
    """
    path, metrics = out / METRICS, []
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for n, line in enumerate(lines, start=1):
        try:
            if line.endswith(b"\n"):
                entry = expect(dict, parse(line, path), path)
                field(int, entry, "step", path)
                field(float, entry, "loss", path)
                metrics.append(entry)
        except ValueError:  # of JSON or of UTF-8
            warnings.warn(f"{path}: line {n} is damaged, and left out", stacklevel=2)
    return metrics


def _tensorboard(out: Path, step: int) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter  # an optional package

    return SummaryWriter(out / "tensorboard", purge_step=step)  # forgets what was written of later steps
