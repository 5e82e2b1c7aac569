"""`--explain` as a user meets it; that its figures are right is tests/unit/test_explain.py's matter."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call, save, tiny

from minigpt.generate import session
from minigpt.sampler.api import run as decode

PROCESSED = ("--temperature", 2, "--top-k", 20, "--seed", 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny(initializer_range=0.5, eos_token_id=None))


def records(*flags: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in call("--max-new-tokens", 9, "--json", *flags).text.split("\n")]


@pytest.mark.parametrize(
    "flags",
    [
        (),
        PROCESSED,
        ("--num-beams", 3, "--num-return-sequences", 3),
        (*PROCESSED, "--num-return-sequences", 2),
    ],
)
def test_the_json_has_one_explanation_for_each_token(model: Path, flags: tuple[object, ...]) -> None:
    asked = ("--model", model, "-p", "ab", "-p", "a", *flags)
    plain, explained = records(*asked), records(*asked, "--explain")
    for record, other in zip(explained, plain, strict=True):
        explanations = record.pop("explanation")
        assert {**record, "timing": 0} == {**other, "timing": 0}, "to explain changes nothing"
        probabilities = [told["before"]["probability"] for told in explanations]
        assert torch.tensor(probabilities).log().tolist() == pytest.approx(record["logprobs"], abs=1e-4)
        for told in explanations:
            assert told.keys() == {"before", "after", "stages"}
            assert told["before"].keys() == told["after"].keys() == {"probability", "rank", "entropy"}


def test_the_json_has_every_stage_in_order(model: Path) -> None:
    (record,) = records("--model", model, "ab", *PROCESSED, "--explain")
    for told in record["explanation"]:
        temperature, top_k = told["stages"]
        assert temperature.keys() == {"stage", "removed", "mass", "probability"}
        assert (temperature["stage"], temperature["removed"], temperature["mass"]) == ("Temperature", 0, 0)
        assert temperature["probability"] < top_k["probability"] == told["after"]["probability"]
        assert (top_k["stage"], top_k["removed"]) == ("TopK", 258 - 20)
        assert 0 < top_k["mass"] < 1


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize("flags", [PROCESSED, ("--num-beams", 3)])
def test_without_json_a_table_follows_the_text(model: Path, stream: str, flags: tuple[object, ...]) -> None:
    asked = ("--model", model, "ab", "--max-new-tokens", 4, *flags, stream)
    result = call(*asked, "--explain")
    assert result.text == call(*asked).text
    head, *lines, closing = result.err.splitlines()
    assert head.split("  ")[0] == "token"
    assert closing.startswith("minigpt.generate: prompt 2 tokens")
    for line in lines:
        assert re.match(r'".*"  +[\d.e-]+ -> [\d.e-]+ +\d+ -> \d+ +\d+\.\d\d -> \d+\.\d\d', line)
    assert len(lines) == 4
    assert all(("top-k -238 (0." in line) == (flags == PROCESSED) for line in lines)


def test_tables_of_several_texts_say_which(model: Path) -> None:
    err = call("--model", model, "-p", "a", "-p", "b", "--max-new-tokens", 2, "--explain").err
    assert re.findall(r"^prompt \d, text \d:$", err, re.M) == ["prompt 0, text 0:", "prompt 1, text 0:"]


@pytest.mark.parametrize("form", [("--json",), ()])
@pytest.mark.parametrize("flags", [(), ("--num-beams", 3)])
def test_ctrl_c_keeps_the_explanations_so_far(
    model: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...], form: tuple[str, ...]
) -> None:
    def events(*request: Any) -> Iterator[Any]:
        yield from islice(decode(*request), 12)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(session, "run", events)
    result = call("--model", model, "a", "--max-new-tokens", 30, "--explain", *flags, *form)
    assert result.code == 130
    if form:
        record = json.loads(result.out)
        assert len(record["explanation"]) == len(record["tokens"]) > 0
    else:
        assert len(result.err.splitlines()) > 2
