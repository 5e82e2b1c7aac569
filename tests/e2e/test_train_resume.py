"""Going on with a run: begun, finished, damaged, or ended by a full disk or a loss that is NaN or infinite."""

from __future__ import annotations

import json
import math
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import trainer
from trainer import (
    RUN,
    STEPS,
    assert_same_run,
    checkpoints,
    contents,
    flags,
    goes_on,
    metrics,
    said,
    train,
    well,
)  # fmt: skip

from minigpt.training import hardware as machine
from minigpt.training import prepare
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.learner import Learner
from minigpt.training.report import TrainingReport
from minigpt.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def stopped(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped at its second checkpoint."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patched:
        changed(patched, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(*flags(text, out, *RUN)).code == 130
    assert checkpoints(out) == ["step-00000003", "step-00000006"]
    return out


@pytest.fixture
def out(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def changed(patched: pytest.MonkeyPatch, step: int, change: Callable[[], object]) -> None:
    """Something happens in a step."""
    work = Learner.step

    def changed(learner: Learner, number: int) -> object:
        if number == step - 1:
            change()
        return work(learner, number)

    patched.setattr(Learner, "step", changed)


def says(lines: list[str], *words: str) -> None:
    missing = [word for word in words if not any(word in line for line in lines)]
    assert not missing, f"{lines} do not say {missing}"


# ------------------------------------------------------------------------------ at any point


def test_a_run_that_there_is_not_is_begun(text: Path, whole: Path, tmp_path: Path) -> None:
    says(goes_on(text, tmp_path / "run", whole), f"{tmp_path / 'run'} holds no run to resume: starting one")


def test_nothing_but_the_folder_need_be_given_again(out: Path, whole: Path) -> None:
    lines = well(train("--resume", "--out", out))
    assert not [line for line in lines if "is damaged (" in line or "beginning" in line]
    assert_same_run(out, whole)


def test_what_is_measured_anew_changes_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dtype auto is decided once: a run must not go on in another type because the machine is busy."""
    given = (*RUN, "--dtype", "auto")
    well(train(*flags(text, tmp_path / "whole", *given)))
    with monkeypatch.context() as patched:
        changed(patched, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(*flags(text, tmp_path / "run", *given)).code == 130
    monkeypatch.setattr(machine, "FASTER", 0.5)
    well(train("--resume", "--out", tmp_path / "run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_begun_with_relative_paths_is_resumed_from_another_folder(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    with monkeypatch.context() as patched:
        changed(patched, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(*flags(Path(text.name), tmp_path / "run", *RUN)).code == 130
    monkeypatch.chdir(tmp_path)
    lines = well(train("--resume", "--out", "run"))
    says(lines, "resuming at step 6 of 8, from run/checkpoints/step-00000006")
    assert_same_run(tmp_path / "run", whole)


def test_a_run_of_version_0_1_is_resumed(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its run.json has fewer settings and facts: AdamW and a cosine were all there was."""
    given = (*RUN, "--optimizer", "adamw")
    well(train(*flags(text, tmp_path / "whole", *given)))
    with monkeypatch.context() as patched:
        changed(patched, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(*flags(text, tmp_path / "run", *given)).code == 130
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    for name in ("lora_alpha", "optimizer", "adamw_lr", "schedule", "decay", "keep_every"):
        del facts["settings"][name]
    del facts["base_sha256"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    well(train("--resume", "--out", tmp_path / "run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_held_out_documents_by_its_own_seed_keeps_to_them(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of version 0.1 did; else it would learn what it has been judged by."""
    given = (*RUN, "--val", 0.3, "--seed", 5)
    monkeypatch.setattr(prepare, "HELD_OUT_SEED", 5)
    well(train(*flags(text, tmp_path / "whole", *given)))
    with monkeypatch.context() as patched:
        changed(patched, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert train(*flags(text, tmp_path / "run", *given)).code == 130
    monkeypatch.undo()
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts.pop("held_out_seed") == 5
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    well(train("--resume", "--out", tmp_path / "run"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["held_out_seed"] == 5


def test_a_run_without_a_checkpoint_starts_from_the_beginning(
    text: Path, whole: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(out / "checkpoints")
    says(goes_on(text, out, whole), "no checkpoint yet: starting from the beginning")


def test_a_schedule_that_is_stretched_says_how_the_learning_rate_jumps(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    lines = well(train("--resume", "--out", out, "--steps", 20))
    last, first = metrics(out)[STEPS - 1]["lr"], metrics(out)[STEPS]["lr"]
    assert first > 1.5 * last
    says(
        lines,
        f"the learning rate rises from {last:.2g} to {first:.2g}: the schedule is stretched to 20 steps",
    )


@pytest.mark.parametrize("more", [(), ("--logger", "tensorboard"), ("--steps", 3)], ids=str)
def test_a_finished_run_stays_as_it_is(
    text: Path, whole: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    before = contents(out)
    lines = well(train("--resume", "--out", out, *more))
    assert lines[-1] == f"{out} is finished, at step {STEPS}; give more --steps to extend it"
    assert contents(out) == before


def test_more_steps_go_on_from_the_end(whole: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    before = (out / "metrics.jsonl").read_text()
    says(well(train("--resume", "--out", out, "--steps", STEPS + 3)), f"done at step {STEPS + 3}")
    assert (out / "metrics.jsonl").read_text().startswith(before)
    assert [line["step"] for line in metrics(out)] == list(range(1, STEPS + 4))
    assert checkpoints(out) == ["step-00000009", "step-00000011"]


def test_more_steps_may_be_given_piece_by_piece(text: Path, tmp_path: Path) -> None:
    """With a warmup longer than the run, the learning rate of a step does not depend on how many there are."""
    given = (*RUN, "--warmup", 100)
    well(train(*flags(text, tmp_path / "whole", *given)))
    well(train(*flags(text, tmp_path / "run", *given, "--steps", 5)))
    well(train("--resume", "--out", tmp_path / "run", "--steps", STEPS))
    lines, models = trainer.learned(tmp_path / "run")
    whole_lines, whole_models = trainer.learned(tmp_path / "whole")
    assert [line["loss"] for line in lines] == [line["loss"] for line in whole_lines]
    assert all(torch.equal(models[0][name], tensor) for name, tensor in whole_models[0].items())


# ------------------------------------------------------------------------------ damage


def newest(out: Path) -> Path:
    return out / "checkpoints" / checkpoints(out)[-1]


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path, place: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)


def replace(old: str, new: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text().replace(old, new))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "tensors cut off": ("*.distcp", shorten),
    "tensors with another bit": ("*.distcp", flip),
    "tensors gone": ("*.distcp", Path.unlink),
    "metadata cut off": (".metadata", shorten),
    "metadata with another bit": (".metadata", flip),
    "metadata gone": (".metadata", Path.unlink),
    "seal cut off": ("seal.json", shorten),
    "seal empty": ("seal.json", lambda file: file.write_bytes(b"")),
    "seal gone": ("seal.json", Path.unlink),
    "seal of another step": ("seal.json", replace('"step": 6', '"step": 7')),
    "seal with another fact": ("seal.json", replace('"step"', '"stop"')),
    "seal that is a list": ("seal.json", lambda file: file.write_text("[]")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    text: Path, out: Path, whole: Path, damage: str
) -> None:
    name, spoil = DAMAGE[damage]
    (file,) = newest(out).glob(name)
    spoil(file)
    lines = goes_on(text, out, whole)
    says(lines, f"{newest(out).with_name('step-00000006')} is damaged (", "falling back to the one before")
    before = contents(out)
    says(well(train("--resume", "--out", out)), "is finished")
    for step in checkpoints(out):  # the damaged one, too, was written again
        assert {f"checkpoints/{step}/seal.json", f"checkpoints/{step}/.metadata"} <= before.keys()
    shutil.rmtree(newest(out))
    lines = well(train("--resume", "--out", out))
    assert not [line for line in lines if "is damaged (" in line]


@pytest.mark.parametrize("seed", range(4))
def test_any_flipped_bit_changes_no_result(text: Path, out: Path, whole: Path, seed: int) -> None:
    chance = random.Random(seed)
    flip(chance.choice(sorted(newest(out).iterdir())), chance.random())
    goes_on(text, out, whole)


def test_nothing_but_damage_starts_from_the_beginning(text: Path, out: Path, whole: Path) -> None:
    for file in (out / "checkpoints").rglob("*.distcp"):
        flip(file)
    lines = goes_on(text, out, whole)
    says(lines, "step-00000003 is damaged", "step-00000006 is damaged", "starting from the beginning")


# ------------------------------------------------------------------------------ what ends a run


def full(owner: type, method: str, call: int, most: int) -> None:
    """From the `call`-th call of a method on, no file can be longer than that."""
    work, calls = getattr(owner, method), iter(range(1, 1000))

    def limited(*args: object, **how: object) -> object:
        if next(calls) == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        return work(*args, **how)

    setattr(owner, method, limited)


# What is said goes to a file, too, which has room.
FULL = {
    "the first checkpoint": (
        Checkpoints,
        "save",
        1,
        5000,
        ["of step 3: File too large", "no checkpoint yet"],
    ),
    "a later one": (
        Checkpoints,
        "save",
        2,
        5000,
        ["of step 6: File too large", "checkpoint of step 3 is good"],
    ),
    "the model": (
        RunFolder,
        "_save",
        4,
        5000,
        ["model.safetensors cannot be written", "step 3 is good"],
    ),
    "the best model": (
        RunFolder,
        "_save",
        1,
        5000,
        ["model.safetensors cannot be written", "no checkpoint yet"],
    ),
    "metrics": (TrainingReport, "step", 5, 800, ["File too large", "step 3 is good"]),
    "the curve": (TrainingReport, "end", 1, 5000, ["File too large", "step 8 is good"]),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk(text: Path, whole: Path, tmp_path: Path, what: str) -> None:
    *where, words = FULL[what]
    out = tmp_path / "run"
    result = trainer.run(tmp_path / "log", *flags(text, out, *RUN), before=partial(full, *where))
    assert result.code == 1
    *_, line = said(result)
    says([line], *words, "make room, then resume")
    goes_on(text, out, whole)


def test_a_loss_that_is_no_number(
    text: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, nan = tmp_path / "run", torch.tensor(math.nan)
    with monkeypatch.context() as patched:
        work = Learner.step
        patched.setattr(Learner, "step", lambda self, n: (nan, nan) if n == 4 else work(self, n))
        result = train(*flags(text, out, *RUN))
    assert result.code == 1
    says(said(result)[-1:], "step 5: the loss is nan", "checkpoint of step 3 is unharmed", "a lower --lr")
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4]
    assert checkpoints(out) == ["step-00000003"]
    goes_on(text, out, whole)


def test_a_learning_rate_beyond_all_measure(text: Path, tmp_path: Path) -> None:
    result = train(*flags(text, tmp_path / "run", "--lr", "1e6", "--steps", 50, "--checkpoint-every", 50))
    assert result.code == 1
    assert metrics(tmp_path / "run")  # which refuses Infinity and NaN, as no JSON
    last = said(result)[-1]
    assert re.search(
        r"step \d+: .* is (inf|nan)", last
    )  # which of the two comes first is up to a kernel's order of addition
    says([last], "no checkpoint yet", "a lower --lr, a longer --warmup")
