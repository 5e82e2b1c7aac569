"""The folder of a run: run.json, the last model, the best one, an adapter by itself, and checkpoints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt import weights
from minigpt.atomic import remove_unfinished
from minigpt.errors import InvalidRequest
from minigpt.model import GPT2
from minigpt.tokenizer import Tokenizer
from minigpt.training import adapters, lora
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.distributed import Processes
from minigpt.training.settings import Settings

if sys.platform != "win32":
    import fcntl

BEST, ADAPTER, CHECKPOINTS = "best", "adapter", "checkpoints"
STEPS = "steps"  # of --keep-every; minigpt.interp.series reads them


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from running in a folder, until the block ends or this process does, however it ends.

    On Windows, which has no such locks, it keeps nobody out.

    Raises:
        InvalidRequest: another process is running there, or the folder cannot be made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):  # doctest: +ELLIPSIS
    ...     with locked(Path(folder)):
    ...         pass
    Traceback (most recent call last):
    minigpt.errors.InvalidRequest: ... is in use: another process trains into it; wait for its end, or name another --out
    """
    if sys.platform == "win32":
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InvalidRequest(
            f"--out {folder} cannot be written to ({error.strerror}): name another"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise InvalidRequest(
            f"{folder} is in use: another process trains into it; wait for its end, or name another --out"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@dataclass(frozen=True)
class RunFolder:
    """Writes what a run leaves behind: rank 0 does, but all call together, for each may hold a shard of the weights.

    Args:
        path: the folder.
        tokenizer: saved beside every model.
        facts: what run.json says beside the settings.
        processes: which of how many this one is.
    """

    path: Path
    tokenizer: Tokenizer
    facts: Mapping[str, Any]
    processes: Processes

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path / CHECKPOINTS, self.processes)

    def begin(self, settings: Settings) -> None:
        """Removes what a killed process left half written, and writes the settings."""
        if self.processes.is_main:
            for folder in (self.path, self.path / BEST, *self.path.glob(f"{STEPS}/*")):
                remove_unfinished(folder)
            settings.save(self.path, self.facts)  # first: by it a folder is known to hold a run
            self.tokenizer.save_pretrained(self.path)

    def save_last(self, model: GPT2) -> None:
        """Writes the model as it is now, in the place of the last one."""
        self._save(model, self.path)

    def save_best(self, model: GPT2) -> None:
        """Writes the model of the lowest validation loss, in the place of the best one before it."""
        self._save(model, self.path / BEST)

    def save_step(self, model: GPT2, step: int) -> None:
        """Writes the model of a step into a subfolder of its own, where no later one replaces it."""
        self._save(model, self.path / STEPS / f"step-{step:08}")

    def _save(self, model: GPT2, folder: Path) -> None:
        """Writes a model, whole or sharded, that every command and transformers load; an adapter also by itself."""
        plain, adapter = model, None
        if lora.lora_linears(model):
            plain, adapter = lora.merge(model), adapters.tensors_of(model)
        if not self.processes.is_main:
            weights.take_part_in_save(plain.state_dict())
            return
        if adapter is not None:
            adapters.write(model, adapter, folder / ADAPTER, base=self.facts["base"])
        self.tokenizer.save_pretrained(folder)
        plain.save_pretrained(folder)
