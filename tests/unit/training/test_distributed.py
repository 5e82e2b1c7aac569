"""What processes on several hosts do together; threads stand for them, each with a barrier and a table to share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from minigpt.data import token_file
from minigpt.data.token_file import tokenise
from minigpt.tokenizer.byte_level import byte_tokenizer
from minigpt.training.distributed import Disconnected, Processes, _disconnection

HOSTS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # host and local rank of each of four processes


@dataclass(frozen=True)
class Thread(Processes):
    host: int = 0
    barrier: Barrier = field(default_factory=lambda: Barrier(1))
    table: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.wait()
        values = [self.table[rank] for rank in range(self.world_size)]
        self.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def wait(self) -> None:
        self.barrier.wait(60)


def in_all(work: Callable[[Thread], Any]) -> list[Any]:
    """The results of some work in every process."""
    barrier, table = Barrier(len(HOSTS)), {}
    threads = [
        Thread(rank, len(HOSTS), local_rank, host, barrier, table)
        for rank, (host, local_rank) in enumerate(HOSTS)
    ]
    with ThreadPoolExecutor(len(HOSTS)) as pool:
        return list(pool.map(work, threads))


@pytest.mark.parametrize(("folders", "times"), [(("same", "same"), 1), (("one", "other"), 2)])
def test_a_text_is_tokenised_once_in_each_folder(
    folders: tuple[str, str], times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "tale.txt"
    text.write_text("Once upon a time.\n")
    calls, encoded = [], token_file._encoded
    monkeypatch.setattr(token_file, "_encoded", lambda *given: calls.append(given) or encoded(*given))

    def work(process: Thread) -> list[int]:
        cache = tmp_path / folders[process.host]
        return process.in_turns(lambda: tokenise([text], byte_tokenizer(), cache)).ids.tolist()

    first, *others = in_all(work)
    assert others == [first] * 3
    assert len(calls) == times


def test_a_folder_that_all_hosts_share(tmp_path: Path) -> None:
    in_all(lambda process: process.check_shared(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_of_each_host_is_refused(tmp_path: Path) -> None:
    def work(process: Thread) -> str:
        with pytest.raises(
            ValueError, match="is another folder for 2 of 4 processes: name one that all hosts share"
        ) as e:
            process.check_shared(tmp_path / f"run-{process.host}")
        return str(e.value)

    assert f"--out {tmp_path}/run-0" in in_all(work)[0]


def test_a_lost_connection_is_named_and_another_error_is_not() -> None:
    with (
        pytest.raises(
            Disconnected, match=r"another process of this run is gone \(\[.*closed by peer\); torchrun"
        ),
        _disconnection(),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="a mistake of ours"), _disconnection():
        raise RuntimeError("a mistake of ours")
