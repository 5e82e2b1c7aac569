"""What a run says while it runs: a bar, a line for each validation, metrics.jsonl, and a curve at the end."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigpt.atomic import replace_text
from minigpt.cli.progress import bar

METRICS = "metrics.jsonl"


class Report:
    """Writes metrics and tells the user; one for the first process, `Silence` for the others."""

    def __init__(self, out: Path, tell: Callable[[str], None], logger: str | None) -> None:
        self.out, self.tell, self.logger = out, tell, logger

    def begin(self, step: int, steps: int) -> None:
        """Forgets what metrics.jsonl says of steps after this one: they will be run again."""
        self.steps = steps
        kept = [line for line in _lines(self.out / METRICS) if line["step"] <= step]
        replace_text(self.out / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = (self.out / METRICS).open("a")
        self.board = _tensorboard(self.out, step + 1) if self.logger else None
        self.bar = bar(total=steps, initial=step, unit="step")  # elsewhere a line a validation says enough

    def step(self, metrics: Mapping[str, Any], share_of_peak: float) -> None:
        """One step's numbers, with those of a validation if there was one."""
        self.file.write(json.dumps(metrics) + "\n")
        self.file.flush()
        speed = f"{metrics['tokens_per_second']:,.0f} tokens/s, {share_of_peak:.0%} of peak"
        self.bar.set_postfix_str(f"loss {metrics['loss']:.3f}, {speed}")
        self.bar.update()
        if self.board:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, metrics["step"])

    def validation(self, metrics: Mapping[str, Any], share_of_peak: float, sample: str) -> None:
        """A line that says how well the model does, how fast it learns, and what it would write by itself."""
        m = metrics
        left = (self.steps - m["step"]) * m["seconds"] / m["step"]
        self.bar.clear()
        self.tell(
            f"step {m['step']} of {self.steps}: validation loss {m['val_loss']:.4f}, perplexity "
            f"{m['val_perplexity']:.2f}, {m['val_bits_per_byte']:.4f} bits per byte; {m['tokens_per_second']:,.0f} "
            f"tokens/s, {share_of_peak:.0%} of peak, {left / 60:.0f} minutes left | {sample}"
        )
        self.bar.refresh()

    def end(self) -> None:
        """Closes all, and draws the curve."""
        self.bar.close()
        self.file.close()
        if self.board:
            self.board.close()
        if find_spec("matplotlib") is None:
            self.tell("no loss curve, for matplotlib is missing: pip install 'minigpt[plot]'")
            return
        from minigpt.plot import loss_curve

        loss_curve(_lines(self.out / METRICS), self.out / "loss.png")


class Silence:
    """The report of every process but the first."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None


def _lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a process that was killed may have left half of one, and a bad disk anything."""
    found = []
    for n, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else [], start=1):
        try:
            if line.endswith(b"\n"):
                found.append(json.loads(line))
        except ValueError:  # of JSON or of UTF-8
            warnings.warn(f"{path}: line {n} is damaged, and left out", stacklevel=2)
    return found


def _tensorboard(out: Path, step: int) -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(out / "tensorboard", purge_step=step)  # what was said of later steps is forgotten
