"""`minigpt.train` in two processes, started by torchrun: the run of one process, up to floating-point summation order.

The processes talk over gloo, on the CPU. Each start takes seconds, so most tests look at the same few runs.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from command import Result, start
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from trainer import (
    ADAMW,
    RHYTHM,
    SHAPE,
    Folder,
    assert_close,
    assert_like,
    checkpoints,
    flags,
    metrics,
    said,
    train,
    well,
)

from minigpt.weights import to_theirs

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMAND = ("-m", "minigpt.train")
ENDLESS = ("--steps", 3000)

ADAPTER = (
    "--lora", 2, "--batch-size", 4, "--val", 0.2, "--lr", 1, "--warmup", 1000, "--eval-every", 2,
    "--dtype", "float32", "--device", "cpu", "--threads", 1,
)  # fmt: skip

# The command, without the second of measuring. In a step, counted from 0, it may send a signal. Nor may DDP be there
# when the processes part: gloo would end under Python's lock, and in one run of thirty wait for a thread that waits
# for the lock.
WORKER = """
import gc, os, signal, sys
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from minigpt import train
from minigpt.training import hardware
from minigpt.training.learner import Learner

def part(part=distributed.destroy_process_group):
    assert not any(type(thing) is DistributedDataParallel for thing in gc.get_objects())
    part()

def step(self, number, step=Learner.step):
    if (number, self.processes.rank) == {step_and_rank}:
        os.kill({whom}, signal.{signal})
    return step(self, number)

