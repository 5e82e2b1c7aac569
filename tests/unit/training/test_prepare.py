"""From a request to a run: which documents it learns, and which it is judged by."""

from __future__ import annotations

from collections.abc import Callable
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


def begun(
    text: Path, seed: int, log: Callable[[str], object] = lambda line: None, **more: object
) -> TrainingRun:
    """A run before its first step."""
    given = {name.replace("-", "_"): value for name, value in SIZES.items()}
    given |= {
        "data": (str(text),),
        "token_cache": str(text.parent / "tokens"),
        "val": "0.2",
        "seed": seed,
        "dtype": "float32",
        **more,
    }
    request = RunRequest.make(text.parent / f"run-{seed}", given, resume=False)
    return prepare(request, torch.device("cpu"), Processes(), log, None)


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


@pytest.mark.parametrize(
    ("given", "of_a_step"), [({}, "4 x 16 tokens"), ({"accumulate": 2}, "2 x 4 x 16 tokens")]
)
def test_it_says_how_often_the_text_is_read(text: Path, given: dict[str, int], of_a_step: str) -> None:
    lines: list[str] = []
    n_tokens = begun(text, 0).learner.windows.n_tokens
    begun(text, 0, lines.append, steps=3, **given)
    times = 3 * 64 * given.get("accumulate", 1) / n_tokens
    assert f"; 3 steps of {of_a_step}: the text is read {times:.2g} times; " in lines[0]
    assert len(lines) == 1


def test_a_run_too_long_for_its_text_is_told_a_length_that_is_not(text: Path) -> None:
    lines: list[str] = []
    n_tokens = begun(text, 0).learner.windows.n_tokens
    begun(text, 0, lines.append, steps=100_000)
    enough = 50 * n_tokens // 64
    times = f"{100_000 * 64 / n_tokens:,.0f}"
    assert lines[1:] == [
        f"warning: the text is read {times} times, and will be learned by heart: give more text, or --steps {enough}, "
        "which reads it 50 times"
    ]
    lines.clear()
    begun(text, 0, lines.append, steps=enough)
    assert len(lines) == 1
