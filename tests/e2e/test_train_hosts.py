"""`minigpt.train` on two hosts, one torchrun agent on each: the run of one process, up to floating-point summation order.

The hosts are two loopback addresses, or two network namespaces where the machine allows them; a host dies by SIGKILL
to its agent and its worker. Everything is over gloo, on the CPU.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from command import ONE_THREAD
from trainer import RHYTHM, SHAPE, Folder, assert_like, checkpoints, flags, metrics

ELASTIC = ("--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "tales", "--max-restarts", "3")
# A lost agent is noticed after two seconds; whoever may go on alone waits for others, since all need a while to start.
QUICK = "keep_alive_interval=1,keep_alive_max_attempt=2,join_timeout=150,last_call_timeout=15"
# Without it, torch 2.13's agents tell only those who are there from the first round on where rank 0 is.
REJOIN = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
DIES_AT, CHECKPOINT = 6, 4  # steps

# The command, without the second of measuring. It notes each text that it tokenises, and how many processes there are.
# The second host dies in a step, the first time that it comes so far.
WORKER = f"""
import os, signal, sys
from pathlib import Path
from minigpt import train
from minigpt.data import token_file
from minigpt.training import hardware
from minigpt.training.learner import Learner

folder, host = Path(__file__).parent, os.environ["HOST"]

def note(name, line):
    with (folder / f"{{name}}-{{host}}").open("a") as file:
        file.write(f"{{line}}\\n")

def encoded(texts, tokenizer, encoded=token_file._encoded):
    note("tokenised", "a text")
    return encoded(texts, tokenizer)

def step(self, number, step=Learner.step):
    if number == 0 or number == {CHECKPOINT}:
        note("processes", self.processes.world_size)
    dies = folder / "dies"
    if host == "1" and number == {DIES_AT - 1} and dies.exists():
        dies.unlink()
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number)

