"""The same analysis over the course of a training run: when did the head form?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from minigpt.cli.progress import bar
from minigpt.json_files import counted
from minigpt.model import GPT2

STEPS = "steps"  # the subfolder of a run in which `minigpt train --keep-every N` keeps weights
Result = TypeVar("Result")


class Series(Mapping[int, GPT2]):
    """The models that a run has kept, by step; each is loaded when it is asked for."""

    def __init__(self, folders: Mapping[int, Path]) -> None:
        self._folders = dict(sorted(folders.items()))

    def __getitem__(self, step: int) -> GPT2:
        if step not in self._folders:
            raise KeyError(f"step {step} was not kept; there are {', '.join(map(str, self._folders))}")
        return GPT2.from_pretrained(self._folders[step])

    def __iter__(self) -> Iterator[int]:
        return iter(self._folders)

    def __len__(self) -> int:
        return len(self._folders)

    def run(self, analysis: Callable[[GPT2], Result]) -> dict[int, Result]:
        """What the analysis says of the model at each step; Ctrl-C keeps what is done."""
        results: dict[int, Result] = {}
        try:
            for step in bar(self, desc="steps", leave=False):
                results[step] = analysis(self[step])
        except KeyboardInterrupt:
            pass
        return results

    def __repr__(self) -> str:
        steps = list(self._folders)
        return f"Series({counted(len(self), 'models')}, steps {steps[0]} to {steps[-1]})"


def series(out: str | os.PathLike[str]) -> Series:
    """The models of a training run that was started with `--keep-every N` (in Python `train(keep_every=N)`).

    Args:
        out: the run's folder.

    Raises:
        ValueError: the run has kept none.

    >>> import tempfile
    >>> from minigpt import GPT2Config
    >>> run = Path(tempfile.mkdtemp())
    >>> config = GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    >>> for step in (100, 200):
    ...     GPT2(config).save_pretrained(run / "steps" / f"step-{step:08}")
    >>> series(run).run(lambda model: model.config.n_layer)
    {100: 1, 200: 1}
    """
    # The weights are written last: without them, a step is not whole.
    models = Path(out, STEPS).glob("step-*/model.safetensors")
    folders = {int(path.parent.name.removeprefix("step-")): path.parent for path in models}
    if not folders:
        raise ValueError(f"{out} has kept no steps: train with --keep-every N (keep_every=N)")
    return Series(folders)
