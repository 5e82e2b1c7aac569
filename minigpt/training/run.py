"""A training run from its beginning, or from its last checkpoint, to its end."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from minigpt.atomic import remove_unfinished
from minigpt.sampler import generate
from minigpt.sampler.strategies.sample import Sample
from minigpt.tokenizer import Tokenizer
from minigpt.training import adapters, lora
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.evaluate import Validation
from minigpt.training.learner import Learner
from minigpt.training.report import Report, Silence

SAMPLE = 30  # tokens


class Diverged(ValueError):
    """The loss is no longer a number."""


@dataclass
class Progress:
    """How far a run has come, as its checkpoints say."""

    step: int = 0
    seconds: float = 0.0  # spent on steps
    best: float = math.inf  # the lowest validation loss


class Run:
    """Steps, validations and checkpoints in their order.

    Args:
        learner: does the steps.
        validation: what to be judged by.
        out: the run's folder: the last weights, `best`, `checkpoints`, metrics.
        tokenizer: for the sampled lines, and saved beside the weights.
        facts: what run.json says beside the settings.
        checkpoints: where to go on from, and what to leave behind.
        report: whom to tell.
        most_tokens_per_second: what the machine would reach at its peak.
    """

    def __init__(
        self,
        learner: Learner,
        validation: Validation,
        out: Path,
        tokenizer: Tokenizer,
        facts: Mapping[str, Any],
        checkpoints: Checkpoints,
        report: Report | Silence,
        most_tokens_per_second: float,
    ) -> None:
        self.learner, self.validation, self.out, self.tokenizer = learner, validation, out, tokenizer
        self.facts, self.checkpoints, self.report = facts, checkpoints, report
        self.most_tokens_per_second = most_tokens_per_second
        self.settings, self.processes = learner.settings, learner.processes
        self.progress = Progress()
        self.saved = 0  # the step of the last checkpoint

    def restore(self, tell: Callable[[str], None]) -> bool:
        """Goes back to the newest checkpoint; whether there was one."""
        found = self.checkpoints.newest(tell)
        if found is None:
            return False
        path, facts = found
        self.checkpoints.load(path, self.learner.state())
        self.progress = Progress(**facts)
        self.saved = self.progress.step
        return True

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.settings.steps

    def go(self) -> bool:
        """Runs to the end; False if it was told to stop before.

        Raises:
            Diverged: the loss is no longer finite.
            OSError: something could not be written.
        """
        stopped = False
        if self.processes.first:
            for folder in (self.out, self.out / "best"):
                remove_unfinished(folder)
            self.settings.save(self.out, self.facts)  # first: by it a folder is known to hold a run
            self.tokenizer.save_pretrained(self.out)
        self.report.begin(self.progress.step, self.settings.steps)
        try:
            with _stop_signals() as asked:
                while not (self.finished or stopped):
                    stopped = self._step(asked)
        except BaseException:
            with suppress(OSError):  # what is told is the first error, not that of a full disk after it
                self.report.end()
            raise
        self.report.end()
        return self.finished

    def _step(self, asked: list[int]) -> bool:
        """One step and what is due after it; whether somebody asked to stop."""
        began = time.monotonic()
        loss, norm = self.learner.step(self.progress.step)
        # One exchange for both: all processes must stop at the same step.
        both = self.processes.total(torch.stack([loss, loss.new_tensor(len(asked))]))
        taken = time.monotonic() - began
        self.progress.step += 1
        self.progress.seconds += taken
        metrics = self._metrics(both[0].item() / self.processes.world, norm.item(), taken)
        stopped = both[1].item() > 0
        share_of_peak = metrics["tokens_per_second"] / self.most_tokens_per_second
        if self.progress.step % self.settings.eval_every == 0 or self.finished:
            metrics |= self._validated()
            sample = self._sample()
            self.report.validation(metrics, share_of_peak, sample)
        self.report.step(metrics, share_of_peak)
        if self.progress.step % self.settings.checkpoint_every == 0 or self.finished or stopped:
            self.save()
        return stopped

    def _metrics(self, loss: float, norm: float, taken: float) -> dict[str, Any]:
        step, s = self.progress.step, self.settings
        if not (math.isfinite(loss) and math.isfinite(norm)):
            last = f"the checkpoint of step {self.saved} is unharmed" if self.saved else "no checkpoint yet"
            raise Diverged(
                f"step {step}: the loss is {loss}, its gradient {norm} ({last}); "
                "begin in another --out with a lower --lr, a longer --warmup, or --dtype float32"
            )
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
        score = self.validation.score(
            learner.spread.forward, self._rows(), learner.device, self.processes, learner.autocast
        )
        if score.loss < self.progress.best:
            self.progress.best = score.loss
            self._export(self.out / "best")
        return {
            "val_loss": score.loss,
            "val_perplexity": score.perplexity,
            "val_bits_per_byte": score.bits_per_byte,
        }

    def _sample(self) -> str:
        """What the model would write of its own accord, in one line."""
        model = self.learner.spread.gathered()
        if not self.processes.first:
            return ""
        start = self.tokenizer.end_token or 0
        length = min(SAMPLE, model.config.n_positions)
        model.eval()
        ((text,),) = generate(model, [[start]], Sample(top_p=0.9, seed=0), max_new_tokens=length)
        model.train()
        words = " ".join(self.tokenizer.decode(text.tokens).split())
        return "".join(c if c.isprintable() else "\ufffd" for c in words)  # terminals obey some of the others

    def _rows(self) -> int:
        """Rows that fit into memory: as many as in training."""
        return max(1, self.settings.batch_size // self.processes.world)

    def save(self) -> None:
        """Writes the model as it is now, and a checkpoint."""
        # In this order: a run killed in between does these steps again, and never ends without its last model.
        self._export(self.out)
        self.checkpoints.save(self.progress.step, self.learner.state(), asdict(self.progress))
        self.saved = self.progress.step

    def _export(self, folder: Path) -> None:
        """Writes a folder that every command and transformers load; adapters also by themselves."""
        model = self.learner.spread.gathered()
        if not self.processes.first:
            return
        if self.settings.lora is not None:
            adapters.save_adapter(model, folder / "adapter", base=self.facts["base"])
            model = lora.merge(model)
        self.tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals that asked for a stop; the step at work is finished first. A second Ctrl-C stops at once."""
    asked: list[int] = []

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
