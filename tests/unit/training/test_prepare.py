"""From a request to a run: which documents it learns, and which it is judged by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trainer import SIZES, write_text

from minigpt.training.distributed import Processes
from minigpt.training.prepare import prepare
from minigpt.training.request import RunRequest
from minigpt.training.run import TrainingRun


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "tales.txt", n_documents=40)


def begun(text: Path, seed: int) -> TrainingRun:
    """A run before its first step."""
    given = {name.replace("-", "_"): value for name, value in SIZES.items()}
    given |= {
        "data": (str(text),),
        "token_cache": str(text.parent / "tokens"),
        "val": "0.2",
        "seed": seed,
        "dtype": "float32",
    }
    request = RunRequest.make(text.parent / f"run-{seed}", given, resume=False)
    return prepare(request, torch.device("cpu"), Processes(), lambda line: None, None)


def test_every_seed_is_judged_by_the_same_documents_and_learns_the_others(text: Path) -> None:
    runs = [begun(text, seed) for seed in range(4)]
    first, *others = (run.validation.windows for run in runs)
    assert all(torch.equal(first, windows) for windows in others)
    learned, *rest = (sorted(map(tuple, run.learner.windows.tokens.spans.tolist())) for run in runs)
    assert all(learned == spans for spans in rest)
    assert len(learned) < 40


def test_every_seed_reads_in_an_order_of_its_own_from_weights_of_its_own(text: Path) -> None:
    first, other = begun(text, 0), begun(text, 1)
    assert not torch.equal(first.learner.windows.rows(range(8)), other.learner.windows.rows(range(8)))
    weights, others = (run.learner.model.token_embedding.weight for run in (first, other))
    assert not torch.equal(weights, others)
