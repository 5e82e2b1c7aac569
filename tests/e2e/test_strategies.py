"""Every strategy from the command line: which flags mean it, what it needs, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command import call, reciter, run, save, tiny

from minigpt import GPT2, Tokenizer
from minigpt.sampler import (
    Beam,
    Constrained,
    Contrastive,
    ContrastiveDecoding,
    DiverseBeam,
    DoLa,
    Greedy,
    PromptLookup,
    Sample,
    Speculative,
    Strategy,
)
from minigpt.sampler import generate as decode
from minigpt.sampler.grammar import Grammar

PROMPT, N = "one two ", 9


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of bytes with random weights, and a second one with other weights."""
    folder = tmp_path_factory.mktemp("models")
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 3, "initializer_range": 0.4}
    first = tiny(**sizes).eval()
    second = tiny(**sizes | {"n_layer": 1}).eval()
    return save(folder / "model", first), save(folder / "other", second)


def texts(model: Path, *flags: object) -> list[dict[str, Any]]:
    result = call(PROMPT, "--model", model, "--max-new-tokens", N, "--json", "--quiet", *flags)
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


@pytest.mark.parametrize(
    ("flags", "name", "strategy"),
    [
        ("", "greedy", lambda other: Greedy()),
        ("--draft {other}", "speculative", lambda other: Speculative(draft=other)),
        (
            "--draft {other} --num-draft-tokens 2 --temperature 1.5 --seed 3",
            "speculative",
            lambda other: Speculative(
                draft=other, num_draft_tokens=2, do_sample=True, temperature=1.5, seed=3
            ),
        ),
        ("--strategy prompt-lookup", "prompt-lookup", lambda other: PromptLookup()),
        (
            "--strategy prompt-lookup --seed 3",
            "prompt-lookup",
            lambda other: PromptLookup(seed=3),
        ),
        ("--penalty-alpha 0.6 --top-k 4", "contrastive", lambda other: Contrastive()),
        ("--top-k 4 --seed 1", "sample", lambda other: Sample(top_k=4, seed=1)),
        ("--dola-layers low", "dola", lambda other: DoLa(dola_layers="low")),
        ("--dola-layers 0,1", "dola", lambda other: DoLa(dola_layers=(0, 1))),
        ("--amateur {other}", "contrastive-decoding", lambda other: ContrastiveDecoding(amateur=other)),
        ("--num-beams 3", "beam", lambda other: Beam(num_beams=3)),
        (
            "--num-beams 4 --num-beam-groups 2 --diversity-penalty 1.5 --num-return-sequences 4",
            "diverse-beam",
            lambda other: DiverseBeam(
                num_beams=4, num_beam_groups=2, diversity_penalty=1.5, num_return_sequences=4
            ),
        ),
        ("--must-include ox", "constrained", lambda other: Constrained(must_include=[[[*b"ox"], [*b" ox"]]])),
    ],
)
def test_flags_mean_what_the_options_mean_in_python(
    models: tuple[Path, Path], flags: str, name: str, strategy: Any
) -> None:
    given = flags.format(other=models[1]).split()
    model, other = map(GPT2.from_pretrained, models)
    (expected,) = decode(model, [[*PROMPT.encode()]], strategy(other), max_new_tokens=N)
    found = texts(models[0], *given)
    assert [text["tokens"] for text in found] == [text.tokens for text in expected]
    assert {text["strategy"] for text in found} == {name}


def test_drafts_change_nothing(models: tuple[Path, Path]) -> None:
    (greedy,) = texts(models[0])
    for flags in (["--draft", models[1]], ["--strategy", "prompt-lookup"]):
        (drafted,) = texts(models[0], *flags)
        assert drafted["tokens"] == greedy["tokens"]


@pytest.mark.parametrize(
    "flags", [[], ["--num-beams", "3"], ["--seed", "1"], ["--strategy", "prompt-lookup"]]
)
def test_a_regular_expression_holds_whatever_the_strategy(
    models: tuple[Path, Path], flags: list[str]
) -> None:
    """And where the text matches and nothing can follow, it ends."""
    (text,) = texts(models[0], "--regex", "[0-9]{2}-(ja|nein)", *flags)
    digits, _, word = text["text"].partition("-")
    assert (len(digits), digits.isdigit(), word in ("ja", "nein")) == (2, True, True)
    assert text["finish_reason"] == "stop"


