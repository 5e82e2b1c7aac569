"""`python -m minigpt.detect_watermark` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Result, call, run, save, tiny

from minigpt import Tokenizer, detect_watermark
from minigpt.evaluation.watermark import Detection
from minigpt.tokenizer.bpe import BYTES

PRINTABLE = range(32, 127)


@pytest.fixture(scope="module")
@torch.no_grad()
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that writes printable characters, each as likely as the others.

    Its vocabulary is larger than its tokenizer's, as that of many published models is.
    """
    model = tiny(n_positions=256, vocab_size=300, tie_word_embeddings=False)
    model.final_norm.weight.zero_()
    model.final_norm.bias.copy_(torch.eye(len(model.final_norm.bias))[0])
    model.head.weight.fill_(-100)  # type: ignore[operator]
    model.head.weight[list(PRINTABLE)] = 0  # type: ignore[index]
    return save(tmp_path_factory.mktemp("writer"), model)


@pytest.fixture(scope="module")
def texts(writer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files written by the command: with a watermark, with another one, without; and a short one."""
    folder = tmp_path_factory.mktemp("texts")
    files = {}
    for name, flags in {
        "marked": ["--watermark"],
        "otherwise": ["--watermark", "--watermark-key", 7, "--watermark-ratio", 0.5, "--watermark-bias", 3],
        "plain": [],
    }.items():
        files[name] = folder / f"{name}.txt"
        flags += ["--temperature", 1, "--seed", 1, "--max-new-tokens", 200]
        flags += ["--output", files[name], "--quiet"]
        assert call("x", "--model", writer, *flags).code == 0
    files["short"] = folder / "short.txt"
    files["short"].write_text("Once.\n")
    return files


def tell(*flags: object, **how: Any) -> Result:
    """The command, in this process."""
    return call(*flags, main=detect_watermark.main, **how)


def records(*flags: object, **how: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tell("--json", *flags, **how).text.split("\n")]


def test_the_mark_is_found_where_it_is_and_nowhere_else(writer: Path, texts: dict[str, Path]) -> None:
    paths = [str(texts[name]) for name in ("marked", "plain", "otherwise", "short")]
    marked, plain, otherwise, short = records(*paths, "--model", writer)
    assert [one["path"] for one in (marked, plain, otherwise, short)] == paths
    assert marked["model"] == str(writer)
    assert marked["watermarked"] is True
    assert marked["z"] > 4
    assert marked["p_value"] < 1e-4
    assert marked["green_fraction"] > 0.5
    assert 190 <= marked["tokens"] <= 199  # two characters that follow each other again count once
    for one in (plain, otherwise):
        assert one["watermarked"] is False
        assert abs(one["z"]) < 4
        assert one["p_value"] > 1e-4
    assert short["watermarked"] is None
    assert short["tokens"] == 4


def test_another_key_finds_another_mark(writer: Path, texts: dict[str, Path]) -> None:
    theirs = ["--watermark-key", "7", "--watermark-ratio", "0.5"]
    found = records(texts["otherwise"], texts["marked"], "--model", writer, *theirs)
    assert [one["watermarked"] for one in found] == [True, False]


def test_a_prompt_can_be_left_out(writer: Path, tmp_path: Path) -> None:
    """Of a long one before a short text, which would hide the mark."""
    prompt, file = "An unmarked prompt goes on and on. " * 3, tmp_path / "echo.txt"
    marked = ("--watermark", "--temperature", 1, "--seed", 1, "--max-new-tokens", 120)
    asked = (*marked, "--echo", "--quiet", "--output", file)
    assert call(prompt, "--model", writer, *asked).code == 0
    (hidden,), (left_out,) = (records(file, "--model", writer, *more) for more in ((), ("--prompt", prompt)))
    assert left_out["z"] > max(4, hidden["z"] + 1)
    assert left_out["tokens"] < hidden["tokens"]


def test_a_table_for_people(writer: Path, texts: dict[str, Path]) -> None:
    names = ["marked", "plain", "short"]
    heading, *rows = tell(*(texts[name] for name in names), "--model", writer).text.split("\n")
    assert heading.split() == ["z", "p-value", "green", "tokens", "verdict"]
    assert [row.split()[0] for row in rows] == [str(texts[name]) for name in names]
    verdicts = ["watermarked", "no watermark", "too short to judge"]
    assert [row.endswith(f"  {verdict}") for row, verdict in zip(rows, verdicts, strict=True)] == [True] * 3


@pytest.mark.parametrize("text", [b"", b"O", b"\n"])
def test_a_text_without_two_tokens_has_no_figures(writer: Path, text: bytes) -> None:
    (record,) = records("-", "--model", writer, stdin=text)
    expected = {"watermarked": None, "z": None, "p_value": None, "green_fraction": None, "tokens": 0}
    assert record == {"model": str(writer), "path": "-", **expected}
    row = tell("-", "--model", writer, stdin=text).text.split("\n")[1]
    assert row.split() == ["-", "-", "-", "-", "0", "too", "short", "to", "judge"]


def test_a_short_text_may_still_be_found_out(writer: Path) -> None:
    """Where all is green, fewer tokens will do than it takes to say that there is no mark."""
    assert detect_watermark.watermarked(Detection(n_scored=10, n_green=10, ratio=0.25)) is True
    assert detect_watermark.watermarked(Detection(n_scored=5, n_green=5, ratio=0.25)) is None
    assert detect_watermark.watermarked(Detection(n_scored=21, n_green=9, ratio=0.25)) is None
    assert detect_watermark.watermarked(Detection(n_scored=22, n_green=9, ratio=0.25)) is False


def test_in_a_process_of_its_own_from_stdin(writer: Path, texts: dict[str, Path]) -> None:
    flags = ["--model", writer, "--json"]  # a pipe without FILE is read
    result = run(*flags, stdin=texts["marked"].read_bytes(), python=("-m", "minigpt.detect_watermark"))
    assert json.loads(result.text)["watermarked"] is True
    assert result.err == ""


def test_the_bundled_models_tokenizer_unless_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Once upon a time there was a king. " * 9)
    (record,) = records(tmp_path / "a.txt")
    assert record["model"] == "bundled"
    assert record["tokens"] < 20  # said again, and counted once


def test_the_weights_are_not_needed(writer: Path, texts: dict[str, Path], tmp_path: Path) -> None:
    for file in writer.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert records(texts["marked"], "--model", tmp_path)[0]["watermarked"] is True


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("", 2, "no input file: name one, or - for stdin"),
        ("- -", 2, "stdin can be read once only, but - stands for it several times"),
        ("no/such.txt", 2, "no/such.txt cannot be read: No such file or directory; name a text file"),
        ("{folder}", 2, "{folder} cannot be read: Is a directory; name a text file"),
        ("{latin}", 2, "{latin} is not UTF-8 (byte 1): convert it"),
        ("{short} --watermark-ratio 1", 2, "--watermark-ratio must be above 0 and below 1, got 1.0"),
        ("{short} --watermark-key 0", 2, "--watermark-key must be at least 1, got 0"),
        (
            "{short} --watermark_keys 0",
            2,
            "unrecognized arguments: --watermark-keys 0 (did you mean --watermark-key?)",
        ),
        ("{short} --prompt Twice", 2, "{short} does not begin with --prompt 'Twice': leave it out"),
        ("{short} --model no/such/model", 3, "'no/such/model' does not exist"),
        ("{accent} --model {ascii}", 2, "{accent}: this tokenizer has no token for 'é'"),
    ],
)
def test_a_mistake_is_one_line(
    texts: dict[str, Path], tmp_path: Path, flags: str, code: int, words: str
) -> None:
    names = {"folder": tmp_path, "short": texts["short"], "ascii": tmp_path / "ascii"}
    for name, data in {"latin": b"n\xe9", "accent": "né".encode()}.items():
        names[name] = tmp_path / f"{name}.txt"
        names[name].write_bytes(data)
    tiny().save_pretrained(names["ascii"])
    letters = {letter: token for letter, token in BYTES.items() if token < 128}
    Tokenizer({**letters, "ab": 128}, [("a", "b")]).save_pretrained(names["ascii"])
    result = tell(*flags.format(**names).split())
    assert result.code == code
    assert result.mistake.startswith(words.format(**names))


def test_quiet_leaves_the_result_and_the_mistakes(writer: Path, texts: dict[str, Path]) -> None:
    asked = (texts["marked"], "--model", writer)
    assert tell(*asked, "--quiet").text == tell(*asked).text
    assert tell("no/such.txt", "--quiet").mistake.startswith("no/such.txt cannot be read")


def test_help_has_examples_and_needs_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        detect_watermark.main(["--help"])
    out = capsys.readouterr().out
    assert "minigpt detect-watermark story.txt" in out
    assert "exit codes" in out
    assert max(map(len, out.splitlines())) <= 110
    look = "import sys, minigpt.detect_watermark as it; it.parser(); assert 'torch' not in sys.modules"
    result = run(python=("-c", look))
    assert (result.code, result.err) == (0, "")
