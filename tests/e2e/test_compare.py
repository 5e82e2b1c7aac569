"""`python -m minigpt.compare` as a user meets it."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command import END, ROOT, Result, call, reciter, run, save, tiny

import minigpt
from minigpt import Tokenizer
from minigpt.cli import outputs, progress
from minigpt.compare import __main__ as compare
from minigpt.compare import methods, report
from minigpt.compare import run as comparison
from minigpt.compare import settings as compare_settings
from minigpt.compare.methods import METHODS
from minigpt.evaluation import diversity as measures
from minigpt.evaluation.logprobs import token_logprobs
from minigpt.tokenizer.bpe import BYTES

TWO = ("--method", "greedy", "--method", "drawn: --temperature 1.5 --top-k 20")
SHORT = ("--max-new-tokens", 6, *TWO)
STORY = "A long time ago there was a king who had a garden full of golden apples. " * 12


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("Once upon\n\nThe king\r\nA cat\n", encoding="utf-8")
    return file


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """Prompts with human text."""
    file = tmp_path / "told.jsonl"
    pairs = [("Once", " upon a time"), ("The king", " is dead"), ("A", "h!"), ("x", "yz")]
    file.write_text("".join(json.dumps({"prompt": a, "text": b}) + "\n" for a, b in pairs), encoding="utf-8")
    return file


def tell(*flags: object, **how: Any) -> Result:
    """The command, in this process."""
    return call(*flags, main=compare.main, **how)


def found(folder: Path, *flags: object) -> dict[str, Any]:
    """What the command writes as JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert tell(*flags, "--json", folder / "out.json").code == 0
    return dict(json.loads((folder / "out.json").read_text(encoding="utf-8"), parse_constant=refuse))


def generated(model: Path, prompt: str, *flags: object) -> str:
    """What `minigpt.generate` writes."""
    return call(prompt, "--model", model, "--max-new-tokens", 6, *flags).text


def mistake(result: Result, code: int, *words: str) -> None:
    """One line on stderr that says all of that, and nothing on stdout."""
    assert result.code == code
    (line,) = result.err.splitlines()
    assert line.startswith("minigpt.compare: ")
    assert result.out == ""
    missing = [word for word in words if word not in line]
    assert not missing, f"{line!r} does not say {missing}"


# ------------------------------------------------------------------------------ one prompt


def test_one_prompt_shows_the_texts_beside_their_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tmp_path, reciter("Once there were\n\nthree bears."))
    monkeypatch.setenv("COLUMNS", "26")  # of which the texts get 20 at the least
    flags = ("--model", model, "--max-new-tokens", 25, "--method", "greedy", "--method", "b: --num-beams 2")
    result = tell("Once", *flags)
    assert result.text.split("\n") == [
        "greedy         there were",
        "",
        "               three bears.",
        "",
        "b              there were",
        "--num-beams 2",
        "               three bears.",
    ]  # fmt: skip
    assert result.err == ""


def test_each_row_is_what_generate_writes_with_its_flags(guesses: Path, tmp_path: Path) -> None:
    rows = found(tmp_path, "Once", *SHORT, "--model", guesses, "--seed", 5)["methods"]
    assert [row["texts"] for row in rows] == [
        [generated(guesses, "Once")],
        [generated(guesses, "Once", "--temperature", 1.5, "--top-k", 20, "--seed", 5)],
    ]
    assert [(row["name"], row["flags"], row["strategy"]) for row in rows] == [
        ("greedy", "", "greedy"),
        ("drawn", "--temperature 1.5 --top-k 20", "sample"),
    ]


def test_a_method_keeps_a_seed_of_its_own(guesses: Path, tmp_path: Path) -> None:
    flags = ("--max-new-tokens", 6, "--method", "--top-k 30 --seed 7", "--model", guesses)
    (row,) = found(tmp_path, "Once", *flags)["methods"]
    assert row["name"] == "--top-k 30 --seed 7"
    assert row["texts"] == [generated(guesses, "Once", "--top-k", 30, "--seed", 7)]


