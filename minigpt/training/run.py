"""A training run from its beginning, or from its last checkpoint, to its end."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import takewhile
from types import FrameType
from typing import Any

import torch

from minigpt.sampler import generate
from minigpt.sampler.strategies.sample import Sample
from minigpt.training.learner import Learner
from minigpt.training.report import Log, SilentReport, TrainingReport
from minigpt.training.run_folder import RunFolder
from minigpt.training.validation import Validation

SAMPLE_TOKENS = 30


class Diverged(ValueError):
    """The loss is NaN or infinite."""


class CannotWrite(OSError):
    """Something of a run could not be written; its checkpoints are unharmed."""


@dataclass
class TrainingProgress:
    """How far a run has come, as its checkpoints say."""

    step: int = 0
    seconds: float = 0.0  # spent on steps
    best: float | None = None  # the lowest validation loss


class TrainingRun:
    """Steps, validations and checkpoints in their order.

    Args:
        learner: does the steps.
        validation: measures the model.
        folder: where the models and checkpoints go.
        report: writes metrics and shows progress.
    """

    def __init__(
        self,
        learner: Learner,
        validation: Validation,
        folder: RunFolder,
        report: TrainingReport | SilentReport,
    ) -> None:
        self.learner, self.validation, self.folder, self.report = learner, validation, folder, report
        self.settings, self.processes = learner.settings, learner.processes
        self.progress = TrainingProgress()
        self.saved = 0  # the step of the last checkpoint

    def restore(self, log: Log) -> None:
        """Goes back to the newest checkpoint that is whole, or to the beginning if there is none."""
        checkpoints = self.folder.checkpoints
        newest = self.processes.broadcast(checkpoints.newest(log) if self.processes.is_main else None)
        if newest is None:
            log("no checkpoint yet: starting from the beginning")
            return
        path, facts = newest
        checkpoints.load(path, self.learner.state())
        self.progress = TrainingProgress(**facts)
        self.saved = self.progress.step
        if not self.finished:
            log(f"resuming at step {self.saved} of {self.settings.steps}, from {path}")

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.settings.steps

    def go(self) -> bool:
        """Runs to the end; False if it was asked to stop before.

        Raises:
            Diverged: the loss is no longer finite.
            CannotWrite: the disk is full, or otherwise unwilling.
        """
        try:
            return self._go()
        except OSError as error:
            kept = (
                f"the checkpoint of step {self.saved} is good" if self.saved else "there is no checkpoint yet"
            )
            raise CannotWrite(f"{error}; {kept}: make room, then resume") from error

    def _go(self) -> bool:
        stopped = False
        self.folder.begin(self.settings)
        self.report.begin(self.progress.step, self.settings.steps)
        try:
            with _stop_signals() as asked:
                while not (self.finished or stopped):
                    stopped = self._step(asked)
        except BaseException:
            with suppress(OSError):  # what is reported is the first error, not that of a full disk after it
                self.report.end()
            raise
        self.report.end()
        return self.finished

    def _step(self, asked: list[int]) -> bool:
        """One step and what is due after it; whether a stop was asked for."""
        began = time.monotonic()
        loss, norm = self.learner.step(self.progress.step)
        # One exchange for both: all processes must stop at the same step.
        both = self.processes.total(torch.stack([loss, torch.full_like(loss, len(asked))]))
        total, stops, grad_norm = torch.stack([*both, norm]).tolist()  # the one time that a GPU is waited for
        taken = time.monotonic() - began
        self.progress.step += 1
        self.progress.seconds += taken
        metrics = self._metrics(total / self.processes.world_size, grad_norm, taken)
        stopped = bool(stops)
        if self.progress.step % self.settings.eval_every == 0 or self.finished:
            metrics |= self._validated()
            self.report.validation(metrics, self._sample())
        try:
            self.report.step(metrics)
        except KeyboardInterrupt:  # of a callback: stop as by Ctrl-C, all processes at the same step
            asked.append(signal.SIGINT)
        self._save_step()
        if self.progress.step % self.settings.checkpoint_every == 0 or self.finished or stopped:
            self.save()
        return stopped

    def _metrics(self, loss: float, norm: float, taken: float) -> dict[str, Any]:
        step, s = self.progress.step, self.settings
        self._refuse_divergence(loss=loss, gradient_norm=norm)
        tokens = s.batch_size * s.accumulate * self.learner.windows.length
        return {
            "step": step,
            "loss": loss,
            "lr": self.learner.optimisers[0].param_groups[0]["lr"],
            "grad_norm": norm,
            "tokens": step * tokens,
            "seconds": round(self.progress.seconds, 3),
            "tokens_per_second": round(tokens / taken, 1),
        }

    def _validated(self) -> dict[str, float]:
        """The validation loss, and what follows from it; the best weights so far are kept."""
        learner = self.learner
        # As many rows as in training, which fit into memory.
        rows = max(1, self.settings.batch_size // self.processes.world_size)
        score = self.validation.score(
            learner.parallel.forward, rows, learner.device, self.processes, learner.autocast
        )
        self._refuse_divergence(validation_loss=score.loss)
        if self.progress.best is None or score.loss < self.progress.best:
            self.progress.best = score.loss
            self.folder.save_best(self.learner.model)
        return {
            "val_loss": score.loss,
            "val_perplexity": score.perplexity,
            "val_bits_per_byte": score.bits_per_byte,
        }

    def _refuse_divergence(self, **values: float) -> None:
        wrong = [f"the {name.replace('_', ' ')} is {value}" for name, value in values.items()
                 if not math.isfinite(value)]  # fmt: skip
        if wrong:
            last = f"the checkpoint of step {self.saved} is unharmed" if self.saved else "no checkpoint yet"
            raise Diverged(
                f"step {self.progress.step}: {' and '.join(wrong)} ({last}); "
                "begin in another --out with a lower --lr, a longer --warmup, or --dtype float32"
            )

    def _sample(self) -> str:
        """What the model would write without a prompt, in one line."""
        model, tokenizer = self.learner.model, self.folder.tokenizer
        start, length = tokenizer.end_token or 0, min(SAMPLE_TOKENS, model.config.n_positions)
        model.eval()
        # In all processes, for a sharded model needs them all; each for as long as the others, whatever it samples.
        strategy = Sample(top_p=0.9, seed=0)
        ((text,),) = generate(model, [[start]], strategy, max_new_tokens=length, end_tokens=[])
        model.train()
        tokens = takewhile(lambda token: token != tokenizer.end_token, text.tokens)
        words = " ".join(tokenizer.decode(list(tokens)).split())
        return "".join(c if c.isprintable() else "\ufffd" for c in words)  # terminals obey some of the others

    def save(self) -> None:
        """Writes the model as it is now, and a checkpoint."""
        # In this order: a run killed in between does these steps again, and never ends without its last model.
        self.folder.save_last(self.learner.model)
        self.folder.checkpoints.save(self.progress.step, self.learner.state(), asdict(self.progress))
        self.saved = self.progress.step

    def _save_step(self) -> None:
        """Keeps the weights of this step, if they were asked for."""
        every = self.settings.keep_every
        if every is not None and self.progress.step % every == 0:
            self.folder.save_step(self.learner.model, self.progress.step)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals that asked for a stop; the step at work is finished first. A second Ctrl-C stops at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python hands signals to the main thread alone
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
