"""Adding a strategy touches one file: a toy, put into a copy of the package, is used as all others are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, reciter, save

import minigpt

TOY = '''
"""Decoding against the grain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.options import option
from minigpt.sampler.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class SecondBest(Strategy):
    """Always the token of one rank."""

    rank: int = option(2, "1 is the likeliest token", group="strategy", least=1)

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.engine.decode_loop import decode_loop

        return decode_loop(model, requests, self, lambda scores, texts: scores.topk(self.rank).indices[:, -1])
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and one file more, and a model that knows "one two three." by heart."""
    folder = tmp_path_factory.mktemp("copy")
    package = Path(minigpt.__file__).parent
    shutil.copytree(package, folder / "minigpt", ignore=shutil.ignore_patterns("__pycache__", "_bundled"))
    (folder / "minigpt" / "sampler" / "strategies" / "second_best.py").write_text(TOY)
    save(folder / "model", reciter("one two three."))
    return folder


def python(copy: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def generate(copy: Path, *flags: str) -> str:
    return python(copy, "-m", "minigpt.generate", "--model", "model", "--max-new-tokens", "5", *flags)


def test_the_command_knows_it_by_name(copy: Path) -> None:
    assert generate(copy, "one ", "--strategy", "second-best", "--rank", "1") == "two t\n"
    assert generate(copy, "one ", "--strategy", "second-best") != "two t\n"
    assert "--rank N" in generate(copy, "--help")


def test_in_a_batch_and_streaming(copy: Path) -> None:
    flags = ["--strategy", "second-best", "--rank", "1"]
    lines = generate(copy, "-p", "one ", "-p", "one two ", "--json", *flags).splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["two t", "three"]
    assert {json.loads(line)["strategy"] for line in lines} == {"second-best"}
    assert generate(copy, "one ", "--stream", *flags) == "two t\n"


def test_it_passes_what_every_strategy_must(copy: Path) -> None:
    suite = str(ROOT / "tests" / "unit" / "sampler" / "test_every_strategy.py")
    shown = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "second-best", suite)
    assert " passed" in shown
    assert "failed" not in shown