def test_the_texts_as_markdown(guesses: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (row, _) = found(tmp_path, "Once", *SHORT, "--model", guesses, "--markdown", page)["methods"]
    heading, rule, first, second = page.read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert (heading, rule) == ("|  | flags | text |", "|---|---|---|")
    text = " ".join(row["texts"][0].split()).replace("|", "\\|")
    assert first == f"| greedy | none | {text} |"
    assert second.startswith("| drawn | `--temperature 1.5 --top-k 20` | ")


# ------------------------------------------------------------------------------ many prompts


def test_many_prompts_make_a_table_of_figures(guesses: Path, prompts: Path) -> None:
    result = tell("--prompts", prompts, *SHORT, "--model", guesses)
    heading, *rows, blank = result.text.split("\n")[:4]
    assert re.split(r"\s\s+", heading.strip()) == [
        "perplexity", "distinct-1", "-2", "-3", "self-BLEU", "Zipf", "rep-4", "loops", "tokens", "tok/s",
        "passes/tok", "cache MB",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["greedy", "drawn"]
    assert all(len(row.split()) == 13 for row in rows)
    assert blank == ""
    assert (
        f"3 prompts of {prompts}, at most 6 new tokens, seed 0, batches of 8; model {guesses}." in result.text
    )
    assert "(--judge)" not in result.text  # nothing is explained that is not there
    assert result.err == ""


def test_the_figures_are_those_of_the_library(
    guesses: Path, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = [], comparison.write
    monkeypatch.setattr(comparison, "write", lambda *asked: written.append(real(*asked)) or written[-1])
    record = found(tmp_path, "--prompts", told, *SHORT, "--model", guesses, "--judge", guesses)
    model, tokenizer = minigpt.load(guesses)
    human = [tokenizer.encode(text) for text in record["human"]["texts"]]
    prompts = [tokenizer.encode(prompt) for prompt in record["prompts"]]
    rows = [record["human"], *record["methods"]]
    for row, texts in zip(rows, [human, *(one.tokens for one in written)], strict=True):
        logprobs = [
            logprob
            for prompt, text in zip(prompts, texts, strict=True)
            for logprob in token_logprobs(model, [*prompt, *text], context=len(prompt)).tolist()
        ]
        bodies = [[token for token in text if token != END] for text in texts]
        expected = {
            "perplexity": math.exp(-sum(logprobs) / len(logprobs)),
            **{f"distinct_{n}": measures.distinct(bodies, n) for n in (1, 2, 3)},
            "self_bleu": measures.self_bleu(bodies),
            "zipf": measures.zipf(bodies),
            "rep_4": measures.repetition(bodies),
            "loops": measures.loops(bodies),
            "mean_tokens": sum(map(len, bodies)) / len(bodies),
        }
        figures = row["figures"]
        assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        is_human = row["name"] == "human"
        assert ("mauve" in figures) is ("passes_per_token" in figures) is (not is_human)
    assert rows[0]["figures"]["judge_perplexity"] == pytest.approx(rows[0]["figures"]["perplexity"])
    assert rows[1]["figures"]["passes_per_token"] == 1


def test_a_judge_reads_the_text_with_its_own_tokens(told: Path, guesses: Path, tmp_path: Path) -> None:
    told.write_text('{"prompt": "The king", "text": " is dead"}')
    record = found(
        tmp_path, "--prompts", told, "--max-new-tokens", 3, "--judge", guesses, "--method", "greedy"
    )
    (human,) = record["human"]["texts"]
    model, tokenizer = minigpt.load(guesses)
    logprobs = token_logprobs(model, tokenizer.encode("The king" + human), context=len("The king"))
    expected = math.exp(-float(logprobs.mean()))
    assert record["human"]["figures"]["judge_perplexity"] == pytest.approx(expected, rel=1e-4)
    assert record["human"]["figures"]["perplexity"] != pytest.approx(expected, rel=1e-2)


def test_human_text_is_cut_to_what_a_method_may_write(guesses: Path, told: Path, tmp_path: Path) -> None:
    record = found(tmp_path, "--prompts", told, *SHORT, "--model", guesses)
    assert record["prompts"] == ["Once", "The king", "A", "x"]
    assert record["human"]["texts"] == [" upon ", " is de", "h!", "yz"]
    assert tell("--prompts", told, *SHORT, "--model", guesses).text.split("\n")[1].split()[0] == "human"


def test_an_end_token_is_predicted_and_no_part_of_the_text(tmp_path: Path) -> None:
    save(tmp_path / "knows", reciter("Once!"))
    (tmp_path / "p.txt").write_text("Once\nOnce\n")
    flags = ("--prompts", tmp_path / "p.txt", "--model", tmp_path / "knows", "--max-new-tokens", 2)
    (row,) = found(tmp_path, *flags, "--method", "greedy")["methods"]
    assert row["texts"] == ["!", "!"]
    assert row["figures"]["mean_tokens"] == 1
    assert row["figures"]["perplexity"] == pytest.approx(1, abs=1e-2)  # "!" and the end, both known by heart
    assert row["figures"]["distinct_1"] == 0.5
    assert row["figures"]["distinct_2"] is None  # there is no pair, and JSON has no NaN


def test_prompts_from_a_held_out_text(guesses: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text(STORY)
    flags = ("--held-out", tmp_path / "held.txt", "--n-prompts", 20, "--prompt-tokens", 9, "--model", guesses)
    record = found(tmp_path, *flags, *SHORT)
    again, other = found(tmp_path, *flags, *SHORT), found(tmp_path, *flags, *SHORT, "--seed", 1)
    whole = [a + b for a, b in zip(record["prompts"], record["human"]["texts"], strict=True)]
    assert [len(one) for one in record["prompts"]] == [9] * 20
    assert all(text in [STORY[start : start + 15] for start in range(0, len(STORY), 15)] for text in whole)
    assert again["prompts"] == record["prompts"] != other["prompts"]


def test_the_page_and_the_picture(guesses: Path, told: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "page.md", tmp_path / "quality.png"
    result = tell(
        "--prompts",
        told,
        *SHORT,
        "--model",
        guesses,
        "--markdown",
        page,
        "--plot",
        picture,
        "--judge",
        guesses,
    )
    heading, rule, human, greedy, drawn, blank, *legend = page.read_text(encoding="utf-8").split("\n")
    assert heading.startswith(
        "|  | flags | perplexity | judge's | MAUVE | distinct-1 | -2 | -3 | self-BLEU |"
    )
    assert heading.count("|") == rule.count("|") == human.count("|") == greedy.count("|") == drawn.count("|")
    assert human.startswith("| human |  | ")
    assert human.endswith("| – | – | – |")  # what a human costs is not known
    assert greedy.startswith("| greedy | none | ")
    assert drawn.startswith("| drawn | `--temperature 1.5 --top-k 20` | ")
    assert blank == ""
    assert legend.pop() == ""
    assert result.text.endswith("\n".join(note.removeprefix("- ") for note in legend))
    assert all(note.startswith("- ") for note in legend)
    assert f", judge {guesses}." in result.text
    assert "given the prompt; judge's: under the evaluator model (--judge).\n" in result.text
    assert "MAUVE: 4 texts a side, features" in result.text
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_without_its_package_mauve_is_left_out_and_the_table_says_so(
    guesses: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("minigpt.compare.measuring", "minigpt.compare.report"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    out = tell("--prompts", told, *SHORT, "--model", guesses).text
    assert "MAUVE: left out, its package is missing: pip install 'minigpt[compare]'." in out
    assert "MAUVE" not in out.split("\n")[0]


def test_the_json_says_how_it_was_found(guesses: Path, prompts: Path, tmp_path: Path) -> None:
    record = found(
        tmp_path, "--prompts", prompts, *SHORT, "--model", guesses, "--batch-size", 2, "--threads", 1
    )
    assert record["settings"] == {
        "model": str(guesses), "prompts": str(prompts), "held_out": None, "n_prompts": None, "prompt_tokens": None,
        "max_new_tokens": 6, "seed": 0, "batch_size": 2, "judge": None,
    }  # fmt: skip
    assert record["versions"].keys() == {"minigpt", "torch", "python"}
    assert record["machine"]["threads"] == 1
    assert record["machine"]["dtype"] == "float32"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert (record["interrupted"], record["human"]) == (False, None)
    assert record["prompts"] == ["Once upon", "The king", "A cat"]


def test_batches_change_no_text(guesses: Path, prompts: Path, tmp_path: Path) -> None:
    flags = ("--prompts", prompts, *SHORT, "--model", guesses)
    one, all_at_once = found(tmp_path, *flags, "--batch-size", 1), found(tmp_path, *flags)
    assert [row["texts"] for row in one["methods"]] == [row["texts"] for row in all_at_once["methods"]]


def test_every_method_of_the_list_runs(guesses: Path, prompts: Path, tmp_path: Path) -> None:
    record = found(tmp_path, "--prompts", prompts, "--max-new-tokens", 8, "--model", guesses)
    assert [(row["name"], row["flags"]) for row in record["methods"]] == list(METHODS.items())
    assert all(len(row["texts"]) == 3 for row in record["methods"])


def test_the_help_teaches_the_methods_and_needs_no_torch() -> None:
    result = run("--help", python=("-X", "importtime", "-m", "minigpt.compare"))
    assert result.code == 0
    for name, flags in METHODS.items():
        assert re.search(
            rf"^  {re.escape(name)} +{re.escape(flags or '(no flags)')}$", result.out, re.MULTILINE
        )
    assert not re.search(r"\| +torch$", result.err, re.MULTILINE)


def test_the_bundled_model_in_a_process_of_its_own() -> None:
    result = run("Once", "--max-new-tokens", 3, "--method", "greedy", python=("-m", "minigpt.compare"))
    assert result.text.startswith("greedy  ")


# ------------------------------------------------------------------------------ Ctrl-C and progress


def interrupting(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C comes when so many methods are done and the next has begun."""
    done: list[object] = []
    real = comparison.write

    def write(*asked: Any) -> Any:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(asked)
        return real(*asked)

    monkeypatch.setattr(comparison, "write", write)


def test_ctrl_c_keeps_the_methods_that_are_done(
    guesses: Path, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, after=1)
    result = tell("--prompts", told, *SHORT, "--model", guesses, "--json", tmp_path / "out.json")
    assert result.code == 130
    assert result.err == ""
    assert [row.split()[0] for row in result.out.split("\n")[1:3]] == ["human", "greedy"]
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["interrupted"] is True
    assert [row["name"] for row in record["methods"]] == ["greedy"]


def test_ctrl_c_before_the_first_is_done_writes_nothing(
    guesses: Path, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, after=0)
    files = [tmp_path / "keep.md", tmp_path / "keep.json"]
    for file in files:
        file.write_text("of an earlier run")
    for prompts in (["Once"], ["--prompts", told]):
        result = tell(*prompts, *SHORT, "--model", guesses, "--markdown", files[0], "--json", files[1])
        assert (result.code, result.out) == (130, "")
        assert result.err == "minigpt.compare: interrupted before any method was done\n"
    assert [file.read_text() for file in files] == ["of an earlier run"] * 2


def test_a_bar_on_a_terminal(guesses: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def bar(*flags: object) -> str:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        asked = ["--prompts", prompts, *SHORT, "--model", guesses, *flags]
        assert compare.main([str(flag) for flag in asked]) == 0
        return screen.getvalue()

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(progress, "QUICK", 0)
    assert "0/6 " in bar()
    assert "drawn: " in bar()
    assert bar("--quiet") == ""


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["nothing to continue: give one of PROMPT, --prompts FILE and --held-out FILE"]),
        (("x", "--prompts", "y"), ["several sources of prompts: give one of"]),
        (("",), ["the prompt is empty: give at least a word"]),
        (("--prompts", "p.jsonl", "--json", "p.jsonl"), ["--json p.jsonl is the file of --prompts: name another file"]),
        (("--held-out", "p.txt", "--markdown", "p.txt"), ["--markdown p.txt is the file of --held-out: name another"]),
        (("x", "--markdown", "x.md", "--json", "x.md"), ["--json x.md is the file of --markdown: name another file"]),
        (("x", "--n-prompts", 3), ["--n-prompts is for --held-out FILE: leave it out"]),
        (("x", "--prompt-tokens", 3), ["--prompt-tokens is for --held-out FILE"]),
        (("--held-out", "x", "--n-prompts", 0), ["--n-prompts must be at least 1, got 0"]),
        (("x", "--max-new-tokens", 0), ["--max-new-tokens must be at least 1, got 0"]),
        (("x", "--batch-size", 0), ["--batch-size must be at least 1, got 0"]),
        (("x", "--seed", -1), ["--seed must be at least 0, got -1"]),
        (("x", "--threads", 0), ["--threads must be from 1"]),
        (("x", "--method", "gredy"), ["--method 'gredy' is not known; write NAME: FLAGS, or one of these: greedy, prompt lookup, beam 5"]),
        (("x", "--method", ":"), ["--method ':' has no name; write NAME: FLAGS"]),
        (("x", "--method", "a: --top-q 1"), ["--method 'a': unrecognized arguments: --top-q 1"]),
        (("x", "--method=--top-q 1"), ["--method '--top-q 1': unrecognized arguments: --top-q 1"]),
        (("x", "--method", "a: --top-k many"), ["--method 'a': argument --top-k: expected a whole number, got 'many'"]),
        (("x", "--method", "a: --top-p 1.5"), ["--method 'a': ", "1.5"]),
        (("x", "--method", "a: --num-beams 2 --num-return-sequences 2"), ["leave out --num-return-sequences"]),
        (("x", "--method", "a: --strategy greedy --top-k 2"), ["--top-k is not supported by greedy"]),
        (("x", "--method", "a: --strategy none"), ["--method 'a': argument --strategy: invalid choice: 'none'"]),
        (("x", "--method", "a: --bad-words 'b"), ["--method 'a': No closing quotation"]),
        (("x", "--method", "a: --top-k 2", "--method", "a: --top-k 3"), ["--method: 'a' is named twice; write NAME: FLAGS"]),
        (("x", "--method", "a: more words"), ["--method 'a': unrecognized arguments: more words"]),
        (("x", "--json", "/no/such/out.json"), ["--json /no/such/out.json: there is no such folder to write into"]),
        (("x", "--markdown", "/"), ["--markdown '/' is a folder or a device; name a file"]),
        (("--prompts", "x", "--plot", "out.jpg"), ["--plot out.jpg: it will be a PNG, so name it .png"]),
        (("x", "--plot", "out.png"), ["--plot shows metrics of many texts: give --prompts or --held-out, not PROMPT"]),
        (("--prompts", "/no/such.txt"), ["/no/such.txt cannot be read: No such file or directory; name a text file"]),
        (("--held-out", "/no/such.txt"), ["/no/such.txt does not exist: name a text file"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_a_model_is_loaded(flags: tuple[object, ...], words: list[str]) -> None:
    mistake(tell(*flags, "--model", "/no/such/model"), 2, *words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"", ["p.txt is empty: put a prompt on each line"]),
        ("p.txt", b"\n \n", ["p.txt is empty"]),
        ("p.txt", b"a\n\xff\n", ["p.txt is not UTF-8 (byte 2): convert it"]),
        ("p.jsonl", b"", ["p.jsonl is empty"]),
        ("p.jsonl", b'{"prompt": "a"}\nOnce\n', ["p.jsonl, line 2 is not JSON: "]),
        ("p.jsonl", b'{"text": "a"}', ['p.jsonl, line 1: no "prompt"; write']),
        ("p.jsonl", b'["prompt"]', ['p.jsonl, line 1: no "prompt"']),
        ("p.jsonl", b'{"prompt": 3}', ['line 1: "prompt" is no text, or empty']),
        ("p.jsonl", b'{"prompt": "a", "text": ""}', ['line 1: "text" is no text, or empty']),
        ("p.jsonl", b'{"prompt": "a", "text": "b"}\n{"prompt": "c"}', ['some prompts have a human "text" and some none']),
    ],
)  # fmt: skip
def test_bad_prompts(name: str, content: bytes, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    mistake(tell("--prompts", tmp_path / name, "--model", "/no/such/model"), 2, *words)


def test_a_folder_is_no_file_of_prompts(tmp_path: Path) -> None:
    mistake(tell("--prompts", tmp_path), 2, f"{tmp_path} cannot be read: Is a directory")


def test_no_such_model(guesses: Path) -> None:
    mistake(tell("x", "--model", "/no/such/model"), 3, "/no/such/model")
    mistake(tell("x", "--model", guesses, *SHORT, "--judge", "/no/such/judge"), 3, "/no/such/judge")


def test_a_prompt_too_long_for_the_window(guesses: Path, prompts: Path) -> None:
    flags = ("--prompts", prompts, "--model", guesses, *TWO)
    assert tell(*flags, "--max-new-tokens", 24).code == 0
    mistake(
        tell(*flags, "--max-new-tokens", 25), 4,
        "prompt 1 has 9 tokens and needs 33 positions with 25 new ones (the last is not read), the model's context length"
        " is 32: shorten it, or lower --max-new-tokens",
    )  # fmt: skip


def test_texts_that_fill_the_window_to_the_last_token(guesses: Path, told: Path, tmp_path: Path) -> None:
    told.write_text('{"prompt": "The king", "text": "!"}\n' * 2)
    flags = ("--prompts", told, "--model", guesses, "--max-new-tokens", 25, "--method", "greedy")
    (row,) = found(tmp_path, *flags)["methods"]
    assert 0 <= row["figures"]["mauve"] <= 1  # though prompt and text are one more than the model can read


def test_a_held_out_text_too_short(guesses: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("x" * 45)
    flags = ("--held-out", tmp_path / "held.txt", "--prompt-tokens", 9, *SHORT, "--model", guesses)
    assert tell(*flags, "--n-prompts", 3).code == 0
    mistake(
        tell(*flags, "--n-prompts", 4), 2,
        "the text has 3 passages of 15 tokens (--prompt-tokens 9, --max-new-tokens 6), but --n-prompts is 4: name a longer",
    )  # fmt: skip


def test_a_vocabulary_that_lacks_a_character(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    Tokenizer(
        {byte: id for byte, id in BYTES.items() if byte != "z"} | {"ĀĀ": 256}, [("Ā", "Ā")]
    ).save_pretrained(tmp_path)
    mistake(tell("zoo", "--model", tmp_path, *SHORT), 2, "z")


def test_options_that_rule_out_every_token(guesses: Path) -> None:
    ban = " ".join(f"--logit-bias {token}=-inf" for token in range(END + 1))
    result = tell("Once", "--model", guesses, "--max-new-tokens", 6, "--method", f"mute: {ban}")
    mistake(result, 2, "mute: no token is left to choose")


def test_a_method_that_fails_does_not_take_the_others_along(guesses: Path, tmp_path: Path) -> None:
    dead = "dead: " + " ".join(f"--logit-bias {token}=-inf" for token in range(END + 1))
    asked = ("Once", "--model", guesses, "--max-new-tokens", 6, "--json", tmp_path / "out.json")
    result = tell(*asked, "--method", "greedy", "--method", dead)
    assert result.code == 1
    assert result.out.startswith("greedy")
    assert result.err.startswith("minigpt.compare: dead failed and is left out: no token is left to choose")
    record = json.loads((tmp_path / "out.json").read_text())
    assert [row["name"] for row in record["methods"]] == ["greedy"]
    assert list(record["failures"]) == ["dead"]


def test_a_name_that_is_no_text_does_no_harm(guesses: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"od\xffd: --top-k 3")
    (row,) = found(tmp_path, "Once", "--max-new-tokens", 2, "--method", odd, "--model", guesses)["methods"]
    assert row["name"] == "od?d"


def test_a_terminal_is_not_told_what_to_do(tmp_path: Path) -> None:
    model = save(tmp_path, reciter("a\x1b[2J\x9b31m!"))
    asked = ("a", "--model", model, "--max-new-tokens", 10, "--method", "greedy")
    assert "\x1b" in tell(*asked).out, "a pipe gets every byte"
    assert tell(*asked, terminal=True).text == "greedy  ·[2J·31m!"


def test_a_file_that_cannot_be_written_leaves_the_table(
    guesses: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(file: str, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_file", full)
    result = tell("Once", *SHORT, "--model", guesses, "--json", tmp_path / "out.json")
    assert result.code == 1
    assert result.out.startswith("greedy")
    assert json.loads(result.out[result.out.index("{") :])["settings"]["model"] == str(guesses)
    name = tmp_path / "out.json"
    assert result.err == f"minigpt.compare: --json {name}: No space left on device; its text went to stdout\n"
    assert list(tmp_path.iterdir()) == []


def test_plot_without_matplotlib(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_settings, "find_spec", lambda name: None)
    mistake(
        tell("--prompts", prompts, "--plot", "out.png"), 2,
        "--plot needs the package matplotlib: pip install 'minigpt[plot]'",
    )  # fmt: skip


def test_the_list_can_be_read() -> None:
    chosen = methods.chosen([], seed=0)
    assert [(one.name, one.flags) for one in chosen] == list(METHODS.items())
    assert report.HUMAN not in METHODS


# ------------------------------------------------------------------------------ the README's table


def ordering(monkeypatch: pytest.MonkeyPatch, **changed: tuple[float, float]) -> str:
    """What scripts/compare_methods.py says of perplexities and repetitions as published, but for those changed."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    figures = {
        "human": (12, 0.01), "greedy": (2, 0.7), "beam 5": (1.5, 0.3), "pure sampling": (23, 0.001),
        "temperature 0.7": (5, 0.05), "top-k 40": (7, 0.005), "nucleus 0.95": (13, 0.008),
    } | {name.replace("_", " "): value for name, value in changed.items()}  # fmt: skip
    # one of four repeats itself
    texts = ["la la la la la la la la"] + 3 * ["Once upon a time there was a king"]
    rows = [
        {"name": name, "figures": {"perplexity": a, "rep_4": b}, "texts": texts}
        for name, (a, b) in figures.items()
    ]
    module = import_module("compare_methods")
    return str(module.ordering({"human": rows[0], "methods": rows[1:]}))


def test_the_published_ordering_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = [line for line in ordering(monkeypatch).split("\n") if line.startswith("- ")]
    assert [line.rpartition(": ")[2] for line in claims] == ["yes"] * 5


@pytest.mark.parametrize(
    ("changed", "departure"),
    [
        ({"greedy": (14, 0.7)}, "below human perplexity: **not here**: greedy has 14.00, humans 12.00"),
        ({"beam_5": (2, 0.002)}, "(rep-4): **not here**: beam 5 has 0.2%, humans 1.0%"),
        (
            {"pure_sampling": (9, 0)},
            "above human perplexity: **not here**: pure sampling has 9.00, humans 12.00",
        ),
        ({"top-k_40": (12, 0)}, "**not here**: top-k 40 is nearer (12.00; nucleus 13.00, humans 12.00)"),
        ({"top-k_40": (7, 0.011)}, "**not here**: top-k 40 is nearer (1.1%; nucleus 0.8%, humans 1.0%)"),
    ],
)
def test_a_departure_is_told_with_its_figures(
    changed: dict[str, Any], departure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ordering(monkeypatch, **changed)
    assert departure in said
    assert said.count("**not here**") == 1
    assert ("surer than it has a right to be" in said) is ("pure_sampling" in changed)
    why = "1 of the 4 human texts have half of all that is repeated"
    assert (why in said) is ("(rep-4): **not here**: top-k 40 is nearer" in said)