Learner.step, token_file._encoded, hardware.matmul_rate = step, encoded, lambda *_: 1e9
sys.exit(train.main())
"""


class Host(NamedTuple):
    """Where an agent runs: its address, what comes before its command, and the name of its network interface."""

    number: int
    address: str
    inside: tuple[str, ...] = ()
    interface: str = "lo"


LOOPBACK = (Host(0, "127.0.0.1"), Host(1, "127.0.0.2"))


class Agents:
    """Starts torchrun's agents in a folder, and ends those that are left."""

    def __init__(self, folder: Path, hosts: tuple[Host, Host], nodes: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.hosts, self.nodes = folder, hosts, nodes
        self.worker = folder / "worker.py"
        self.worker.write_text(WORKER)
        self.endpoint = f"{hosts[0].address}:{_free_port()}"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, number: int, *flags: object) -> subprocess.Popen[bytes]:
        host = self.hosts[number]
        conf = f"is_host={int(number == 0)},{QUICK}"
        where = ("--rdzv-endpoint", self.endpoint, "--local-addr", host.address, "--rdzv-conf", conf)
        agent = (sys.executable, "-m", "torch.distributed.run", "--nnodes", self.nodes, *ELASTIC, *where)
        more = {"HOST": str(number), "GLOO_SOCKET_IFNAME": host.interface, **REJOIN}
        with (self.folder / f"log-{number}").open("ab") as log:
            process = subprocess.Popen(
                [*host.inside, *agent, str(self.worker), *map(str, flags)],
                env=os.environ | ONE_THREAD | more,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def log(self, number: int) -> str:
        return (self.folder / f"log-{number}").read_text()

    def ours(self, number: int) -> list[str]:
        """What we said on a host, among all that torchrun says."""
        lines = self.log(number).splitlines()
        assert not any(line.startswith("[rank") for line in lines), self.log(number)  # a traceback
        return [line.removeprefix("minigpt.train: ") for line in lines if line.startswith("minigpt.train: ")]

    def notes(self, name: str, number: int) -> list[str]:
        file = self.folder / f"{name}-{number}"
        return file.read_text().splitlines() if file.exists() else []

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.terminate()  # torchrun passes it on
        for process in self.started:
            process.wait(60)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def ends_well(agents: Agents, *processes: subprocess.Popen[bytes]) -> None:
    codes = [process.wait(250) for process in processes]
    assert codes == [0] * len(codes), agents.log(0) + agents.log(1)


def sharded(text: Path, out: Path) -> list[str]:
    return flags(text, out, *SHAPE, *RHYTHM, "--shard", "--resume")


# ------------------------------------------------------------------------------ a host dies


def test_a_host_dies_and_comes_back(long_text: Path, alone: Path, folder: Folder) -> None:
    out, agents = folder("out"), Agents(folder("agents"), LOOPBACK, "2")
    (agents.folder / "dies").touch()
    try:
        first, second = (agents.start(i, *sharded(long_text, out)) for i in (0, 1))
        assert second.wait(250) == -signal.SIGKILL, agents.log(0) + agents.log(1)
        ends_well(agents, first, agents.start(1, *sharded(long_text, out)))
    finally:
        agents.end()
    assert_like(out, alone)  # and so no step is missing from metrics.jsonl, and none is there twice
    assert agents.notes("processes", 0) == agents.notes("processes", 1) == ["2", "2", "2"]
    lines = agents.ours(0) + agents.ours(1)
    lost = [line for line in lines if "is gone" in line]
    assert len(lost) <= 1  # none where torchrun restarts the process before it notices
    for line in lost:
        assert line.startswith("another process of this run is gone (")
        assert "--max-restarts" in line
    assert [line for line in lines if line.startswith("resuming at")] == [
        f"resuming at step {CHECKPOINT} of 8, from {out}/checkpoints/step-{CHECKPOINT:08}"
    ]


def test_a_host_dies_and_the_other_goes_on_alone(long_text: Path, alone: Path, folder: Folder) -> None:
    out, agents = folder("out"), Agents(folder("agents"), LOOPBACK, "1:2")
    (agents.folder / "dies").touch()
    try:
        first, second = (agents.start(i, *sharded(long_text, out)) for i in (0, 1))
        assert second.wait(250) == -signal.SIGKILL, agents.log(0) + agents.log(1)
        ends_well(agents, first)
    finally:
        agents.end()
    assert_like(out, alone)
    assert agents.notes("processes", 0) == ["2", "2", "1"]
    tokens = [line["tokens"] for line in metrics(out)]
    assert tokens == [line["tokens"] for line in metrics(alone)]  # as many a step


# ------------------------------------------------------------------------------ folders of their own


@pytest.fixture
def namespaces() -> Iterator[tuple[Host, Host]]:
    """Two network namespaces, joined by a cable."""
    names = [f"minigpt{os.getpid()}{end}" for end in "ab"]
    hosts = tuple(
        Host(i, f"10.77.0.{i + 1}", ("ip", "netns", "exec", name), f"eth{i}") for i, name in enumerate(names)
    )
    made = []
    try:
        made += [_ip("netns", "add", name) for name in names]
        made.append(
            _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth1", "netns", names[1])
        )
        for host, name in zip(hosts, names, strict=True):
            made.append(_ip("-n", name, "addr", "add", f"{host.address}/24", "dev", host.interface))
            made += [_ip("-n", name, "link", "set", device, "up") for device in (host.interface, "lo")]
        if not all(made):
            pytest.skip("needs the right to make network namespaces")
        yield hosts[0], hosts[1]
    finally:
        for name in names:
            _ip("netns", "del", name)


def _ip(*words: str) -> bool:
    try:
        return subprocess.run(("ip", *words), stderr=subprocess.DEVNULL, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_hosts_in_namespaces_of_their_own_with_caches_of_their_own(
    long_text: Path, alone: Path, folder: Folder, namespaces: tuple[Host, Host]
) -> None:
    out, agents = folder("out"), Agents(folder("agents"), namespaces, "2")
    try:
        ends_well(
            agents,
            *(
                agents.start(i, *sharded(long_text, out), "--token-cache", agents.folder / f"cache-{i}")
                for i in (0, 1)
            ),
        )
    finally:
        agents.end()
    assert_like(out, alone)
    assert agents.notes("tokenised", 0) == agents.notes("tokenised", 1) == ["a text"]
    assert checkpoints(out) == checkpoints(alone)
    shares = [file.stat().st_size for file in (out / "checkpoints" / checkpoints(out)[-1]).glob("*.distcp")]
    assert len(shares) == 2
    assert max(shares) < 0.6 * sum(shares)  # each writes its own; nobody has it all
