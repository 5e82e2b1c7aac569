"""One file in minigpt/sampler is one strategy, found by the file's name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt
from minigpt import sampler
from minigpt.sampler.registry import find, name_of, names

TOY = '''
"""Always the last token of the vocabulary."""

from dataclasses import dataclass

from minigpt.sampler.strategies.greedy import Greedy


@dataclass(frozen=True, kw_only=True)
class LastOfAll(Greedy):
    """Always the last token of the vocabulary."""
'''
ASK = """
import sys
from minigpt.sampler.registry import find, name_of, names
assert "last-of-all" in names(), names()
strategy = find("last-of-all")
assert strategy.__name__ == "LastOfAll" and name_of(strategy) == "last-of-all"
assert "torch" not in sys.modules, "the command line asks for names before it needs torch"
"""


def test_a_new_file_is_a_new_strategy(tmp_path: Path) -> None:
    package = Path(minigpt.__file__).parent
    shutil.copytree(package, tmp_path / "minigpt", ignore=shutil.ignore_patterns("__pycache__", "_bundled"))
    (tmp_path / "minigpt" / "sampler" / "strategies" / "last_of_all.py").write_text(TOY)
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("beam", sampler.Beam),
        ("beam-sample", sampler.BeamSample),
        ("constrained", sampler.Constrained),
        ("contrastive", sampler.Contrastive),
        ("contrastive-decoding", sampler.ContrastiveDecoding),
        ("diverse-beam", sampler.DiverseBeam),
        ("dola", sampler.DoLa),
        ("greedy", sampler.Greedy),
        ("prompt-lookup", sampler.PromptLookup),
        ("sample", sampler.Sample),
        ("speculative", sampler.Speculative),
    ],
)
def test_each_strategy_has_the_name_of_its_file(name: str, strategy: type) -> None:
    assert name in names()
    assert find(name) is strategy
    assert name_of(strategy) == name


def test_every_name_finds_a_strategy_that_explains_itself() -> None:
    for name in names():
        assert issubclass(find(name), sampler.Strategy)
        assert (find(name).__doc__ or "").strip()


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=rf"^there is no strategy 'bream'; there are {', '.join(names())}$"):
        find("bream")
    for machinery in ("steps", "strategy", "processors", "chance"):
        with pytest.raises(ValueError, match="there is no strategy"):
            find(machinery)
