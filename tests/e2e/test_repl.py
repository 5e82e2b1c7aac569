"""`python -m minigpt.generate -i`: a person and the model write a text in turns."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from command import Result, call, reciter, save, start, tiny, wait

from minigpt.generate import session
from minigpt.sampler.api import run as decode
from minigpt.sampler.events import TokenGenerated

STORY = "Once a cat saw a dog and cried: aaab! The End."
NOISE = ("--temperature", 1000, "--max-new-tokens", 20, "--logit-bias", "257=-inf")  # and no end
Type = Callable[..., Result]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("story"), reciter(STORY))


@pytest.fixture
def type_(story: Path) -> Type:
    """Types lines, with the model that knows one story by heart and writes four letters of it at a time."""

    def type_(*lines: str, flags: tuple[object, ...] = ()) -> Result:
        typed = "".join(f"{line}\n" for line in lines).encode()
        return call("--model", story, "-i", "--max-new-tokens", 4, *flags, stdin=typed)

    return type_


def notes(result: Result) -> list[str]:
    """What was said on stderr, without prompt marks, greeting and closing lines."""
    lines = (re.sub(r"^([>.] )+", "", line) for line in result.err.splitlines())
    return [
        line
        for line in lines
        if line and not re.match("type text to continue|minigpt.generate: prompt", line)
    ]


# ------------------------------------------------------------------------------ typing


def test_the_text_goes_on_from_what_is_typed(type_: Type) -> None:
    """Only what the model writes goes to stdout; what was written and typed so far is its context."""
    result = type_("Once", "saw", "", "!show")
    assert result.text == " a c\naw a\n dog\nOnce a c sawaw a dog"
    assert result.err.startswith("type text to continue it")
    assert result.err.count("> ") == 5
    assert notes(result) == []


def test_a_prompt_of_the_command_is_the_beginning(type_: Type) -> None:
    assert type_("saw", flags=("Once",)).text == " a c\naw a"


def test_an_empty_text_begins_as_an_empty_prompt_does(type_: Type) -> None:
    assert type_("").text == STORY[1:5]


def test_a_backslash_at_the_end_adds_a_line(type_: Type) -> None:
    result = type_("On\\", "\\", "e", "!show")
    assert result.text == "a ca\nOn\n\nea ca"
    assert result.err.count(". ") == 2


def test_two_exclamation_marks_are_one(type_: Type) -> None:
    assert type_("!!!a", "!show").text == "e a \n!!ae a "


@pytest.mark.parametrize("line", ["!quit", " !quit "])
def test_quit_ends_it(type_: Type, line: str) -> None:
    result = type_("Once", line, "never read")
    assert (result.code, result.out) == (0, " a c\n")


def test_the_input_may_end_within_a_line(story: Path) -> None:
    result = call("--model", story, "-i", "--max-new-tokens", 4, "--quiet", stdin=b"On\\\nce")
    assert (result.text, result.err) == ("a ca", "> . > ")


def test_what_is_no_utf_8_does_no_harm(story: Path) -> None:
    assert call("--model", story, "-i", "--max-new-tokens", 1, stdin=b"a\xff\n").text == STORY[4]


def test_the_end_token_is_told_and_not_shown(type_: Type) -> None:
    result = type_(STORY[:-2], "!show")
    assert result.text == f"d.\n{STORY}"
    assert notes(result) == ["end of text reached; press Enter to continue"]


def test_nothing_of_a_stop_string_becomes_the_context(type_: Type) -> None:
    assert type_("Once", "!show", flags=("--stop", "c")).text == " a \nOnce a "


# ------------------------------------------------------------------------------ retry and back


def test_retry_writes_another_text_unless_a_seed_was_set(type_: Type) -> None:
    free = type_("Once", "!retry", flags=NOISE)
    first, second = re.findall(r"seed (\d+)", free.err)
    assert first != second
    assert notes(free) == []
    seeded = type_("Once", "!retry", flags=(*NOISE, "--seed", 1))
    assert re.findall(r"seed (\d+)", seeded.err) == ["1", "1"]
    once, again = seeded.text[: len(seeded.text) // 2], seeded.text[len(seeded.text) // 2 + 1 :]
    assert once == again
    assert notes(seeded) == ["the same text again: the seed is fixed at 1; `!set seed` removes it"]


def test_retry_drops_the_last_continuation(type_: Type) -> None:
    assert type_("Once", "saw", "!retry", "!show").text == " a c\naw a\naw a\nOnce a c sawaw a"


def test_every_turn_has_a_seed_of_its_own(type_: Type) -> None:
    assert len(set(re.findall(r"seed (\d+)", type_("a", "b", "c", flags=NOISE).err))) == 3


@pytest.mark.parametrize("command", ["!undo", "!back"])
def test_undo_removes_what_was_typed_and_what_followed(type_: Type, command: str) -> None:
    result = type_("Once", "xyz", command, "!show", command, "!show", command, "!retry")
    assert result.text == " a c\naw a\nOnce a c\n"
    nothing = "there is no text yet: type some"
    assert notes(result) == ["back at ...Once a c", "back at the beginning", nothing, nothing]


# ------------------------------------------------------------------------------ settings


def test_set_changes_a_setting_by_its_flags_name(type_: Type) -> None:
    result = type_("!set max_new_tokens 2", "Once", "!set --max-new-tokens", "", "!set max-new-tokens=3")
    assert result.text == f"{STORY[4:6]}\n{STORY[6:]}"
    assert notes(result)[:2] == [
        "max-new-tokens: 2; strategy: greedy", "max-new-tokens: not set; strategy: greedy",
    ]  # fmt: skip


def test_settings_choose_the_strategy_as_flags_do(type_: Type) -> None:
    result = type_(
        "!set top_p 0.9", "!set num_beams 2", "!set top_p", "!set num-beams", "!set temperature 2", "Once"
    )
    assert [note.rpartition(" ")[2] for note in notes(result)] == [
        "sample", "beam-sample", "beam", "greedy", "sample"
    ]  # fmt: skip
    assert ", seed " in result.err


def test_set_takes_several_values_and_words_in_quotes(type_: Type) -> None:
    assert type_("!set stop 'a c' zzz", "Once", "!set stop", "").text == " \na ca"
    assert type_("!set logit_bias 32=-inf", "Once").text.count(" ") == 0


def test_a_switch_is_on_or_off(type_: Type) -> None:
    result = type_("!set echo on", "Once", "!set echo off", "", "!set echo 1")
    assert result.text == "Once a c\nat s"
    assert notes(result)[-1] == "--echo is on or off, got '1'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("!set top_p 1.5", "top_p (--top-p) must be a number from 0 to 1, got 1.5"),
        ("!set top_k many", "argument --top-k: expected a whole number, got 'many'; see --help"),
        ("!set num_beams 0", "num_beams (--num-beams) must be a whole number from 1 to 65536, got 0"),
        ("!set max_new_tokens 0", "--max-new-tokens must be at least 1, got 0"),
        ("!set top_p 0.1 0.2", "--top-p takes one value, got 2"),
        ("!set overflow bend", "argument --overflow: invalid choice: 'bend'"),
        ("!set bravo 3", "there is no --bravo; !set lists all settings"),
        ("!set model gpt2", "--model cannot be set here: leave, and start again with it"),
        ("!set tokenizer gpt2", "--tokenizer cannot be set here: leave, and start again with it"),
        ("!set out shards", "--out cannot be set here"),
        ("!set json on", "--json cannot be set here"),
        ("!set num_return_sequences 2", "--interactive shows one text as it grows"),
        ("!set stop 'a", "!set stop 'a: no closing quotation"),
        ("!set temp 3", "there is no --temp (use --temperature); !set lists all settings"),
        ("!sett", "there is no !sett (did you mean !set?): !help lists commands, !! begins a text with !"),
        ("!top_p 0.9", "there is no !top_p (a setting is changed by !set top_p VALUE): !help lists commands"),
        ("!bravo", "there is no !bravo: !help lists commands"),
        ("!", "there is no !: !help"),
        ("!save", "!save takes the name of one file"),
        ("!save a b", "!save takes the name of one file"),
        ("!save none/x", "!save none/x: there is no such folder to write into"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(type_: Type, line: str, message: str) -> None:
    result = type_("Once", line, "", "!show")
    assert result.text == " a c\nat s\nOnce a cat s"
    (note,) = notes(result)
    assert note.startswith(message)


def test_set_alone_shows_all(type_: Type) -> None:
    result = type_("!set", flags=("--seed", 0, "--stop", "a b", "--echo"))
    *given, unset = notes(result)
    assert {tuple(line.split(maxsplit=1)) for line in given} >= {
        ("max-new-tokens", "4"), ("seed", "0"), ("stop", "['a b']"), ("echo", "True"), ("overflow", "slide"),
        ("strategy", "greedy"),
    }  # fmt: skip
    assert unset.startswith("not set: ")
    names = set(unset.removeprefix("not set: ").split(", "))
    assert {"temperature", "num-beams", "explain"} <= names
    assert not {"tokenizer", "quantize", "prompts", "out", "workers"} & names  # of no use in a session
    assert result.out == ""


def test_explain_can_be_switched_on(type_: Type) -> None:
    assert "entropy (bits)" in type_("!set explain on", "Once").err


def test_help_tells_of_every_command(type_: Type) -> None:
    err = type_("!help").err
    for command in ("!set", "!retry", "!undo", "!back", "!next", "!show", "!save", "!help", "!quit"):
        assert command in err


# ------------------------------------------------------------------------------ saving


def test_save_writes_the_text_and_never_over_another_unasked(type_: Type, tmp_path: Path) -> None:
    file = tmp_path / "my story.txt"
    result = type_("Once", f"!save '{file}'", "", f"!save '{file}'")
    assert file.read_text() == "Once a c\n"
    assert notes(result) == [
        f"saved 8 characters to {file}",
        f"!save {file}: it exists already; take another name, or !save --replace",
    ]
    type_("Once", "", f"!save --replace '{file}'")
    assert file.read_text() == "Once a cat s\n"
    assert os.listdir(tmp_path) == [file.name]


def test_save_as_json_keeps_turns_and_settings(type_: Type, story: Path, tmp_path: Path) -> None:
    type_("Once", "!set logit_bias 5=1", "xyz", f"!save {tmp_path / 's.json'}")
    saved = json.loads((tmp_path / "s.json").read_text())
    assert saved == {
        "model": str(story),
        "text": "Once a c xyzaw a",
        "turns": [{"typed": "Once", "written": " a c"}, {"typed": " xyz", "written": "aw a"}],
        "strategy": "greedy",
        "settings": {"max-new-tokens": 4, "overflow": "slide", "logit-bias": [[5, 1.0]]},
    }


def test_what_cannot_be_written_is_told(type_: Type, tmp_path: Path) -> None:
    assert notes(type_(f"!save --replace {tmp_path}")) == [
        f"!save {tmp_path}: it exists already; take another name, or !save --replace"
    ]
    with patch("minigpt.generate.repl.write_file", side_effect=OSError(28, "No space left on device")):
        assert notes(type_(f"!save {tmp_path / 'x'}")) == [f"!save {tmp_path / 'x'}: No space left on device"]


# ------------------------------------------------------------------------------ the window's edge


def test_the_text_may_grow_beyond_the_window(type_: Type) -> None:
    result = type_("Once", *[""] * 5, flags=("--max-new-tokens", 15, "--logit-bias", "257=-inf"))
    assert len(result.text) == 6 * 16 - 1
    assert "window slid" in result.err
    assert any(
        re.match(r"minigpt.generate: left out the \d+ oldest of \d+ prompt tokens$", n) for n in notes(result)
    )


def test_the_next_tokens_are_known_beyond_the_context_length(type_: Type) -> None:
    result = type_("Once" + "x" * 99, "!next 1")
    (dropped, heading, row) = notes(result)
    assert re.match(r"minigpt.generate: left out the \d+ oldest of 103 prompt tokens$", dropped)
    assert heading.split()[0] == "token"
    assert 0 < float(row.split()[-2]) <= 1


def test_stopping_at_the_edge_says_what_to_do(type_: Type) -> None:
    result = type_("Once", "!set overflow slide", "", flags=("--overflow", "stop", "--max-new-tokens", 99,
                                                             "--logit-bias", "257=-inf"))  # fmt: skip
    window = len(STORY) + 1
    (full, *_) = notes(result)
    assert (
        full
        == f"the context length of {window} tokens is reached: !set overflow slide continues, !undo makes room"
    )
    assert "window slid" in result.err


def test_a_text_that_does_not_fit_is_refused_in_one_line(type_: Type) -> None:
    result = type_("Once", "x" * 99, "", flags=("--overflow", "error"))
    assert result.text == " a c\nat s"
    (note,) = notes(result)
    assert note.startswith("the prompt has 108 tokens, the model's context length is ")
    assert note.endswith("--overflow slide)")


# ------------------------------------------------------------------------------ Ctrl-C, terminals


def test_ctrl_c_stops_the_text_and_keeps_it(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    def events(*request: Any) -> Iterator[Any]:
        yield from islice((event for event in decode(*request) if isinstance(event, TokenGenerated)), 2)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(session, "run", events)
    assert type_("Once", "", "!show").text == " a\n c\nOnce a c"


def test_ctrl_c_in_a_process_of_its_own(tmp_path: Path) -> None:
    endless = save(tmp_path, tiny(n_positions=200_000, eos_token_id=None))
    process = start("--model", endless, "-i", "--max-new-tokens", 199_999, bufsize=0)  # read(1) takes no more
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"abc\n")
    process.stdin.flush()
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    said = b""
    while b"generated" not in said:  # the text has ended, the program has not
        said = process.stderr.readline()
    result = wait(process, b"!show\n!quit\n")
    written = (first.decode() + result.out)[: (len(first) + len(result.out) - 5) // 2]
    assert written
    assert (first.decode() + result.out, result.code) == (f"{written}\nabc{written}\n", 0)


def test_ctrl_c_at_the_mark_says_how_to_leave(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt.generate import repl

    lines = iter(["Once", KeyboardInterrupt(), "", None])

    def read() -> str | None:
        line = next(lines)
        if isinstance(line, KeyboardInterrupt):
            raise line
        return line

    monkeypatch.setattr(repl, "read", read)
    result = type_()
    assert result.text == " a c\nat s"
    assert notes(result) == ["Ctrl-D or !quit ends"]


def test_on_a_terminal_the_line_is_edited(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `input`, which uses readline; Ctrl-D ends."""
    typed, marks = iter(["Once\\", "!show"]), []

    def fake_input(mark: str) -> str:
        marks.append(mark)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", fake_input)
    with patch("command._Stream.__init__.__defaults__", (b"", True)):  # stdin, too, is a terminal
        result = call("--model", story, "-i", "--max-new-tokens", 4, terminal=True)
    assert marks == ["> ", ". ", "> "]
    assert result.code == 0


