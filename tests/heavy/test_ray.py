"""Jobs by Ray Data on a cluster of two nodes on this machine: the rows that one process writes, whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import ONE_THREAD, Result, call, rows_in, save, start, tiny
from heavy import heavy

cluster_utils = heavy("ray.cluster_utils")
heavy("pandas")
pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
MARGIN, ROUNDING = 1e-5, 1e-4


class TwoNodes:
    """A cluster whose second node can be lost."""

    def __init__(self) -> None:
        self.cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={**NODE, "include_dashboard": False}
        )
        self.second = self.cluster.add_node(**NODE)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def workers(self) -> list[int]:
        """The processes of the actor pool."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in self.cluster.list_all_nodes()}
        return [pid for pid in _processes() if _parent(pid) in raylets and b"RayWorker" in _command(pid)]

    def lose_second(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)

    def restore(self) -> None:
        if self.second not in self.cluster.list_all_nodes():
            self.second = self.cluster.add_node(**NODE)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return 0


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ONE_THREAD, "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
            patch.setenv(name, value)  # for the nodes, and so for their workers
        two = TwoNodes()
        yield two
        two.cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny(initializer_range=0.5))


def prompts(file: Path, n: int) -> Path:
    rows = ({"prompt": f"Number {i}", "topic": i % 7} for i in range(n))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def n_done(out: Path) -> int:
    return len([*(out / "_job").glob("block-*")])


def wait_until(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Waits for a command's work to get so far."""
    while not reached():
        assert process.poll() is None, "it ended too soon to be disturbed"
        time.sleep(0.02)  # the core is needed by others


def finished(process: subprocess.Popen[bytes]) -> Result:
    """How a command ended; that a node is lost is noticed after half a minute."""
    out, err = process.communicate(timeout=400)
    return Result(process.returncode, out.decode(), err.decode())


def same_rows(there: list[dict[str, Any]], here: list[dict[str, Any]]) -> int:
    """Asserts that the rows are the same, up to rounding; how many texts part at a choice that rounding decides."""
    assert [row["id"] for row in there] == [row["id"] for row in here]
    parted = 0
    for one, other in zip(there, here, strict=True):
        differing = [
            i
            for i, pair in enumerate(zip(one["tokens"], other["tokens"], strict=False))
            if pair[0] != pair[1]
        ]
        if differing:
            first, second = (top["logprob"] for top in other["top_logprobs"][differing[0]])
            assert first - second < MARGIN, other["id"]
            parted += 1
            continue
        for name in ("tokens", "text", "finish_reason", "prompt", "seed", "prompt_index", "topic"):
            assert one[name] == other[name], (name, other["id"])
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=ROUNDING)
    return parted


def test_a_worker_and_then_a_node_are_lost_and_no_prompt_is(
    nodes: TwoNodes, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--prompts", prompts(tmp_path / "p.jsonl", 2000), "--model", model, "--max-new-tokens", 16, "--json", "--logprobs", 2)  # fmt: skip
    assert call(*flags, "--out", tmp_path / "here", "--threads", 1).code == 0
    out = tmp_path / "out"
    process = start(
        *flags, "--out", out, "--shard-rows", 40, "--ray", nodes.address, "--workers", 2, "--threads", 1
    )
    wait_until(process, lambda: n_done(out) >= 2)
    first = nodes.workers()
    os.kill(first[0], signal.SIGKILL)
    wait_until(process, lambda: n_done(out) >= 8)
    nodes.lose_second()
    at_loss = n_done(out)
    result = finished(process)
    assert result.code == 0, result.err
    assert "2,000 prompts read, 2,000 written, 0 rejected" in result.err
    assert len(first) == 2
    assert at_loss < 50, "the node was lost too late to matter"
    parted = same_rows(rows_in(out), rows_in(tmp_path / "here"))
    with capsys.disabled():
        sys.stdout.write(f"\n{parted} of 2,000 texts part at a margin below {MARGIN}\n")
    nodes.restore()


def test_the_driver_is_killed_and_given_again(nodes: TwoNodes, model: Path, tmp_path: Path) -> None:
    nodes.restore()
    flags = ("--prompts", prompts(tmp_path / "p.jsonl", 300), "--model", model, "--top-p", 0.95, "--seed", 7,
             "--max-new-tokens", 16, "--threads", 1)  # fmt: skip
    assert call(*flags, "--out", tmp_path / "here").code == 0
    out = tmp_path / "out"
    there = (*flags, "--out", out, "--shard-rows", 10, "--ray", nodes.address)
    process = start(*there)
    wait_until(process, lambda: n_done(out) >= 2)
    process.kill()
    finished(process)
    before = {file: file.stat().st_mtime_ns for file in (out / "_job").glob("block-*")}
    assert 2 <= len(before) < 30
    result = finished(start(*there))
    assert result.code == 0, result.err
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert same_rows(rows_in(out), rows_in(tmp_path / "here")) == 0


def test_losses_are_those_of_one_process(nodes: TwoNodes, model: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "a.txt").write_text("\n<|endoftext|>\n".join(f"Number {i} was a cat." for i in range(40)))
    flags = (tmp_path / "a.txt", "--model", model, "--shard-rows", 8, "--threads", 1)
    for where in (("--out", tmp_path / "here"), ("--out", tmp_path / "there", "--ray", nodes.address)):
        result = finished(start(*flags, *where, python=("-m", "minigpt.score")))
        assert result.code == 0, result.err
    here, there = (
        [row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
        for out in (tmp_path / "here", tmp_path / "there")
    )
    assert len(here) == 40
    for one, other in zip(here, there, strict=True):
        assert one["id"] == other["id"]
        assert one["loss"] == pytest.approx(other["loss"], abs=ROUNDING)


def test_what_goes_wrong_in_a_worker_is_one_line(nodes: TwoNodes, model: Path, tmp_path: Path) -> None:
    prompts(tmp_path / "p.jsonl", 3)
    flags = ("--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "out", "--ray", nodes.address)
    result = _last_line(start(*flags, "--model", model, "--device", "mps"))
    assert result == (
        2,
        "minigpt.generate: --device mps: this machine has none that torch can use; use --device cpu",
    )
    code, line = _last_line(start(*flags[:-1], "127.0.0.1:1", "--model", model))
    assert code == 1
    assert line.startswith("minigpt.generate: Ray at 127.0.0.1:1: ")


def _last_line(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    result: Result = finished(process)
    assert "Traceback" not in result.err
    return result.code, result.err.splitlines()[-1]


def test_without_an_address_ray_starts_here(model: Path, tmp_path: Path) -> None:
    flags = (
        "--prompts",
        prompts(tmp_path / "p.jsonl", 9),
        "--model",
        model,
        "--seed",
        7,
        "--top-p",
        0.9,
        "--quiet",
    )
    assert call(*flags, "--out", tmp_path / "here").code == 0
    result = finished(start(*flags, "--out", tmp_path / "out", "--shard-rows", 2, "--ray", "--workers", 1))
    assert (result.code, result.out, result.err) == (0, "", "")
    assert same_rows(rows_in(tmp_path / "out"), rows_in(tmp_path / "here")) == 0
