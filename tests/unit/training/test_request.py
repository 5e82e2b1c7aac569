"""A sharded run by the number of processes that go on with it; paths that hold in any folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minigpt import InvalidRequest
from minigpt.training.request import RunRequest, absolute_paths


@pytest.fixture
def sharded(tmp_path: Path) -> RunRequest:
    return RunRequest.make(tmp_path / "run", {"data": ("tales.txt",), "shard": True}, resume=True)


def test_one_process_of_torchrun_begins_a_run_that_others_can_join(sharded: RunRequest) -> None:
    alone = sharded.for_processes(1).settings.with_defaults(768)
    assert not alone.shard
    assert alone.optimizer == sharded.settings.with_defaults(768).optimizer == "adamw"
    assert sharded.for_processes(2) is sharded


def test_a_process_started_by_itself_refuses_to_begin_one(sharded: RunRequest) -> None:
    with pytest.raises(
        InvalidRequest, match="--shard splits a model over several processes: start them with torchrun"
    ):
        sharded.for_one_process()


def test_paths_are_made_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    given = {
        "data": ("a.txt", "~/b"),
        "val": "c.txt",
        "init": "base",
        "teacher": ("base", "gpt2"),
        "tokenizer": "bytes",
        "token_cache": "d",
        "steps": 3,
    }
    found = absolute_paths(given)
    assert found["data"] == (str(tmp_path / "a.txt"), os.path.expanduser("~/b"))
    assert [found[name] for name in ("val", "init", "token_cache")] == [
        str(tmp_path / x) for x in ("c.txt", "base", "d")
    ]
    assert found["teacher"] == (str(tmp_path / "base"), "gpt2")
    assert (found["tokenizer"], found["steps"]) == ("bytes", 3)
    assert absolute_paths({"val": "0.1", "init": "gpt2"}) == {"val": "0.1", "init": "gpt2"}
    assert absolute_paths({"data": ("~nosuchuser/x",)})["data"] == (str(tmp_path / "~nosuchuser/x"),)