def test_pasted_paragraphs_are_one_turn(story: Path) -> None:
    """On a terminal, where lines that come at once cannot have been typed one after the other."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = start(
        "--model", story, "-i", "--max-new-tokens", 4, "--quiet", stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    screen = b""
    for typed in (b"one\n\ntwo\n", b"!show\n", b"!quit\n"):
        while not screen.endswith(b"> "):
            screen += os.read(ours, 1000)
        os.write(ours, typed)
        screen += b"|"
    process.wait(60)
    shown = screen.replace(b"\r\n", b"\n")
    written = STORY[len("one\n\ntwo") :][:4].encode()
    assert shown.endswith(b"one\n\ntwo" + written + b"\n> |")
    os.close(ours)


# ------------------------------------------------------------------------------ words of command


@pytest.mark.parametrize("line", ["help", "quit", "Exit", "undo"])
def test_a_plain_word_of_command_is_not_taken_for_text(type_: Type, line: str) -> None:
    result = type_("Once", line, "!show")
    assert result.text == " a c\nOnce a c"
    (note,) = notes(result)
    assert note.startswith("not added to the text: commands begin with !, as in !")
    assert type_("Once", f" {line}", "!show").text.endswith(f"Once a c {line}" + STORY[len(line) + 9 :][:4])


def test_a_new_word_is_joined_by_a_space_and_a_backslash_continues_the_last(type_: Type) -> None:
    assert type_("Once", "xy", r"\z", ", no", "!show").text.split("\n")[-1].startswith("Once a c xy")
    assert type_("Once", r"\xy", "!show").text.endswith("Once a cxy saw")
    assert type_("Once", ", no", "!show").text.split("\n")[-1].startswith("Once a c, no")


def test_the_next_tokens_are_a_table(type_: Type) -> None:
    result = type_("Once", "!next 2", "!next", "!next 0", "!next many", "!next 1 2")
    lines = notes(result)
    heads = [i for i, line in enumerate(lines) if line.split() == ["token", "id", "probability", "logprob"]]
    assert [lines[i + 1].split()[0] for i in heads] == ['"a"', '"a"']
    assert len(lines) == 1 + 2 + 1 + 10 + 3
    assert lines[-1] == "!next takes a number of tokens of at least 1, got '1 2'"
    assert result.text == " a c"


def test_retry_says_why_the_text_will_be_the_same(type_: Type) -> None:
    assert notes(type_("Once", "!retry")) == [
        "the same text again: greedy decoding is deterministic; `!set temperature 1` samples"
    ]


def test_a_trailing_space_is_remarked_on(type_: Type) -> None:
    (note,) = notes(type_("Once "))
    assert note.startswith("the prompt ends in a space")
    assert note.endswith("leave it out for better text, or !set heal on")
    assert notes(type_("!set heal on", "Once ")) == ["heal: True; strategy: greedy"]