@pytest.mark.parametrize("flags", [[], ["--num-beams", "3"], ["--top-k", "5", "--seed", "1"]])
def test_a_schema_and_a_grammar_come_from_files(
    models: tuple[Path, Path], flags: list[str], tmp_path: Path
) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": ["yes", {"no": [1, 2]}]}', encoding="utf-8")
    (text,) = texts(models[0], "--json-schema", str(schema), *flags)
    (whole,) = [one for one in ('"yes"', '{"no": [1, 2]}') if one.startswith(text["text"])]
    assert text["finish_reason"] == ("stop" if text["text"] == whole else "length")
    grammar.write_text('start: "(" start ")" | "a"', encoding="utf-8")
    (text,) = texts(models[0], "--grammar", str(grammar), *flags)
    opened, letter, closed = text["text"].partition("a")
    assert set(opened) <= {"("}
    assert text["finish_reason"] == "length" or (letter, len(opened), set(closed) <= {")"}) == (
        "a",
        len(closed),
        True,
    )


def test_a_regular_expression_in_python(models: tuple[Path, Path]) -> None:
    model, tokenizer = GPT2.from_pretrained(models[0]), Tokenizer.from_pretrained(models[0])
    strategy: Strategy = Greedy(regex=Grammar("regex", "(ab)+c", tokenizer.token_bytes()))
    ((text,),) = decode(model, [[65]], strategy, max_new_tokens=30)
    assert tokenizer.decode(text.tokens).strip("ab") in ("c", "")


