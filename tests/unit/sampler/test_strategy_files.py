"""One file in minigpt/sampler is one strategy, found by the file's name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from fakes import tiny_gpt2

from minigpt import InvalidRequest, sampler
from minigpt.sampler import Greedy, generate, strategies
from minigpt.sampler.engine.decode_loop import decode_loop
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.registry import find, name_of, names, only_strategy


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


@pytest.mark.parametrize("file", ["my-strategy", "my strategy"])
def test_a_file_that_python_cannot_import_is_told_its_name(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{file}.py").touch()
    monkeypatch.setattr(strategies, "__path__", [str(tmp_path)])
    names.cache_clear()
    try:
        with pytest.raises(
            InvalidRequest, match=rf"^{file}.py: write my_strategy.py, which --strategy my-strategy n"
        ):
            names()
    finally:
        names.cache_clear()


def test_a_strategy_that_lacks_a_method_is_told_which() -> None:
    module = ModuleType("reverse")
    module.__file__ = "reverse.py"
    exec(
        "from minigpt.sampler import Strategy\nclass Reverse(Strategy):\n    def decod(self): ...",
        vars(module),
    )
    with pytest.raises(
        InvalidRequest, match=r"^reverse.py: Reverse lacks decode\(\), which a strategy must define$"
    ):
        only_strategy(module)


class Contrarian(Greedy):
    """Keeps a dimension too many."""

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        return decode_loop(model, requests, self, pick=self.pick)

    def pick(self, scores: torch.Tensor, sequences: object) -> torch.Tensor:
        return scores.topk(2).indices[:, 1:]


def test_a_pick_of_the_wrong_shape_is_told_the_right_one() -> None:
    message = r"^Contrarian.pick returned shape \(2, 1\): it must return \(2,\), one token id for each row$"
    with pytest.raises(InvalidRequest, match=message):
        generate(tiny_gpt2(), [[1, 2], [3]], Contrarian(), max_new_tokens=3)