Learner.step, distributed.destroy_process_group, hardware.matmul_rate = step, part, lambda *_: 1e9
sys.exit(train.main())
"""

# torch.save, in torch's own converter of checkpoints, calls a class of its own that it warns of
pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")


def torchrun(*flags: object, worker: Path | None = None) -> Result:
    """Runs the command in two processes, to its end."""
    process = start(*(COMMAND if worker is None else (worker,)), *flags, python=TORCHRUN)
    try:
        out, err = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun passes it on
        process.communicate(timeout=60)
        raise
    return Result(process.returncode, out.decode(), err.decode())


def write_worker(
    file: Path, step_and_rank: tuple[int, int] = (-1, 0), whom: str = "os.getpid()", signal: str = "SIGTERM"
) -> Path:
    file.write_text(WORKER.format(step_and_rank=step_and_rank, whom=whom, signal=signal))
    return file


def ours(result: Result) -> list[str]:
    """What we said among all that torchrun says; a traceback of ours is not to be found there."""
    assert "[rank" not in result.err, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("minigpt.train: ")]
    return said(Result(result.code, "", "\n".join(lines)))


def left_at(step: int, run: Path, out: Path) -> Path:
    """A copy of a run, as if it had come no further than to a checkpoint."""
    shutil.copytree(run, out)
    for checkpoint in checkpoints(out):
        if checkpoint > f"step-{step:08}":
            shutil.rmtree(out / "checkpoints" / checkpoint)
    return out


@pytest.fixture(scope="module")
def doubled(alone: Path, folder: Folder) -> tuple[Path, list[str]]:
    """One process to step 4, two to the end; and what those said."""
    out = left_at(4, alone, folder("doubled"))
    result = torchrun(
        "--resume", "--out", out, "--checkpoint-every", 2, worker=write_worker(folder("worker.py"))
    )
    assert result.code == 0, result.err
    return out, ours(result)


@pytest.fixture(scope="module")
def split(alone: Path, folder: Folder) -> tuple[Path, list[str]]:
    """One process to step 4; then two, each with half of the weights, of which the second gets SIGTERM in step 6."""
    out = left_at(4, alone, folder("split"))
    worker = write_worker(folder("worker.py"), step_and_rank=(5, 1))
    result = torchrun("--resume", "--shard", "--out", out, *ENDLESS, worker=worker)
    assert result.code != 0
    return out, ours(result)


@pytest.fixture(scope="module")
def interrupted(alone: Path, long_text: Path, folder: Folder) -> tuple[Path, list[str]]:
    """An adapter learnt by two processes, each with half of the base, until torchrun gets SIGINT in step 3.

    That is what Ctrl-C does: torchrun has its workers in sessions of their own, and hands signals on.
    """
    out, files = folder("interrupted"), ("--data", long_text, "--token-cache", long_text.parent / "tokens")
    worker = write_worker(folder("worker.py"), (2, 0), "os.getppid()", "SIGINT")
    result = torchrun(*files, "--init", alone, "--out", out, *ADAPTER, *ENDLESS, "--shard", worker=worker)
    assert result.code != 0
    return out, ours(result)


# ------------------------------------------------------------------------------ the same run


def test_two_processes_go_on_where_one_stopped(alone: Path, doubled: tuple[Path, list[str]]) -> None:
    assert_like(doubled[0], alone)


def test_one_process_goes_on_where_two_stopped(
    alone: Path, doubled: tuple[Path, list[str]], folder: Folder
) -> None:
    out = left_at(6, doubled[0], folder("back"))
    assert checkpoints(out) == ["step-00000006"]
    well(train("--resume", "--out", out))
    assert_like(out, alone)


@pytest.mark.parametrize("how", [(), ("--shard",)], ids=["whole", "sharded"])
def test_muon_takes_the_same_steps_in_two_processes(
    long_text: Path, folder: Folder, how: tuple[str, ...]
) -> None:
    one, two = folder("one"), folder("two")
    given = (*SHAPE, "--optimizer", "muon", "--lr", 0.02, "--warmup", 2, "--schedule", "wsd", *RHYTHM)
    well(train(*flags(long_text, one, *given)))
    result = torchrun(*flags(long_text, two, *given, *how), worker=write_worker(folder("worker.py")))
    assert result.code == 0, result.err
    back = left_at(4, two, folder("back"))
    well(train("--resume", "--out", back))
    losses = [[line["loss"] for line in metrics(out)] for out in (one, two, back)]
    # Muon rounds to bfloat16: what differs by an order of sums may fall to the other side
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.1


@pytest.mark.parametrize("how", [(), ("--shard",)], ids=["whole", "sharded"])
def test_two_processes_are_taught_as_one_is(
    alone: Path, long_text: Path, folder: Folder, how: tuple[str, ...]
) -> None:
    one, two = folder("one"), folder("two")
    given = (*SHAPE, *ADAMW, *RHYTHM, "--seed", 1, "--teacher", alone, "--teacher", alone / "best")
    well(train(*flags(long_text, one, *given)))
    result = torchrun(*flags(long_text, two, *given, *how), worker=write_worker(folder("worker.py")))
    assert result.code == 0, result.err
    assert_like(two, one)


def test_a_message_is_said_once(doubled: tuple[Path, list[str]]) -> None:
    beginning, resuming, validation, end = doubled[1]
    assert " parameters (2 layers" in beginning
    assert resuming.startswith("resuming at step 4 of 8, from ")
    assert validation.startswith("step 8 of 8: validation loss")
    assert end.startswith("done at step 8")


@pytest.mark.parametrize("which", ["doubled", "split"])
def test_a_checkpoint_is_in_pytorchs_format(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    out, _ = request.getfixturevalue(which)
    newest = out / "checkpoints" / checkpoints(out)[-1]
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata"} <= {file.name for file in newest.iterdir()}
    dcp_to_torch_save(newest, tmp_path / "checkpoint.pt")
    state = torch.load(tmp_path / "checkpoint.pt")
    model = load_file(out / "model.safetensors")
    assert {to_theirs(name) for name in state["model"]} == model.keys()
    assert all(torch.equal(tensor, model[to_theirs(name)]) for name, tensor in state["model"].items())
    assert state["optimiser"].keys() == state["model"].keys()


# ------------------------------------------------------------------------------ stopped


def test_a_signal_to_one_process_stops_both_after_its_step(split: tuple[Path, list[str]]) -> None:
    out, lines = split
    beginning, resuming, end = lines
    assert " parameters (2 layers" in beginning
    assert resuming.startswith("resuming at step 4 of 3000, from ")
    assert end.startswith(
        f"stopped at step 6, lowest validation loss {best(out):.4f}; {out} holds the model, "
    )
    assert end.endswith(f", `torchrun ... -m minigpt.train --resume --out {out}` continues")
    assert checkpoints(out) == ["step-00000004", "step-00000006"]
    assert metrics(out)[-1]["step"] == 6


def test_what_two_halves_learnt_one_process_goes_on_with(
    alone: Path, split: tuple[Path, list[str]], folder: Folder
) -> None:
    out = left_at(6, split[0], folder("joined"))
    lines, alones = metrics(out)[4:], metrics(alone)[4:6]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in alones], rel=1e-5)
    well(train("--resume", "--out", out, "--steps", 8))
    assert_like(out, alone)


def best(out: Path) -> float:
    return min(line["val_loss"] for line in metrics(out) if "val_loss" in line)


def test_ctrl_c_stops_both_and_the_adapter_can_go_on_in_one(
    alone: Path, long_text: Path, interrupted: tuple[Path, list[str]], folder: Folder
) -> None:
    out, lines = interrupted
    last = metrics(out)[-1]["step"]
    assert last >= 3
    assert [line for line in lines if line.startswith("stopped")] == lines[-1:]
    assert lines[-1].startswith(f"stopped at step {last}")
    assert checkpoints(out)[-1] == f"step-{last:08}"

    on, whole = left_at(last, out, folder("on")), folder("whole")
    files = ("--data", long_text, "--token-cache", long_text.parent / "tokens")
    well(train("--resume", "--out", on, "--steps", last + 2))
    well(train(*files, "--init", alone, "--out", whole, *ADAPTER, "--steps", last + 2))
    assert_like(on, whole)
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (on, whole)]
    assert_close(*adapters)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in adapters[0].items() if "lora_B" in name)


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--batch-size", 5), "--batch-size 5 does not split over 2 processes"),  # both see it
        (("--data", "no/such.txt"), "no/such.txt does not exist: "),  # the second one waits for the first
    ],
    ids=["both", "first"],
)
def test_a_mistake_ends_both_and_is_told_once(
    long_text: Path, tmp_path: Path, wrong: tuple[object, ...], message: str
) -> None:
    result = torchrun(*flags(long_text, tmp_path / "out", *SHAPE, *wrong))
    assert result.code != 0
    (line,) = ours(result)
    assert message in line
    assert not (tmp_path / "out").exists()