MISTAKES = {
    "--strategy speculative": "speculative needs --draft: draft model: a smaller model of the same vocabulary",
    "--strategy contrastive-decoding": "contrastive-decoding needs --amateur",
    "--draft {other} --num-beams 3": "--draft and --num-beams cannot be combined: no strategy has them all; leave one out",
    "--penalty-alpha 0.6 --num-beams 3": "--num-beams and --penalty-alpha cannot be combined: no strategy has them all",
    "--penalty-alpha 1.6": "penalty_alpha (--penalty-alpha) must be a number from 0 to 1, got 1.6",
    "--num-beam-groups 3 --num-beams 4": "num_beam_groups",
    "--dola-layers 7": "dola_layers (--dola-layers) of a model with 3 layers are from 0 to 2",
    "--dola-layers middle": "argument --dola-layers: expected {{high,low,N,N...}}, got 'middle'",
    "--must-include longer_than_nine": "--max-new-tokens",
    "--regex (a": "argument --regex: regex '(a' is not supported: ",
    "--dry-base 2": "--dry-base has no effect without --dry-multiplier: add it, or leave --dry-base out",
    "--watermark-key 2": "--watermark-key has no effect without --watermark",
    "--xtc-threshold 0.2": "--xtc-threshold has no effect without --xtc-probability",
    "--mirostat-eta 0.2 --top-k 3": "--mirostat-eta has no effect without --mirostat-tau",
    "--strategy greedy --num-draft-tokens 3": "--num-draft-tokens is not supported by greedy, but by prompt-lookup, speculative",
    "--amateur-temperature 0.5": "--amateur-temperature has no effect without --amateur: add it",
    "--show-beams": "--show-beams is not supported by greedy, which has no beams: add --num-beams 5",
    "--lattice out.json": "--lattice is not supported by greedy, which has no beams",
    "--num-beams 2 --show-beams --quiet": "--show-beams draws on stderr, which --quiet forbids",
    "--num-beams 2 --show-beams --stream": "not --json, --output or --show-beams",
    "--num-beams 2 --lattice l.png": "--lattice l.png: a picture is written as .svg, a trace as .json; name it so",
    "--replay no.json --lattice l.png": "--lattice l.png: a picture is written as .svg, a trace as .json",
    "--num-beams 2 --lattice no/where.json": "--lattice no/where.json: there is no such folder",
    "--replay no.json": "--replay no.json: No such file or directory",
    "--replay no.json --lattice no.json": "--lattice no.json is the file of --replay: name another file",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_line(models: tuple[Path, Path], flags: str) -> None:
    given = flags.format(other=models[1]).split()
    result = call(PROMPT, "--model", models[0], "--max-new-tokens", N, *given)
    assert result.code == 2
    assert MISTAKES[flags].format() in result.mistake


def test_a_second_model_must_have_the_same_vocabulary(models: tuple[Path, Path]) -> None:
    result = call(PROMPT, "--draft", models[0])  # beside the bundled one
    assert result.code == 2
    assert "has another vocabulary than the model: token 0 is" in result.mistake


def test_a_second_model_that_is_not_there(models: tuple[Path, Path]) -> None:
    result = call(PROMPT, "--model", models[0], "--draft", "no/such", "--offline")
    assert result.code == 3
    assert "no/such" in result.mistake


def test_the_amateurs_window_is_a_limit_too(models: tuple[Path, Path], tmp_path: Path) -> None:
    narrow = save(tmp_path / "narrow", tiny(n_positions=8))
    result = call(PROMPT, "--model", models[0], "--amateur", narrow, "--max-new-tokens", 5)
    assert result.code == 4
    assert "the amateur (--amateur) model's context length is 8" in result.mistake


def test_beams_are_drawn_saved_and_drawn_again(models: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "beams.json"
    flags = ["--num-beams", 3, "--max-new-tokens", N, "--model", models[0]]
    shown = call(PROMPT, *flags, "--show-beams", "--lattice", file)
    plain = call(PROMPT, *flags)
    assert shown.out == plain.out
    drawn = [line for line in shown.err.splitlines() if not line.startswith("minigpt")]
    assert len(drawn) >= 3
    again = call("--replay", file)
    assert (again.code, again.out) == (0, "")
    lines = again.err.splitlines()
    assert [line for line in lines if line.startswith("step ")] == [f"step {i}:" for i in range(1, N + 1)]
    last = lines[lines.index(f"step {N}:") + 1 :]
    assert [line[:8] for line in last] == [line[:8] for line in drawn]  # the scores


def test_a_trace_of_beams_as_a_picture(models: tuple[Path, Path], tmp_path: Path) -> None:
    flags = ("-p", PROMPT, "-p", "two", "--num-beams", 3, "--max-new-tokens", N, "--model", models[0])
    call(*flags, "--lattice", tmp_path / "beams.svg")
    call(*flags, "--lattice", tmp_path / "beams.json")
    assert call("--replay", tmp_path / "beams.json", "--lattice", tmp_path / "again.svg") == (0, "", "")
    picture = (tmp_path / "beams.svg").read_text()
    assert picture == (tmp_path / "again.svg").read_text()
    labels = [
        element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert len(labels) > 2 * 3 * N  # a label for each token of each beam, and the two prompts
    mistake = call("--replay", tmp_path / "beams.json", "--lattice", tmp_path / "none" / "x.svg")
    assert mistake.code == 2
    assert "there is no such folder to write into" in mistake.mistake


def test_a_lattice_holds_the_text_that_won(models: tuple[Path, Path], tmp_path: Path) -> None:
    from minigpt.sampler.lattice import Lattice

    file = tmp_path / "beams.json"
    found = texts(models[0], "-p", "three", "--num-beams", 3, "--lattice", file)
    lattice = Lattice.load(file)
    for i, text in enumerate(found):
        best = lattice.best(i)
        assert best is not None
        assert list(best.tokens) == text["tokens"]
        assert best.score == pytest.approx(text["score"])


def test_help_names_the_flags_of_every_strategy() -> None:
    result = run("--help")
    assert result.code == 0
    for flag in ("--draft", "--amateur", "--must-include", "--regex", "--mirostat-tau", "--watermark"):
        assert f"{flag} " in result.out or f"{flag}\n" in result.out


def test_a_heart_knows_its_text_by_every_strategy(tmp_path: Path) -> None:
    """Where the model leaves no doubt, every way of decoding writes the same."""
    model = save(tmp_path / "model", reciter("one two three four."))
    for flags in (
        ["--penalty-alpha", 0.1], ["--dola-layers", "0"], ["--draft", model], ["--strategy", "prompt-lookup"],
        ["--num-beams", 2, "--num-beam-groups", 2, "--diversity-penalty", 0.1], ["--must-include", "three"],
        ["--mirostat-tau", 3, "--seed", 1], ["--top-n-sigma", 1, "--seed", 1], ["--eta-cutoff", 0.1, "--seed", 1],
    ):  # fmt: skip
        result = call("one two ", "--model", model, "--max-new-tokens", 11, *flags)
        assert result.out == "three four.\n", flags
