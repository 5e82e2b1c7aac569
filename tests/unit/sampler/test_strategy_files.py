"""One file in minigpt/sampler is one strategy, found by the file's name."""

from __future__ import annotations

import pytest

from minigpt import sampler
from minigpt.sampler.registry import find, name_of, names


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
