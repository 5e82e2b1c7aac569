"""What a run has written of its steps it finds again; what it reports while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt.training.report import EVERY, METRICS, SilentReport, TrainingReport, read_metrics


def metrics(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 2.0, "lr": 0.1, "seconds": 60.0 * step, "tokens_per_second": 50.0, **more}


def report(
    folder: Path, monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float] = lambda: 0.0, **how: Any
) -> tuple[TrainingReport, list[str]]:
    """One that draws no curve, and what it says."""
    monkeypatch.setattr("minigpt.training.report.find_spec", lambda name: None)
    lines: list[str] = []
    return TrainingReport(folder, lines.append, None, 100.0, clock=clock, **how), lines


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS).read_text().splitlines()]


def begin(folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = report(folder, monkeypatch)
    one.begin(step, steps=9)
    one.end()


def test_steps_that_will_be_run_again_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / METRICS).write_text("".join(f'{{"step": {i}, "loss": 1.0}}\n' for i in range(1, 6)) + '{"st')
    begin(tmp_path, 3, monkeypatch)
    assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("damage", [
    b'{"step": 2, "lo\x00s', b"\xff\xfe", b"", b"5", b"{}", b'{"step": 2}', b'{"step": "x", "loss": 1}', b'{"step": 2, "loss": "x"}',
    b'{"step": 2, "loss": Infinity}', b"[" * 100_000,
])  # fmt: skip
def test_a_damaged_line_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "loss": 2}\n' + damage + b'\n{"step": 3, "loss": 2}\n')
    with pytest.warns(UserWarning, match=r"metrics.jsonl: line 2 is damaged, and left out"):
        begin(tmp_path, 3, monkeypatch)
    assert steps(tmp_path) == [1, 3]


def test_without_a_terminal_there_is_a_line_every_30_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    one, lines = report(tmp_path, monkeypatch, lambda: now)
    one.begin(0, steps=100)
    for step in range(1, 11):
        now += 0.4 * EVERY
        one.step(metrics(step))
    one.end()
    assert [line.split(":")[0] for line in lines[:-1]] == [f"step {n} of 100" for n in (1, 4, 7, 10)]
    assert lines[0] == "step 1 of 100: loss 2.0000; 50 tokens/s, 50% MFU, 99 minutes left"


def test_the_first_line_does_not_wait_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    one, lines = report(tmp_path, monkeypatch, lambda: now)
    one.begin(0, steps=100)
    for step in range(1, 13):
        now += 1.0
        one.step(metrics(step))
    one.end()
    assert [line.split(":")[0] for line in lines[:-1]] == ["step 5 of 100"]


def test_a_speed_above_the_measured_peak_has_no_mfu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, lines = report(tmp_path, monkeypatch)
    one.begin(0, steps=2)
    one.validation(
        metrics(1, val_loss=1.0, val_perplexity=2.7, val_bits_per_byte=0.5, tokens_per_second=101.0), "a"
    )
    one.end()
    assert "bits per byte; 101 tokens/s, 1 minute left" in lines[0]


def test_a_validation_is_a_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    one, lines = report(tmp_path, monkeypatch, lambda: now)
    one.begin(0, steps=2)
    now += EVERY
    judged = metrics(1, val_loss=1.0, val_perplexity=2.71828, val_bits_per_byte=0.5)
    one.validation(judged, "a sample")
    one.step(judged)
    one.end()
    (line, _) = lines
    assert line.startswith(
        "step 1 of 2: validation loss 1.0000, perplexity 2.72, 0.5000 bits per byte; 50 tokens/s"
    )
    assert line.endswith(" 1 minute left | a sample")


def test_metrics_that_exceed_a_float_are_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = report(tmp_path, monkeypatch)
    one.begin(0, steps=1)
    one.step(metrics(1, val_perplexity=float("inf")))
    one.end()
    assert "Infinity" not in (tmp_path / METRICS).read_text()
    assert read_metrics(tmp_path)[0]["val_perplexity"] is None


@pytest.mark.parametrize(
    ("before", "after", "reported"), [(0.004, 2.6, True), (0.1, 0.1, False), (0.1, 0.09, False)]
)
def test_a_learning_rate_that_jumps_on_resuming_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: float, after: float, reported: bool
) -> None:
    (tmp_path / METRICS).write_text(json.dumps(metrics(1, lr=before)) + "\n")
    one, lines = report(tmp_path, monkeypatch)
    one.begin(1, steps=9)
    one.step(metrics(2, lr=after))
    one.step(metrics(3, lr=after * 2))
    one.end()
    message = (
        f"the learning rate rises from {before:.2g} to {after:.2g}: the schedule is stretched to 9 steps"
    )
    assert lines[:-1] == [message] * reported


def test_a_callback_sees_the_metrics_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    one, _ = report(tmp_path, monkeypatch, callback=seen.append)
    one.begin(0, steps=2)
    for step in (1, 2):
        one.step(metrics(step))
    one.end()
    assert seen == [metrics(1), metrics(2)] == read_metrics(tmp_path)


def test_other_processes_report_nothing_but_know_the_same_words() -> None:
    public = {name for name in vars(TrainingReport) if not name.startswith("_")} - {
        *TrainingReport.__annotations__
    }
    assert public == {name for name in vars(SilentReport) if not name.startswith("_")}
    with pytest.raises(AttributeError):
        SilentReport().stepp()  # type: ignore[attr-defined]
