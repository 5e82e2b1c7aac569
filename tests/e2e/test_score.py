"""`python -m minigpt.score` as a user meets it."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from command import END, Result, call, reciter, run, save, tiny

import minigpt
from minigpt import Tokenizer
from minigpt.cli import progress
from minigpt.evaluation import lambada as last_word
from minigpt.evaluation.logprobs import document_logprobs, token_logprobs
from minigpt.evaluation.perplexity import Document, Score, document
from minigpt.score import __main__ as score
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

STORY = "Once upon a time a wörld was 😀."
WINDOW = len(STORY.encode()) + 2
N_BYTES, N_WORDS = len(STORY.encode()), len(STORY.split())
IN_A_PROCESS: dict[str, Any] = {"python": ("-m", "minigpt.score")}


@pytest.fixture(scope="module")
def knows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that recites the story once it has read one token, such as the end token before it."""
    return save(tmp_path_factory.mktemp("knows"), reciter(f"x{STORY}"))


@pytest.fixture(scope="module")
def no_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has no end token."""
    folder = tmp_path_factory.mktemp("no_end")
    tiny().save_pretrained(folder)
    Tokenizer({**BYTES, "ĀĀ": 256}, [("Ā", "Ā")]).save_pretrained(folder)
    return folder


def tell(*flags: object, **how: Any) -> Result:
    """The command, in this process."""
    return call(*flags, main=score.main, **how)


def records(*flags: object, **how: Any) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = tell("--json", *flags, **how).text.split("\n")
    return [json.loads(line, parse_constant=refuse) for line in lines]


def mistake(result: Result, *words: str) -> None:
    """One line on stderr that says all of that, and nothing on stdout."""
    (line,) = result.err.splitlines()
    assert line.startswith("minigpt.score: ")
    assert result.out == ""
    missing = [word for word in words if word not in line]
    assert not missing, f"{line!r} does not say {missing}"


def written(folder: Path, name: str, *texts: str) -> Path:
    """A file of these documents, in the form that its name asks for."""
    lines = [json.dumps({"text": text}) for text in texts] if name.endswith("l") else None
    content = "\n".join(lines) if lines else f"\n{END_OF_TEXT}\n".join(texts)
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


# ------------------------------------------------------------------------------ figures


def test_who_knows_a_text_loses_nothing_on_it(knows: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "a.txt", STORY)
    (record,) = records(file, "--model", knows)
    assert record.pop("loss") == pytest.approx(0, abs=1e-3)
    assert record.pop("perplexity") == pytest.approx(1, abs=1e-3)
    assert record.pop("word_perplexity") == pytest.approx(1, abs=1e-2)
    assert record.pop("bits_per_byte") == pytest.approx(0, abs=1e-3)
    counts = {
        "tokens": N_BYTES + 1,
        "bytes": N_BYTES,
        "words": N_WORDS,
        "documents": 1,
        "stride": WINDOW // 2,
    }
    assert record == {"model": str(knows), "path": str(file), **counts}


def test_without_end_tokens_the_first_token_is_given(guesses: Path, tmp_path: Path) -> None:
    model, tokenizer = minigpt.load(guesses)
    tokens = tokenizer.encode(STORY)
    (record,) = records("--no-end-tokens", "--text", STORY, "--context", 7, "--stride", 3, "--model", guesses)
    assert (record["tokens"], record["bytes"], record["stride"]) == (N_BYTES - 1, N_BYTES - 1, 3)
    (expected,) = document_logprobs(model, [Document(tokens, 1, 1)], 3, context_length=7)
    assert record["loss"] == pytest.approx(-expected.mean().item(), rel=1e-5)


def test_a_table_for_people_and_the_speed_on_stderr(guesses: Path, tmp_path: Path) -> None:
    files = [written(tmp_path, "a.txt", "One.", "Two!"), written(tmp_path, "b.jsonl", STORY)]
    result = tell(*files, "--text", "x", "--model", guesses)
    heading, *rows = result.text.split("\n")
    assert heading.split() == ["loss", "perplexity", "word", "perplexity", "bits/byte", "tokens", "bytes",
                               "words", "documents"]  # fmt: skip
    assert len({len(line) for line in (heading, *rows)}) == 1
    found = [row.split() for row in rows]
    assert [row[0] for row in found] == [str(files[0]), str(files[1]), "--text", "total"]
    assert [row[-4:] for row in found] == [
        ["10", "8", "2", "2"],
        [str(N_BYTES + 1), str(N_BYTES), str(N_WORDS), "1"],
        ["2", "1", "1", "1"],
        [str(N_BYTES + 13), str(N_BYTES + 9), str(N_WORDS + 3), "4"],
    ]
    speed = rf"minigpt.score: {N_BYTES + 13} tokens at [\d,]+ tok/s, peak memory \d+ MB, context length 32, stride 16\n"
    assert re.fullmatch(speed, result.err)


def test_the_table_shows_what_the_json_holds(guesses: Path) -> None:
    (record,) = records("--text", STORY, "--model", guesses)
    row = tell("--text", STORY, "--model", guesses).text.split("\n")[1].split()
    assert row[1] == f"{record['loss']:.4f}"
    assert row[2:4] == [f"{record['perplexity']:,.2f}", f"{record['word_perplexity']:,.2f}"]
    assert row[4] == f"{record['bits_per_byte']:.4f}"


def test_one_row_has_no_total(guesses: Path) -> None:
    assert len(tell("--text", "x", "--model", guesses).text.split("\n")) == 2


def test_figures_are_those_of_the_library(guesses: Path, tmp_path: Path) -> None:
    texts = [STORY * 3, "x", STORY]
    (record,) = records(written(tmp_path, "a.jsonl", *texts), "--model", guesses, "--stride", 5)
    model, tokenizer = minigpt.load(guesses)
    total = Score(0, 0, 0, 0)
    for text in texts:
        one = document(text, tokenizer)
        total += one.score(token_logprobs(model, one.tokens, stride=5))
    assert record["loss"] == pytest.approx(total.loss, rel=1e-6)
    assert record["perplexity"] == pytest.approx(total.perplexity, rel=1e-6)
    assert record["word_perplexity"] == pytest.approx(total.word_perplexity, rel=1e-4)
    assert record["bits_per_byte"] == pytest.approx(total.bits_per_byte, rel=1e-6)


def test_a_text_is_the_same_however_it_comes(guesses: Path, tmp_path: Path) -> None:
    ways = [
        records(written(tmp_path, "a.txt", STORY), "--model", guesses),
        records(written(tmp_path, "a.jsonl", STORY), "--model", guesses),
        records("--text", STORY, "--model", guesses),
        records("-", "--model", guesses, stdin=f"{STORY}\n".encode()),
    ]
    assert [way[0].pop("path") for way in ways] == [
        str(tmp_path / "a.txt"), str(tmp_path / "a.jsonl"), None, "-"
    ]  # fmt: skip
    assert all(way == ways[0] for way in ways)


def test_a_folder_is_one_row_and_another_field_can_be_named(guesses: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"story": "One."}\n')
    written(tmp_path, "b.txt", "Two!", "Three")
    (record,) = records(tmp_path, "--text-field", "story", "--model", guesses)
    assert (record["path"], record["documents"], record["bytes"]) == (str(tmp_path), 3, 13)


def test_a_perplexity_beyond_json_is_null(tmp_path: Path) -> None:
    sure = save(tmp_path, reciter("xy", change=lambda model: model.head.weight.mul_(1000)))
    (record,) = records("--text", "no", "--model", sure)
    assert (record["perplexity"], record["word_perplexity"]) == (None, None)
    assert math.isfinite(record["loss"])


def test_batch_size_changes_no_figure(guesses: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", STORY * 5, "x", STORY)
    (one,), (many,) = (records(file, "--batch-size", n, "--model", guesses) for n in (1, 7))
    assert one["loss"] == pytest.approx(many["loss"], rel=1e-6)


def test_the_whole_window_as_stride(guesses: Path) -> None:
    (record,) = records("--text", STORY * 3, "--stride", 32, "--model", guesses)
    model, tokenizer = minigpt.load(guesses)
    one = document(STORY * 3, tokenizer)
    expected = one.score(token_logprobs(model, one.tokens, stride=32))
    assert record["stride"] == 32
    assert record["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert record["loss"] != pytest.approx(records("--text", STORY * 3, "--model", guesses)[0]["loss"])


def test_quiet_says_nothing_but_the_figures(guesses: Path) -> None:
    assert tell("--text", "x", "--quiet", "--model", guesses).err == ""


# ------------------------------------------------------------------------------ tokens


def test_per_token_one_document_a_line(guesses: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "a.txt", "One.", "é")
    first, second = records(file, "--per-token", "--model", guesses)
    assert (first["document"], second["document"]) == (0, 1)
    assert first["tokens"] == [*b"One.", END]
    assert first["token_strings"] == ["O", "n", "e", ".", END_OF_TEXT]
    assert second["token_strings"] == ["\ufffd", "\ufffd", END_OF_TEXT]
    for line in (first, second):
        assert line["loss"] == pytest.approx(-sum(line["logprobs"]) / len(line["tokens"]), rel=1e-6)


def test_without_an_end_token_the_first_token_is_given(no_end: Path) -> None:
    (line,) = records("--text", "abc", "--per-token", "--model", no_end)
    assert (line["tokens"], line["bytes"]) == ([*b"bc"], 2)


def test_logprobs_are_those_that_generate_gives_for_the_same_tokens() -> None:
    made = json.loads(call("--json", "--top-p", 0.9, "--seed", 4, "--max-new-tokens", 30).text)
    (line,) = records("--text", made["text"], "--per-token")
    n = len(line["tokens"]) - 1  # generate may not have come to the end token
    assert line["tokens"][:n] == made["tokens"][:n]
    assert n >= 29
    assert line["logprobs"][:n] == pytest.approx(made["logprobs"][:n], abs=1e-4)


# ------------------------------------------------------------------------------ last words


def test_last_words(tmp_path: Path) -> None:
    model = save(tmp_path / "model", reciter("A cat sat on the mat"))
    file = written(
        tmp_path, "a.jsonl", *(f"A cat sat on the {word}" for word in ("mat", "mad", "cat", "man"))
    )
    (record,) = records("--last-word", file, "--model", model)
    assert record.pop("perplexity") > 10
    assert record == {"model": str(model), "path": str(file), "accuracy": 0.25, "examples": 4, "cut": 0}
    heading, row = tell("--last-word", file, "--model", model).text.split("\n")
    assert heading.split() == ["accuracy", "perplexity", "examples", "cut"]
    assert row.split()[:2] == [str(file), "25.00%"]
    assert row.split()[3:] == ["4", "0"]


def test_last_words_are_those_of_the_library(guesses: Path, tmp_path: Path) -> None:
    texts = [STORY, f"{STORY} and more", "x y"]
    file = written(tmp_path, "a.jsonl", *texts)
    result = tell("--json", "--last-word", file, "--model", guesses, "--batch-size", 2)
    record = json.loads(result.text)
    model, tokenizer = minigpt.load(guesses)
    expected = last_word.last_words(model, [last_word.last_word_example(text, tokenizer) for text in texts])
    assert record["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
    assert record["cut"] == expected.n_cut == 2
    assert re.fullmatch(r"minigpt.score: \d+ tokens at .*, context length 32\n", result.err)


def test_last_words_read_the_field_that_is_named(guesses: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"story": "One two"}\n')
    (record,) = records("--last-word", file, "--text-field", "story", "--model", guesses)
    assert record["examples"] == 1


# ------------------------------------------------------------------------------ mistakes


BAD_FLAGS = {
    # numbers
    "--stride 0 --text x": ["--stride", "at least 1", "got 0"],
    "--stride 33 --text x": ["--stride", "from 1 to the context length of 32", "got 33"],
    "--stride x --text x": ["--stride", "'x'"],
    "--batch-size 0 --text x": ["--batch-size", "at least 1", "got 0"],
    "--threads 0 --text x": ["--threads", "from 1 to 1024"],
    # texts
    "--text x --context 0": ["--context must be at least 1, got 0"],
    "--text x --context 33": ["--context 33: the model's context length is 32"],
    "--text x --context 4 --stride 5": ["--stride must be from 1 to the context length of 4, got 5"],
    "--text x --no-end-tokens": ["--text: 'x' is a single token: without an end token, nothing predicts it"],
    "": ["no input", "--text"],
    "--text ''": ["--text", "the text is empty"],
    "{folder}/none": ["{folder}/none", "does not exist", "or - for stdin"],
    "{folder}/empty.txt": ["{folder}/empty.txt", "holds no text"],
    "{folder}/latin1.txt": ["{folder}/latin1.txt", "not UTF-8", "byte 3", "convert"],
    "{folder}/no_field.jsonl": ["{folder}/no_field.jsonl", "line 1", "'text'", "--text-field"],
    "{folder}/no_json.jsonl": ["{folder}/no_json.jsonl", "line 1", "not JSON"],
    "- -": ["stdin can be read once only"],
    # flags that do not go together
    "--text x --per-token": ["--per-token has no effect without --json: add it"],
    "--last-word {folder}/a.txt": ["--last-word", "needs a .jsonl file", "{folder}/a.txt"],
    "--last-word {folder}/none.jsonl": ["{folder}/none.jsonl", "does not exist"],
    "--last-word {folder}/one.jsonl x.txt": ["--last-word does not use FILE: leave it out"],
    "--last-word {folder}/one.jsonl --text x": ["--last-word does not use --text: leave it out"],
    "--last-word {folder}/one.jsonl --stride 3": ["--last-word does not use --stride: leave it out"],
    "--last-word {folder}/one.jsonl --per-token": ["--last-word does not use --per-token: leave it out"],
    "--last-word {folder}/one.jsonl": ["'word' is a single word", "nothing to predict it from"],
    "--last-word {folder}/long.jsonl": ["a last word of 41 tokens", "context length of 32"],
    "--nope": ["--nope", "--help"],
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(guesses: Path, tmp_path: Path, flags: str) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin1.txt").write_bytes("Caf\xe9".encode("latin-1"))
    (tmp_path / "no_field.jsonl").write_text('{"story": "x"}\n')
    (tmp_path / "no_json.jsonl").write_text("x\n")
    written(tmp_path, "one.jsonl", "word")
    written(tmp_path, "long.jsonl", "a " + 40 * "x")
    result = tell("--model", guesses, *shlex.split(flags.replace("{folder}", str(tmp_path))))
    assert result.code == 2
    mistake(result, *(words.replace("{folder}", str(tmp_path)) for words in BAD_FLAGS[flags]))


@pytest.mark.parametrize(
    ("data", "words"), [(b"", ["stdin", "no text"]), (b"ab\xff", ["stdin", "not UTF-8", "byte 2"])]
)
def test_stdin_that_is_no_text(guesses: Path, data: bytes, words: list[str]) -> None:
    result = tell("-", "--model", guesses, stdin=data)
    assert result.code == 2
    mistake(result, *words)
    assert "/" not in result.err.replace("minigpt.score: ", "").split(":")[0]  # no file that we made


def test_a_single_token_without_an_end_token(no_end: Path, tmp_path: Path) -> None:
    result = tell(written(tmp_path, "a.txt", "x"), "--model", no_end)
    assert result.code == 2
    mistake(
        result, str(tmp_path / "a.txt"), "'x' is a single token", "without an end token", "give more text"
    )


def test_a_tokenizer_that_knows_more_than_its_model(tmp_path: Path) -> None:
    result = tell("--text", "xyz", "--model", save(tmp_path, tiny(vocab_size=100)))
    assert result.code == 2
    mistake(result, "ids from 0 to 99", "the text has", "121")


def test_a_model_that_is_not_there() -> None:
    result = tell("--text", "x", "--model", "no/such/place")
    assert result.code == 3
    mistake(result, "'no/such/place'", "does not exist")


def test_a_mistake_in_the_last_file_is_found_before_anything_is_computed(
    guesses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.evaluation.logprobs.document_logprobs", None)
    (tmp_path / "b.txt").write_bytes(b"\xff")
    mistake(tell(written(tmp_path, "a.txt", "x"), tmp_path / "b.txt", "--model", guesses), "not UTF-8")


def test_out_of_memory_is_one_line(guesses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*asked: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 has ...")

    monkeypatch.setattr("minigpt.evaluation.logprobs.document_logprobs", fail)
    result = tell("--text", "x", "--model", guesses)
    assert result.code == 5
    mistake(result, "out of memory")


def test_mistakes_and_help_do_not_wait_for_torch() -> None:
    at_once = [
        "--stride 0 --text x",
        "nowhere.txt",
        "--nope",
        "--text x --per-token",
        "--last-word a.txt",
    ]
    code = (
        "import sys; from minigpt.score.__main__ import main\n"
        "for flags in sys.argv[1:]:\n"
        "    assert main(__import__('shlex').split(flags)) == 2, flags\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
    )
    result = run(*at_once, python=("-c", code))
    assert result.code == 0, result.err
    assert len(result.err.splitlines()) == len(at_once)
    assert "minigpt score story.txt" in result.out
    assert "comparable only across models with the same tokenizer" in result.out


# ------------------------------------------------------------------------------ as a process


def test_the_bundled_model_scores_stdin() -> None:
    result = run("--json", stdin=b"Once upon a time there was a king.", **IN_A_PROCESS)
    record = json.loads(result.text)
    assert (record["model"], record["path"], record["bytes"], record["stride"]) == ("bundled", "-", 34, 512)
    assert record["perplexity"] < 15


def test_ctrl_c_leaves_nothing_half(guesses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[object] = []

    def interrupted(*asked: Any) -> Iterator[torch.Tensor]:
        scored.append(next(iter(document_logprobs(*asked))))
        yield scored[-1]
        raise KeyboardInterrupt

    monkeypatch.setattr("minigpt.evaluation.logprobs.document_logprobs", interrupted)
    result = tell(written(tmp_path, "a.txt", "One.", "Two."), "--model", guesses)
    assert scored
    assert result == (130, "", "")


def test_a_bar_on_a_terminal_while_work_is_long(guesses: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def bar(*flags: str) -> str:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        assert score.main(["--text", "x" * 99, "--model", str(guesses), *flags]) == 0
        return screen.getvalue()

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    assert "tok/s]" not in bar()
    monkeypatch.setattr(progress, "QUICK", 0)
    assert "0.00/100" in bar()
    assert "tok/s]" in bar()
    assert bar("--quiet") == ""
    assert tell("--text", "x" * 99, "--model", guesses).err.count("tok/s") == 1  # to a file, the closing line


def test_the_bar_moves_to_its_end(guesses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Mock] = []

    def new_bar(**how: Any) -> Mock:
        bars.append(Mock(total=how["total"]))
        return bars[-1]

    monkeypatch.setattr(progress, "bar", new_bar)
    assert tell("--text", "x" * 99, "--model", guesses).code == 0
    file = written(tmp_path, "a.jsonl", "One two", f"{STORY} and more")
    assert tell("--last-word", file, "--model", guesses).code == 0
    assert [bar.total for bar in bars] == [100, 7 + 33]
    for bar in bars:
        assert sum(call.args[0] for call in bar.update.mock_calls) == bar.total
        bar.close.assert_called_once()
