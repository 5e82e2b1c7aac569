"""What a training run is asked to be: new settings, or those of a run to resume. Nothing here needs torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigpt.atomic import UNFINISHED, check_writable, named_folder
from minigpt.cli.parser import meant_flag
from minigpt.errors import InvalidRequest
from minigpt.options import flag_of
from minigpt.training import settings as run_settings
from minigpt.training.settings import RUN, Settings, fraction_in


@dataclass(frozen=True)
class RunRequest:
    """The settings of a run, its folder, and what run.json says of it if it was begun before.

    Args:
        settings: those of the run to resume, with what was given anew in their place.
        out: the run's folder.
        resume: whether a run in that folder may be resumed.
        saved: the facts in its run.json; empty for a new run.
    """

    settings: Settings
    out: Path
    resume: bool
    saved: Mapping[str, Any]

    @classmethod
    def make(cls, out: str | os.PathLike[str], given: Mapping[str, Any], resume: bool) -> RunRequest:
        """Checks the settings that were given, and reads the others from the run to resume if there is one.

        Raises:
            InvalidRequest: a setting is wrong or cannot change, or the folder is in use.
        """
        # what is no user stays as it is, as in a shell
        out = Path(os.path.expanduser(named_folder("--out", out)))
        try:
            if _holds_run(out, resume):
                settings, saved = run_settings.load(out)
                request = cls(settings.with_changes(absolute_paths(given)), out, resume, saved)
            else:
                request = cls(Settings(**absolute_paths(given)), out, resume, {})
            request._check()
        except ValueError as error:
            raise InvalidRequest(error) from error
        return request

    @property
    def was_begun(self) -> bool:
        """Whether the run was begun before."""
        return bool(self.saved)

    def for_one_process(self) -> RunRequest:
        """The same for a process started by itself: a run that several began with sharded weights goes on in it.

        Raises:
            InvalidRequest: a new run is to be sharded.
        """
        if self.settings.shard and not self.was_begun:
            raise InvalidRequest("--shard splits a model over several processes: start them with torchrun")
        return self.for_processes(1)

    def for_processes(self, world_size: int) -> RunRequest:
        """The same for so many processes, started by torchrun; of a single one, others may join later."""
        if not self.settings.shard or world_size > 1:
            return self
        later = self.settings.optimizer or "adamw"  # with which the others can go on
        return replace(self, settings=replace(self.settings, shard=False, optimizer=later))

    def _check(self) -> None:
        if not self.settings.data and self.resume:
            raise ValueError(
                f"--resume: {self.out} holds no run; name the folder of one, or give --data to begin there"
            )
        if not self.settings.data:
            raise ValueError("--data is required: name a text file, a .jsonl file, or a folder of them")
        if self.settings.logger is not None and find_spec("tensorboard") is None:
            raise ValueError("--logger tensorboard needs it installed: pip install 'minigpt[tensorboard]'")


def refuse_unknown(names: Iterable[str]) -> None:
    """Refuses what is no setting, and names the right one where it goes by another name elsewhere.

    Raises:
        InvalidRequest: there is no such setting.

    >>> refuse_unknown(["learning_rate"])
    Traceback (most recent call last):
        ...
    minigpt.errors.InvalidRequest: train has no setting 'learning_rate': use lr; help(minigpt.training.settings.Settings) lists all
    """
    flags = [flag_of(f.name) for f in fields(Settings)]
    for name in names:
        if flag_of(name) not in flags or "-" in name:
            meant = re.sub(
                r"--([\w-]+)", lambda flag: flag[1].replace("-", "_"), meant_flag(flag_of(name), flags)
            )
            advice = f": {meant}" if meant else ""
            raise InvalidRequest(
                f"train has no setting {name!r}{advice}; help(minigpt.training.settings.Settings) lists all"
            )


def _holds_run(out: Path, resume: bool) -> bool:
    """Whether the folder holds a run to resume; refuses a folder in which something would be overwritten."""
    has_run = (out / RUN).is_file()
    if has_run and not resume:
        raise ValueError(f"--out {out} holds a run already: resume it by --resume, or name another folder")
    if has_run:
        return True
    if out.exists() and (not out.is_dir() or any(not p.name.startswith(UNFINISHED) for p in out.iterdir())):
        raise ValueError(f"--out {out} holds something else: nothing is overwritten; name another folder")
    try:
        check_writable(out)
    except ValueError as error:
        raise ValueError(f"--out {error}") from None
    return False


def absolute_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """Some settings with every path made absolute, so that the run can be resumed from any folder.

    Names of models that are no folders, such as those on the hub, stay as they are.
    """
    values = dict(given)
    if "data" in values:
        values["data"] = tuple(map(_absolute, values["data"]))
    if "val" in values and fraction_in(values["val"]) is None:
        values["val"] = _absolute(values["val"])
    for name in {"tokenizer", "init"} & values.keys():
        values[name] = _absolute_folder(values[name])
    if "teacher" in values:
        values["teacher"] = tuple(map(_absolute_folder, values["teacher"]))
    if "token_cache" in values:
        values["token_cache"] = _absolute(values["token_cache"])
    return values


def _absolute(name: Any) -> Any:
    """An absolute path; what is none at all, or empty, stays as it is, for `Settings` to refuse."""
    return os.path.abspath(os.path.expanduser(name)) if isinstance(name, str) and name else name


def _absolute_folder(name: Any) -> Any:
    """The absolute path of a folder; a name that is none stays as it is."""
    return _absolute(name) if isinstance(name, str) and os.path.isdir(_absolute(name)) else name
