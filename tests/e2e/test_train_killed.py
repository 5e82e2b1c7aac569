"""Resumed = uninterrupted, to the bit, wherever the run was killed, told to stop, or found its files damaged."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest
import trainer
from command import ROOT, start, wait
from trainer import (
    RUN,
    STEPS,
    KillAt,
    assert_same_run,
    checkpoints,
    flags,
    goes_on,
    metrics,
    said,
    train,
    well,
)  # fmt: skip

from minigpt import GPT2
from minigpt.training import checkpoints as checkpoints_module
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.learner import Learner

TOUCHED = 180  # files that a run of these touches, about, if each time counts


# ------------------------------------------------------------------------------ killed


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_any_file_that_it_touches(text: Path, whole: Path, tmp_path: Path, seed: int) -> None:
    """Not once but again and again, until it gets through."""
    out, log = tmp_path / "run", tmp_path / "log"
    chance = random.Random(seed)
    kills = [KillAt(out, chance.randrange(1, TOUCHED)) for _ in range(3)]
    codes = [trainer.run(log, *flags(text, out, *RUN, "--resume"), before=kill).code for kill in kills]
    assert codes[0] == -signal.SIGKILL
    assert {*codes[1:]} <= {0, -signal.SIGKILL}  # what is left to do may touch fewer files
    goes_on(text, out, whole)


def die(*_: object, **__: object) -> None:
    os._exit(9)


def die_in(owner: type, method: str, call: int, after: bool = False) -> None:
    """The `call`-th call of a method ends the process, before or after its work."""
    work, calls = getattr(owner, method), iter(range(1, 1000))

    def counting(*args: object, **how: object) -> object:
        last = next(calls) == call
        if last and not after:
            die()
        done = work(*args, **how)
        if last:
            die()
        return done

    setattr(owner, method, counting)


def die_half_way_through_a_file(call: int) -> None:
    """In the middle of writing the tensors of a checkpoint."""

    def half(folder: Path, *_: object) -> None:
        (tensors,) = folder.glob("*.distcp")
        os.truncate(tensors, tensors.stat().st_size // 2)
        die()

    seal, calls = checkpoints_module._seal, iter(range(1, 1000))
    checkpoints_module._seal = lambda *args: half(*args) if next(calls) == call else seal(*args)


KILLED = {
    "in the first step": (partial(die_in, Learner, "step", 1), 0),
    "in the step after a checkpoint": (partial(die_in, Learner, "step", 4), 3),
    "in the step before one": (partial(die_in, Learner, "step", 6), 3),
    "in the middle of the first checkpoint": (partial(die_half_way_through_a_file, 1), 0),
    "in the middle of the second": (partial(die_half_way_through_a_file, 2), 3),
    "before a checkpoint gets its name": (partial(die_in, Checkpoints, "_put", 2), 3),
    "between model and checkpoint": (partial(die_in, Checkpoints, "save", 2), 3),
    "after the checkpoint": (partial(die_in, Checkpoints, "save", 2, after=True), 6),
    "between the last model and its checkpoint": (partial(die_in, Checkpoints, "save", 3), 6),
    "after the last checkpoint": (partial(die_in, Checkpoints, "save", 3, after=True), 8),
    "while the best model is written": (partial(die_in, GPT2, "save_pretrained", 1), 0),
}


@pytest.mark.parametrize("when", KILLED)
def test_killed(text: Path, whole: Path, tmp_path: Path, when: str) -> None:
    before, last = KILLED[when]
    out = tmp_path / "run"
    assert trainer.run(tmp_path / "log", *flags(text, out, *RUN), before=before).code == 9
    lines = goes_on(text, out, whole)
    assert any("no checkpoint yet: starting from the beginning" in line for line in lines) == (last == 0)
    assert any("is finished" in line for line in lines) == (last == STEPS)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_killed_with_any_optimiser_and_schedule(
    text: Path, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    given = (*RUN, "--optimizer", optimizer, "--schedule", schedule, "--warmup", 2)
    out, whole = tmp_path / "run", tmp_path / "whole"
    well(train(*flags(text, whole, *given)))
    kill = partial(die_in, Learner, "step", 8)
    assert trainer.run(tmp_path / "log", *flags(text, out, *given), before=kill).code == 9
    assert checkpoints(out) == ["step-00000003", "step-00000006"]
    well(train("--resume", "--out", out))
    assert_same_run(out, whole)


def test_half_a_line_of_metrics_is_written_again(text: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        trainer.run(tmp_path / "log", *flags(text, out, *RUN), before=KILLED["after the checkpoint"][0]).code
        == 9
    )
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    goes_on(text, out, whole)


# ------------------------------------------------------------------------------ told to stop


def sends(monkeypatch: pytest.MonkeyPatch, *signals: signal.Signals, step: int) -> None:
    """Somebody sends signals while a step is at work."""
    work = Learner.step

    def signalled(learner: Learner, number: int) -> object:
        for one in signals if number == step - 1 else ():
            os.kill(os.getpid(), one)
        return work(learner, number)

    monkeypatch.setattr(Learner, "step", signalled)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 6])
def test_told_to_stop_it_finishes_the_step(
    text: Path,
    whole: Path,
    tmp_path: Path,
    number: signal.Signals,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        sends(patched, number, step=step)
        result = train(*flags(text, out, *RUN))
    assert result.code == 130
    assert said(result)[-1].startswith(f"stopped at step {step}")
    assert said(result)[-1].endswith(f"{out} holds the model, `minigpt train --resume --out {out}` continues")
    assert [line["step"] for line in metrics(out)] == list(range(1, step + 1))
    assert checkpoints(out)[-1] == f"step-{step:08}"
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    GPT2.from_pretrained(out)
    goes_on(text, out, whole)


def test_told_to_stop_in_the_last_step_it_is_done(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends(monkeypatch, signal.SIGINT, step=STEPS)
    well(train(*flags(text, tmp_path / "run", *RUN)))
    assert_same_run(tmp_path / "run", whole)


def test_a_second_ctrl_c_stops_at_once(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        sends(patched, signal.SIGTERM, signal.SIGINT, step=5)
        assert train(*flags(text, out, *RUN)).code == 130
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]
    assert checkpoints(out) == ["step-00000003"]
    goes_on(text, out, whole)


def test_a_second_ctrl_c_does_not_wait_for_a_checkpoint(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def signalled(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr("torch.distributed.checkpoint.filesystem.FileSystemWriter.write_data", signalled)
        result = train(*flags(text, out, *RUN))
    assert (result.code, len(said(result))) == (130, 2)  # the summary, and the validation of step 3
    assert checkpoints(out) == []
    goes_on(text, out, whole)


def test_ctrl_c_as_a_user_presses_it(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(*flags(text, out, "--steps", 10**6), python=("-m", "minigpt.train"))
    assert process.stderr is not None
    begun = [process.stderr.readline() for _ in range(3)]
    assert b"which reads it 50 times" in begun[1]
    assert b"step 3 of 1000000" in begun[2]
    process.send_signal(signal.SIGINT)
    result = wait(process)
    assert result.code == 130
    step = metrics(out)[-1]["step"]
    assert said(result)[-1].startswith(f"stopped at step {step}, ")
    assert checkpoints(out)[-1] == f"step-{step:08}"


def test_ctrl_c_of_the_bundled_models_script_waits_for_the_checkpoint_of_its_run(
    text: Path, tmp_path: Path
) -> None:
    """A terminal sends it to both processes; the script must not kill the run, whose step may take long."""
    out = tmp_path / "run"
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import train_bundled; "
    script += "train_bundled.minigpt('train', *sys.argv[1:])"
    process = start(*flags(text, out, "--steps", 10**6), python=("-c", script), start_new_session=True)
    assert process.stderr is not None
    while b"step 3 of 1000000" not in process.stderr.readline():
        pass
    os.killpg(process.pid, signal.SIGINT)
    result = wait(process)
    assert result.code == 130
    assert said(result)[-1].startswith(f"stopped at step {metrics(out)[-1]['step']}, ")
