"""A sharded run by the number of processes that go on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt import InvalidRequest
from minigpt.training.request import RunRequest


@pytest.fixture
def sharded(tmp_path: Path) -> RunRequest:
    return RunRequest.make(tmp_path / "run", {"data": ("tales.txt",), "shard": True}, resume=True)


def test_one_process_of_torchrun_begins_a_run_that_others_can_join(sharded: RunRequest) -> None:
    alone = sharded.for_processes(1).settings.settled(768)
    assert not alone.shard
    assert alone.optimizer == sharded.settings.settled(768).optimizer == "adamw"
    assert sharded.for_processes(2) is sharded


def test_a_process_started_by_itself_refuses_to_begin_one(sharded: RunRequest) -> None:
    with pytest.raises(
        InvalidRequest, match="--shard splits a model over several processes: start them with torchrun"
    ):
        sharded.for_one_process()
