"""Checkpoints of a run: written aside, sealed with their checksums, renamed; the newest whole one is found again.

A checkpoint is a folder in torch.distributed.checkpoint's format, which any number of processes reads and
writes. `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE` makes one file of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from minigpt.atomic import UNFINISHED, remove_unfinished
from minigpt.json_files import field, read_object
from minigpt.training.distributed import Processes

MANIFEST = "seal.json"  # written last: the facts of the run at this step, and the sha256 of them and every other file
FACTS = "facts"
NAME = re.compile(r"step-\d{8,}")
KEPT = 2  # the newest and the one before it, in case the newest is damaged


class Checkpoints:
    """The checkpoints in a folder, one subfolder a step."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.processes = folder, processes

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Writes one; all processes call it together. Older ones than the last two are removed.

        Raises:
            OSError: it could not be written; those before it are as they were.
        """
        facts = {**facts, "step": step}
        target = self.folder / f"step-{step:08}"
        aside = self.folder / f"{UNFINISHED}{target.name}"
        if self.processes.is_main:
            remove_unfinished(self.folder)
            aside.mkdir(parents=True)
        self.processes.wait()
        try:
            with _single_process_is_fine():
                state_dict_saver.save(dict(state), checkpoint_id=aside)
            own = self.processes.gather(_sums(aside.glob(f"__{self.processes.rank}_*")))
            if self.processes.is_main:
                _seal(aside, facts, {name: sha256 for sums in own for name, sha256 in sums.items()})
                self._put(aside, target)
        except (CheckpointException, OSError) as error:
            if self.processes.is_main:
                shutil.rmtree(aside, ignore_errors=True)
            cause = _cause(error)
            if isinstance(cause, KeyboardInterrupt):  # nothing is wrong: the user does not want to wait
                raise cause from None
            reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())
            raise OSError(f"cannot write the checkpoint of step {step}: {reason}") from error
        self.processes.wait()

    def _put(self, aside: Path, target: Path) -> None:
        """Gives a finished checkpoint its name, and removes those that are no longer needed.

        Only what `save` has written is removed: a user may keep anything beside it, under any name.
        """
        for path in self._written():
            if path >= target:  # damaged, or the run would be there
                shutil.rmtree(path)
        if target.exists() or target.is_symlink():
            raise FileExistsError(errno.EEXIST, f"{target} is in the way, and not of this run: move it")
        os.rename(aside, target)
        for path in self._written()[:-KEPT]:
            shutil.rmtree(path)

    def newest(self, log: Callable[[str], object]) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, and its facts; damaged ones are reported."""
        for path in reversed(self._steps()):
            try:
                return path, _open_sealed(path)
            except ValueError as error:
                log(f"{path} is damaged ({error}); falling back to the one before")
        return None

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Reads a checkpoint into the tensors of `state`, whichever processes wrote it."""
        with _single_process_is_fine():
            state_dict_loader.load(state, checkpoint_id=path)

    def _steps(self) -> list[Path]:
        """Every folder that has a checkpoint's name, the oldest first."""
        return sorted(
            path for path in self.folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()
        )

    def _written(self) -> list[Path]:
        """Those that `save` has written and nobody has renamed, whole or damaged."""
        return [path for path in self._steps() if not path.is_symlink() and _is_ours(path)]


def _is_ours(folder: Path) -> bool:
    """Whether `save` has written a folder: it says the step that its name says, or is damaged and holds no more."""
    step = int(folder.name.removeprefix("step-"))
    try:
        if field(dict, read_object(folder / MANIFEST), FACTS, MANIFEST).get("step") == step:
            return True
        _open_sealed(folder)
        return False  # a whole one that was renamed
    except (OSError, ValueError):
        return all(
            path.suffix == ".distcp" or path.name in (".metadata", MANIFEST) for path in folder.iterdir()
        )


def _seal(folder: Path, facts: Mapping[str, Any], shards: Mapping[str, str]) -> None:
    others = _sums(file for file in folder.iterdir() if file.name not in shards)
    sums = {FACTS: _sha256(facts), **shards, **others}
    with (folder / MANIFEST).open("w") as opened:
        json.dump({FACTS: dict(facts), "sha256": sums}, opened)
        opened.flush()
        os.fsync(opened.fileno())


def _sums(files: Iterable[Path]) -> dict[str, str]:
    """The sha256 of some files by their names, when they are on the disk and not only on their way there."""
    sums = {}
    for file in sorted(files):
        sums[file.name] = _sha256(file)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # a power cut must not undo it
    return sums


def _open_sealed(folder: Path) -> dict[str, Any]:
    """The facts of a checkpoint, when every file is as it was written.

    Raises:
        ValueError: one is not; the message names it.
    """
    try:
        seal = read_object(folder / MANIFEST)
        facts = field(dict, seal, FACTS, MANIFEST)
        for name, sha256 in field(dict, seal, "sha256", MANIFEST).items():
            if sha256 != _sha256(facts if name == FACTS else folder / name):
                raise ValueError(f"{name} has changed")
        return facts
    except OSError as error:
        raise ValueError(str(error)) from None


def _sha256(of: Path | Mapping[str, Any]) -> str:
    if not isinstance(of, Path):
        return hashlib.sha256(json.dumps(dict(of)).encode()).hexdigest()
    with of.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _single_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
        warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
        yield


def _cause(error: BaseException) -> BaseException:
    """The first process's own error, out of all that torch wraps around it."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error
