"""Texts, runs that nobody interrupted, and a model: made once for all files of tests that read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import save, tiny
from trainer import ADAMW, RHYTHM, RUN, SHAPE, STEPS, Folder, flags, metrics, train, well, write_text


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A path of that name, in a folder where nothing else is."""
    return lambda name: tmp_path_factory.mktemp("run") / name


@pytest.fixture(scope="session")
def guesses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with a context length of 32, whose tokens are bytes."""
    return save(tmp_path_factory.mktemp("guesses"), tiny(initializer_range=0.5))


@pytest.fixture(scope="session")
def text(folder: Folder) -> Path:
    return write_text(folder("tales.txt"))


@pytest.fixture(scope="session")
def whole(text: Path, folder: Folder) -> Path:
    """A run with all that is random: what those that are stopped, killed or damaged must come to."""
    out = folder("whole")
    well(train(*flags(text, out, *RUN)))
    assert [line["step"] for line in metrics(out)] == list(range(1, STEPS + 1))
    return out


@pytest.fixture(scope="session")
def long_text(folder: Folder) -> Path:
    return write_text(folder("long.txt"), n_documents=40)


@pytest.fixture(scope="session")
def alone(long_text: Path, folder: Folder) -> Path:
    """A run in one process: what those of several must come to."""
    out = folder("alone")
    well(train(*flags(long_text, out, *SHAPE, *ADAMW, *RHYTHM)))
    losses = [line["loss"] for line in metrics(out)]
    assert losses[-1] < losses[0] - 0.1
    return out
