"""`python -m minigpt.generate` as a user meets it; what goes wrong is in test_mistakes.py."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from command import END, Result, call, reciter, run, save, start, tiny, wait

import minigpt
from minigpt import GPT2, Tokenizer
from minigpt.cli import outputs, progress
from minigpt.generate import session
from minigpt.sampler import Beam, BeamSample, Greedy, PromptLookup, Sample, generate
from minigpt.sampler.api import run as decode
from minigpt.sampler.events import TokenGenerated
from minigpt.sampler.requests import prepare
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

STORY = "Once a cat saw a 😀 and cried: aaab! The End. Not so, said the wörld."
WINDOW = len(STORY.encode()) + 1
NOISE = ("--temperature", 1000, "--max-new-tokens", 60)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("story"), reciter(STORY))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that would write for minutes."""
    return save(tmp_path_factory.mktemp("endless"), tiny(n_positions=200_000, eos_token_id=None))


@pytest.fixture
def tell(story: Path) -> Callable[..., Result]:
    """Continues the story to its end, unless the flags say otherwise."""
    return lambda *flags, **how: call(
        "--model", story, "--overflow", "stop", "--max-new-tokens", 99, *flags, **how
    )


@pytest.fixture
def records(tell: Callable[..., Result]) -> Callable[..., list[dict[str, Any]]]:
    return lambda *flags, **how: [
        strict_json(line) for line in tell("--json", *flags, **how).text.split("\n")
    ]


def strict_json(line: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return record


def after(n: int, happen: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets something happen when `n` tokens have been written."""

    def events(*request: Any) -> Iterator[Any]:
        yield from islice((event for event in decode(*request) if isinstance(event, TokenGenerated)), n)
        happen()

    monkeypatch.setattr(session, "run", events)


# ------------------------------------------------------------------------------ text


def test_the_text_goes_to_stdout_and_the_figures_to_stderr() -> None:
    model, tokenizer = minigpt.load()
    ((best,),) = generate(model, [tokenizer.encode("Once upon a time")], max_new_tokens=8)
    text = tokenizer.decode(token for token in best.tokens if token != tokenizer.end_token)
    result = run("Once upon a time", "--max-new-tokens", 8)
    assert result.text == text
    rate = r"( at [\d,]+ tok/s)?"
    figures = rf"prompt 4 tokens{rate}, generated {len(best.tokens)}{rate}, first token after \d+\.\d\d s, peak memory \d+ MB"
    assert re.fullmatch(f"minigpt.generate: {figures}\n", result.err)


def test_greedy_goes_on_until_the_model_ends_and_does_not_show_the_end_token(
    tell: Callable[..., Result],
) -> None:
    assert tell("Once").text == STORY.removeprefix("Once")


def test_50_tokens_unless_asked(story: Path) -> None:
    assert "generated 50 " in call("--model", story, "Once").err


def test_several_texts_are_separated_by_a_line(tell: Callable[..., Result]) -> None:
    result = tell("-p", "Once", "-p", "Once a cat", "--stop", "saw")
    assert result.text == " a cat \n---\n "


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_echo_prints_the_prompt_first(tell: Callable[..., Result], stream: str) -> None:
    assert tell("Once", "--echo", stream).text == STORY


def test_echo_prints_each_prompt_before_its_text(tell: Callable[..., Result]) -> None:
    result = tell("-p", "Once a", "-p", "Once a cat", "--stop", " saw", "--echo")
    assert result.text == "Once a cat\n---\nOnce a cat"


def test_quiet_says_nothing_but_the_text(tell: Callable[..., Result]) -> None:
    assert tell(STORY, "--overflow", "truncate", "--max-new-tokens", 9, "--quiet").err == ""


@pytest.mark.parametrize("form", [(), ("--json",), ("-p", "Once a")])
def test_output_gets_what_stdout_would(
    tell: Callable[..., Result], tmp_path: Path, form: tuple[str, ...]
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("something older, and longer than what comes" * 100)
    result = tell("-p", "Once", *form, "--output", file)
    assert (result.code, result.out) == (0, "")
    assert "generated" in result.err
    without_timing = (
        re.sub(r'"timing".*?}', "", text) for text in (file.read_text(), tell("-p", "Once", *form).out)
    )
    assert len(set(without_timing)) == 1
    assert os.listdir(tmp_path) == ["text.txt"]


def test_output_keeps_the_old_file_if_something_goes_wrong(
    tell: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise MemoryError

    file = tmp_path / "text.txt"
    file.write_text("old")
    after(3, fail, monkeypatch)
    assert tell("Once", "--output", file).code == 5
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["text.txt"]


def test_output_follows_a_link(tell: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "text.txt")
    tell("Once", "--stop", " cat", "--output", link)
    assert link.is_symlink()
    assert (tmp_path / "there" / "text.txt").read_text() == " a\n"


def test_an_argument_that_is_not_utf_8_does_no_harm(tell: Callable[..., Result], tmp_path: Path) -> None:
    odd = os.fsdecode(b"Once\xff")
    assert tell(odd, "--echo", "--stop", "saw").text == "Once?cat "
    assert tell(odd, "--echo", "--stop", "saw", "--output", tmp_path / "text").code == 0


# ------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    "flags",
    [("Once é\n",), ("--prompt", "Once é\n"), ("-p", "Once é\n"), ("--file", "{file}"), ("-f", "{file}"),
     ("-",), ("-p", "-"), ("--file", "-")],
)  # fmt: skip
def test_ways_to_give_a_prompt(records: Callable[..., Any], tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = tmp_path / "prompt.txt"
    content = b"Once \xc3\xa9\n\n"  # the newline at a file's very end is the editor's
    file.write_bytes(content)
    (record,) = records(*(flag.format(file=file) for flag in flags), stdin=content)
    assert record["prompt"] == "Once é\n"
    assert record["prompt_tokens"] == list("Once é\n".encode())


def test_prompts_are_a_batch_in_order(records: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("d")
    made = records("a", "-p", "b", "-f", tmp_path / "file", "--prompt=c")
    assert [(record["prompt_index"], record["prompt"]) for record in made] == list(enumerate("abcd"))


@pytest.mark.parametrize("flags", [(), ("",), ("-p", ""), ("-",)])
def test_an_empty_prompt_is_the_end_token(records: Callable[..., Any], flags: tuple[str, ...]) -> None:
    (record,) = records(*flags)
    assert (record["prompt"], record["prompt_tokens"]) == ("", [END])
    assert record["text"] == STORY[1:]


def test_an_empty_prompt_counts_as_one_of_several(records: Callable[..., Any]) -> None:
    assert [record["prompt"] for record in records("", "-p", "Once", "-p", "")] == ["", "Once", ""]


def test_special_tokens_in_a_prompt_are_text_unless_allowed(records: Callable[..., Any]) -> None:
    (plain,), (special,) = records("<|endoftext|>a"), records("<|endoftext|>a", "--allow-special")
    assert plain["prompt_tokens"] == list(b"<|endoftext|>a")
    assert special["prompt_tokens"] == [END, ord("a")]


def test_underscores_are_hyphens_in_flags_and_nowhere_else(records: Callable[..., Any]) -> None:
    made = records("--max_new_tokens=3", "--no_repeat_ngram_size", 2, "--prompt=a_b", "-p", "a_b",
                   "--prompt=--a_b", "-p", "-- a_b", "--", "--a_b")  # fmt: skip
    assert [record["prompt"] for record in made] == ["--a_b", "a_b", "a_b", "--a_b", "-- a_b"]
    assert all(len(record["tokens"]) == 3 for record in made)


# ------------------------------------------------------------------------------ strategies

SAMPLING = [("--temperature", "2"), ("--top-k", "9"), ("--top-p", ".9"), ("--min-p", ".1"),
            ("--typical-p", ".9")]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "strategy"),
    [
        ((), "greedy"),
        (("--repetition-penalty", "1.1", "--min-new-tokens", "1"), "greedy"),
        *((flag, "sample") for flag in SAMPLING),
        (("--num-beams", "2"), "beam"),
        (("--seed", "1"), "greedy"),
        (("--num-beams", "2", "--seed", "1"), "beam"),
        (("--temperature", "0"), "greedy"),
        (("--temperature", "0", "--top-p", ".9"), "greedy"),
        (("--temperature", "0", "--num-beams", "2"), "beam"),
        (("--num-return-sequences", "1"), "sample"),
        (("--max-ngram", "2", "--temperature", "1"), "prompt-lookup"),
        *((("--num-beams", "2", *flag), "beam-sample") for flag in SAMPLING),
        (("--strategy", "beam", "--temperature", "2"), "beam-sample"),
        *((("--strategy", name), name) for name in ("greedy", "sample", "beam", "beam-sample")),
        (("--strategy", "sample", "--num-return-sequences", "1"), "sample"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_flags_imply_the_strategy(records: Callable[..., Any], flags: tuple[str, ...], strategy: str) -> None:
    (record,) = records("Once", *flags, "--max-new-tokens", 2)
    assert record["strategy"] == strategy


@pytest.mark.parametrize(
    ("flags", "strategy"),
    [
        ("--no-repeat-ngram-size 2 --repetition-penalty 1.3", Greedy(no_repeat_ngram_size=2, repetition_penalty=1.3)),
        ("--logit-bias 65=1.5 --logit-bias 66=-inf", Greedy(logit_bias={65: 1.5, 66: float("-inf")})),
        (
            "--temperature 2 --top-k 40 --top-p .9 --min-p .001 --typical-p .95 --seed 3 --num-return-sequences 2",
            Sample(temperature=2, top_k=40, top_p=0.9, min_p=0.001, typical_p=0.95, seed=3, num_return_sequences=2),
        ),
        (
            "--num-beams 3 --num-return-sequences 2 --length-penalty 2 --early-stopping true",
            Beam(num_beams=3, num_return_sequences=2, length_penalty=2, early_stopping=True),
        ),
        ("--num-beams 3 --early-stopping never", Beam(num_beams=3, early_stopping="never")),
        ("--num-beams 3 --temperature 1 --seed 5", BeamSample(num_beams=3, seed=5)),
        ("--num-beams 3 --seed 5", Beam(num_beams=3)),
        ("--strategy prompt-lookup --temperature 1 --seed 5", PromptLookup(do_sample=True, seed=5)),
        ("--strategy prompt-lookup --seed 5", Greedy()),
        ("--temperature 0 --typical-p 0.2", Greedy()),
        ("--strategy sample --temperature 0", Greedy()),
    ],
)  # fmt: skip
def test_flags_mean_what_the_options_mean_in_python(tmp_path: Path, flags: str, strategy: Any) -> None:
    model = tiny(initializer_range=0.5)
    expected = generate(model, [list(b"a")], strategy, max_new_tokens=20)[0]
    lines = call(
        "--model", save(tmp_path, model), "a", "--json", "--max-new-tokens", 20, *flags.split()
    ).text.split("\n")
    made = [strict_json(line) for line in lines]
    assert [record["tokens"] for record in made] == [completion.tokens for completion in expected]
    assert [record["score"] for record in made] == pytest.approx(
        [completion.score for completion in expected]
    )


def test_bad_words_are_never_written(tell: Callable[..., Result]) -> None:
    text = tell("Once", "--bad-words", "cat", "--bad-words", "wörld").text
    assert "cat" not in text
    assert "wörld" not in text
    assert "The End. Not so, said the w" in text


def test_no_end_before_the_minimum(records: Callable[..., Any]) -> None:
    (ended,), (longer,) = records(STORY[:-1]), records(STORY[:-1], "--min-new-tokens", 2)
    assert (ended["text"], ended["tokens"][-1], ended["finish_reason"]) == (".", END, "eos")
    assert len(longer["tokens"]) > 2
    assert END not in longer["tokens"][:2]


@pytest.mark.parametrize("seed", [(), ("--seed", 0)])
def test_the_seed_that_is_told_gives_the_same_text_again(
    tell: Callable[..., Result], records: Callable[..., Any], seed: tuple[object, ...]
) -> None:
    first = tell("Once", *NOISE, *seed)
    (told,) = re.findall(r", seed (\d+)\n", first.err)
    assert tell("Once", *NOISE, "--seed", told).text == first.text
    (record,) = records("Once", *NOISE, "--seed", told)
    assert (record["text"], record["seed"]) == (first.text, int(told))


def test_without_a_seed_texts_differ(tell: Callable[..., Result]) -> None:
    assert tell("Once", *NOISE).text != tell("Once", *NOISE).text


# ------------------------------------------------------------------------------ JSON


def test_every_field_of_the_json(story: Path, records: Callable[..., Any]) -> None:
    (record,) = records("Once", "--stop", "End", "--logprobs", 2)
    tokens = list(" a cat saw a 😀 and cried: aaab! The End".encode())
    logprobs, timing, top = (record.pop(name) for name in ("logprobs", "timing", "top_logprobs"))
    assert record.pop("score") == pytest.approx(sum(logprobs))
    strings = record.pop("token_strings")
    assert record == {
        "prompt": "Once",
        "text": " a cat saw a 😀 and cried: aaab! The ",
        "prompt_tokens": list(b"Once"),
        "tokens": tokens,
        "finish_reason": "stop",
        "seed": None,
        "prompt_index": 0,
        "index": 0,
        "model": str(story),
        "strategy": "greedy",
    }
    assert strings == [chr(token) if token < 128 else "\ufffd" for token in tokens]
    assert len(logprobs) == len(top) == len(tokens)
    for token, logprob, (best, second) in zip(tokens, logprobs, top, strict=True):
        assert best == {
            "token": token,
            "string": Tokenizer.from_pretrained(story).token_string(token),
            "logprob": logprob,
        }
        assert second["logprob"] <= best["logprob"] <= 0
    counts = {"prompt_tokens": 4, "generated_tokens": len(tokens)}
    assert timing.items() >= counts.items()
    measured = {
        "prompt_tokens_per_s",
        "generated_tokens_per_s",
        "first_token_s",
        "total_s",
        "peak_memory_bytes",
    }
    assert timing.keys() == counts.keys() | measured
    assert all(timing[name] > 0 for name in measured)


def test_the_bundled_model_is_called_that() -> None:
    record = strict_json(call("The", "--max-new-tokens", 1, "--json").text)
    assert record["model"] == "bundled"
    assert "top_logprobs" not in record


def test_texts_are_lines_in_order_best_first(records: Callable[..., Any]) -> None:
    made = records("-p", "Once", "-p", "On", *NOISE, "--num-return-sequences", 3)
    assert [(record["prompt_index"], record["index"]) for record in made] == [
        (i, j) for i in (0, 1) for j in (0, 1, 2)
    ]
    for same_prompt in (made[:3], made[3:]):
        scores = [record["score"] for record in same_prompt]
        assert scores == sorted(scores, reverse=True)
        assert len({record["text"] for record in same_prompt}) == 3


def test_json_keeps_to_one_line_whatever_the_text_holds(records: Callable[..., Any]) -> None:
    assert len(records('a\nb\u2028\x85"', *NOISE, "--num-return-sequences", 9, "--seed", 1)) == 9


def test_logprobs_are_those_of_the_unprocessed_model(story: Path, records: Callable[..., Any]) -> None:
    (record,) = records("Once", *NOISE, "--seed", 1, "--top-k", 200, "--logprobs", 1)
    tokens = torch.tensor([record["prompt_tokens"] + record["tokens"]])
    with torch.inference_mode():
        logprobs = GPT2.from_pretrained(story)(tokens[:, :-1])[0, 3:].log_softmax(-1)
    own = logprobs.gather(1, tokens[0, 4:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(record["logprobs"]), own, rtol=1e-4, atol=1e-4)
    best = torch.tensor([step[0]["logprob"] for step in record["top_logprobs"]])
    torch.testing.assert_close(best, logprobs.max(1).values, rtol=1e-4, atol=1e-4)


def test_beams_are_scored_after_the_length_penalty(records: Callable[..., Any]) -> None:
    (record,) = records("Once", "--num-beams", 2, "--length-penalty", 2, "--max-new-tokens", 5)
    assert record["score"] == pytest.approx(sum(record["logprobs"]) / 5**2)


def test_minus_infinity_is_null(tmp_path: Path) -> None:
    def rule_out_x(model: GPT2) -> None:
        model.final_norm.weight.zero_()  # the head sees this bias alone
        model.final_norm.bias[0] = 1
        model.head.weight[ord("x")] = torch.tensor([float("-inf"), *[0.0] * (len(model.final_norm.bias) - 1)])

    directory = save(tmp_path, reciter("abcd", rule_out_x))
    record = strict_json(
        call("--model", directory, "a", "--json", "--logprobs", 999, "--max-new-tokens", 1).text
    )
    (step,) = record["top_logprobs"]
    assert len(step) == END + 1
    assert [entry["string"] for entry in step if entry["logprob"] is None] == ["x"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--max-new-tokens", "3"), "length"),
        ((), "eos"),
        (("--stop", "cat"), "stop"),
        (("--logit-bias", f"{END}=-inf"), "overflow"),
    ],
)
@pytest.mark.parametrize("strategy", [(), ("--num-beams", "2"), ("--seed", "1")])
def test_why_a_text_ends(
    records: Callable[..., Any], flags: tuple[str, ...], reason: str, strategy: tuple[str, ...]
) -> None:
    (record,) = records("Once", *flags, *strategy)
    assert record["finish_reason"] == reason


# ------------------------------------------------------------------------------ the window


def test_a_prompt_that_just_fits(story: Path) -> None:
    whole, never_end = "x" * WINDOW, ("--model", story, "--logit-bias", f"{END}=-inf")
    assert "generated 1," in call(*never_end, whole, "--max-new-tokens", 1).err
    assert "generated 9 " in call(*never_end, whole[8:], "--max-new-tokens", 9).err


def test_truncate_drops_the_oldest_and_says_so(story: Path) -> None:
    prompt = STORY + "!"  # as long as the window
    result = call("--model", story, prompt, "--overflow", "truncate", "--max-new-tokens", 9, "--json")
    assert f"left out the 8 oldest of {WINDOW} prompt tokens\n" in result.err
    assert strict_json(result.text)["prompt_tokens"] == list(prompt.encode()[8:])


def test_stop_ends_at_the_edge_of_the_window(records: Callable[..., Any]) -> None:
    (record,) = records("x" * WINDOW, "--overflow", "stop", "--max-new-tokens", 9)
    assert (len(record["tokens"]), record["finish_reason"]) == (1, "overflow")


@pytest.mark.parametrize("flags", [(), ("--num-beams", 3), ("--temperature", 2, "--seed", 3)])
@pytest.mark.parametrize("stride", [(), ("--stride", 1), ("--stride", 5)])
def test_slide_goes_on_past_the_window(
    tmp_path: Path, flags: tuple[object, ...], stride: tuple[object, ...]
) -> None:
    """As `generate` does in Python; which is tested against the rule by hand."""
    model = tiny(initializer_range=0.5)
    asked = ("--model", save(tmp_path, model), "a b", "--max-new-tokens", 50, "--overflow", "slide")
    record = strict_json(call(*asked, *stride, *flags, "--json").text)
    strategy = {0: Greedy(), 2: Beam(num_beams=3), 4: Sample(temperature=2, seed=3)}[len(flags)]
    ((text, *_),) = generate(
        model,
        [list(b"a b")],
        strategy,
        max_new_tokens=50,
        overflow="slide",
        stride=stride[1] if stride else None,
    )
    assert record["tokens"] == text.tokens
    assert (len(text.tokens), record["finish_reason"]) == (50, "length")


@pytest.mark.parametrize(
    ("flags", "cost"),
    [
        (("--stride", 1), "window slid 20 times by 1: 620 tokens read again"),
        ((), "window slid 2 times by 16: 32 tokens read again"),
        (("--stride", 20), "window slid once by 20: 12 tokens read again"),
    ],
)
def test_the_cost_of_sliding_is_told(tmp_path: Path, flags: tuple[object, ...], cost: str) -> None:
    """A window of 32, a text of which 52 tokens are read."""
    directory = save(tmp_path, tiny(eos_token_id=None))
    result = call("--model", directory, "abc", "--max-new-tokens", 50, "--overflow", "slide", *flags)
    assert result.err.endswith(f", {cost}\n")


def test_within_the_window_sliding_costs_nothing_and_says_nothing(story: Path) -> None:
    slides = ("--overflow", "slide", "--max-new-tokens", 9)
    assert "slid" not in call("--model", story, "Once", *slides).err


def test_what_a_sliding_window_never_sees_is_told(story: Path) -> None:
    asked = (
        "--model",
        story,
        "x" * (WINDOW + 7),
        "--max-new-tokens",
        1,
        "--overflow",
        "slide",
        "--stride",
        5,
    )
    result = call(*asked)
    assert f"left out the 10 oldest of {WINDOW + 7} prompt tokens\n" in result.err
    assert f"prompt {WINDOW - 3} tokens" in result.err
    assert "slid" not in result.err.replace("slide", "")
    assert "left out" not in call(*asked, "--quiet").err


# ------------------------------------------------------------------------------ streaming


@pytest.mark.parametrize(
    "flags",
    [(), ("--stop", "End"), ("--num-beams", 3), (*NOISE, "--seed", 1), (*NOISE, "--seed", 2, "--num-beams", 2),
     ("--max-new-tokens", 14)],
)  # fmt: skip
def test_a_stream_is_the_text_byte_for_byte(tell: Callable[..., Result], flags: tuple[object, ...]) -> None:
    assert tell("Once", *flags, "--stream").text == tell("Once", *flags, "--no-stream").text


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["aab"], " a cat saw a 😀 and cried: a"),
        (["zzz", "cried", "and"], " a cat saw a 😀 "),
        (["😀"], " a cat saw a "),
        (["wörlds", "cat says"], STORY.removeprefix("Once")),  # only begun
        ([STORY[-1]], " a cat saw a 😀 and cried: aaab! The End"),
        ([" "], ""),
    ],
)
def test_nothing_of_a_stop_string_is_shown(
    tell: Callable[..., Result], stream: str, stops: list[str], text: str
) -> None:
    assert tell("Once", *(f"--stop={stop}" for stop in stops), stream).text == text


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_of_noise_is_what_decode_makes_of_it(
    story: Path, tell: Callable[..., Result], records: Callable[..., Any], seed: int
) -> None:
    noise = ("Once", *NOISE, "--seed", seed)
    (record,) = records(*noise)
    text = Tokenizer.from_pretrained(story).decode(token for token in record["tokens"] if token != END)
    assert "\ufffd" in text
    assert tell(*noise, "--stream").text == text


@pytest.mark.parametrize(
    ("flags", "terminal", "streamed"),
    [
        ((), True, True),
        ((), False, False),
        (("--no-stream",), True, False),
        (("--stream",), False, True),
        (("--json",), True, False),
        (("-p", "On"), True, False),
    ],
)
def test_streams_on_a_terminal_unless_told_otherwise(
    tell: Callable[..., Result], monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...], terminal: bool, streamed: bool,
) -> None:  # fmt: skip
    def fail() -> None:
        raise MemoryError

    after(6, fail, monkeypatch)  # what was on stdout by then?
    assert tell("Once", *flags, terminal=terminal).out == (" a cat\n" if streamed else "")


# ------------------------------------------------------------------------------ ended from outside


def test_ctrl_c_keeps_the_text_so_far(endless: Path) -> None:
    process = start("--model", endless, "a", "--stream", "--max-new-tokens", 199_999, bufsize=0)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    result = wait(process)
    assert first
    assert result.code == 130
    assert result.out.endswith("\n")
    assert re.fullmatch(r"minigpt.generate: prompt 1 token(,| at).* generated \d+[ ,].*\n", result.err)


@pytest.mark.parametrize("to_file", [False, True])
def test_ctrl_c_keeps_whole_json_objects(
    tell: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, to_file: bool
) -> None:
    after(8, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
    output = ("--output", tmp_path / "out") if to_file else ()
    result = tell("-p", "Once", "-p", "Once a", "--json", *output)
    assert result.code == 130
    lines = (tmp_path / "out").read_text() if to_file else result.out
    made = [strict_json(line) for line in lines.splitlines()]
    assert [(record["prompt"], record["text"]) for record in made] == [("Once", " a c"), ("Once a", " cat")]


def test_ctrl_c_after_one_of_two_texts_shows_both(
    tell: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    after(8, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)  # 4 each, and one text is finished
    result = tell("-p", "Once", "-p", "Once a cat", "--stop", "saw")
    assert (result.code, result.out) == (130, " a c\n---\n \n")


def test_ctrl_c_before_the_first_token_leaves_files_as_they_were(
    tell: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, lattice = tmp_path / "text", tmp_path / "lattice.json"
    for file in (text, lattice):
        file.write_text("of an earlier run")
    after(0, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
    result = tell("Once", "--num-beams", 2, "--output", text, "--lattice", lattice)
    assert result.code == 130
    assert [file.read_text() for file in (text, lattice)] == ["of an earlier run"] * 2


def test_ctrl_c_while_the_model_loads_is_silent(endless: Path, tmp_path: Path) -> None:
    for file in endless.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((endless / "config.json").read_text())
    del config["model_type"]  # is remarked on, before the weights are read
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    process = start("--model", tmp_path, "a", "--max-new-tokens", 199_999)
    assert process.stderr is not None
    assert b"names no model_type" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    result = wait(process)
    # Python dies of the signal itself where that came in the middle of an exec; to a shell both are 130.
    assert result.code in (130, -signal.SIGINT)
    assert "Traceback" not in result.err


def test_ctrl_c_while_waiting_for_a_prompt_is_silent(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = start("--file", pipe)
    with pipe.open("wb"):  # waits until the command reads
        process.send_signal(signal.SIGINT)
        assert wait(process) == (130, "", "")


def test_a_reader_who_has_enough_ends_it_silently(endless: Path) -> None:
    process = start("--model", endless, "a", "--stream", "--max-new-tokens", 199_999)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    for pipe in (process.stdin, process.stderr):
        assert pipe is not None
        pipe.close()


def test_nobody_reading_at_all_is_silent_too(story: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = run("--model", story, "Once", "--json", stdout=writer)
    os.close(writer)
    assert result == (0, "", "")


# ------------------------------------------------------------------------------ help

FLAGS = [
    "--model", "--revision", "--offline", "--device", "--dtype", "--compile", "--threads", "--prompt", "-p",
    "--file", "-f", "--allow-special", "--max-new-tokens", "--min-new-tokens", "--overflow", "--strategy",
    "--temperature", "--top-k", "--top-p", "--min-p", "--typical-p", "--seed", "--num-beams",
    "--num-return-sequences", "--early-stopping", "--length-penalty", "--repetition-penalty",
    "--no-repeat-ngram-size", "--bad-words", "--logit-bias", "--stop", "--stream", "--no-stream", "--json",
    "--logprobs", "--echo", "--quiet", "--output", "--stride", "--explain", "--interactive", "-i",
]  # fmt: skip


def test_help_names_every_flag_and_does_not_wait_for_torch() -> None:
    result = run("--help", python=("-X", "importtime", "-m", "minigpt.generate"))
    assert result.code == 0
    assert not [flag for flag in FLAGS if not re.search(rf"(?<![\w-]){flag}(?![\w-])", result.out)]
    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines()}
    assert "minigpt.sampler.strategies.beam" in imported
    assert "torch" not in imported


def test_a_prepared_request_and_the_command_agree_on_the_limit(story: Path) -> None:
    (request,) = prepare(GPT2.from_pretrained(story), [list(b"Once")], max_new_tokens=99, overflow="stop")
    assert request.max_new_tokens == WINDOW - 4 + 1


def test_a_compiled_model_writes_the_same(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every layer's scores scaled otherwise, which makes torch compile each by itself."""
    import torch

    compile_block = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compile_block(block, backend="eager"))
    flags = ("--model", story, "Once", "--max-new-tokens", 12)
    # `patch` puts back what the command changes; monkeypatch would leave an entry that torch says does not exist
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        assert call(*flags, "--compile").text == call(*flags).text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_writes(dtype: str) -> None:
    """Not the same text to the letter: another rounding may choose another token."""
    assert call("Once upon a time", "--dtype", dtype, "--max-new-tokens", 5).text.strip()


@pytest.mark.parametrize("flags", [("--seed", 3), ("--num-beams", 2, "--seed", 3)])
def test_a_seed_that_changes_nothing_is_reported(
    tell: Callable[..., Result], flags: tuple[object, ...]
) -> None:
    strategy = "beam" if "--num-beams" in flags else "greedy"
    done = tell("Once", *flags, "--max-new-tokens", 2)
    assert f"--seed 3 changes nothing: {strategy} does not sample; --temperature 1 does\n" in done.err
    assert "changes nothing" not in tell("Once", "--temperature", 1, "--seed", 3, "--max-new-tokens", 2).err


@pytest.mark.parametrize("strategy", [(), ("--strategy", "sample")])
def test_a_seed_at_temperature_0_is_reported(tell: Callable[..., Result], strategy: tuple[str, ...]) -> None:
    done = tell("Once", *strategy, "--temperature", 0, "--seed", 3, "--max-new-tokens", 2)
    assert ": at temperature 0 nothing is sampled, so --seed 3 changes nothing\n" in done.err
    assert "does not sample" not in done.err


# ------------------------------------------------------------------------------ what is not asked for


def test_a_model_of_short_context_writes_what_fits(tmp_path: Path) -> None:
    directory = save(tmp_path, tiny(eos_token_id=None))  # a context length of 32
    made = call("--model", directory, "-p", "abc", "-p", "x" * 31, "-p", "x" * 32, "--json").text.split("\n")
    assert [len(strict_json(line)["tokens"]) for line in made] == [30, 2, 1]
    assert [strict_json(line)["finish_reason"] for line in made] == ["length"] * 3
    truncated = strict_json(call("--model", directory, "x" * 40, "--overflow", "truncate", "--json").text)
    assert len(truncated["tokens"]) == 32
    assert call("--model", directory, "x" * 33).code == 4


def test_a_pipe_is_read_where_there_is_no_prompt(story: Path) -> None:
    flags = ("--model", story, "--stop", " saw")
    assert run(*flags, stdin=b"\xef\xbb\xbfOnce\r\n").text == " a cat"
    assert run(*flags, "Once a", stdin=b"not read").text == " cat"
    assert run(*flags, stdin=b"").text == STORY[1:].partition(" saw")[0]  # an empty prompt


def test_a_file_from_windows_is_the_same_prompt(records: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfOnce\r\na cat\r\n")
    (record,) = records("-f", tmp_path / "prompt.txt", "--max-new-tokens", 1)
    assert record["prompt"] == "Once\na cat"


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (("Once ",), "the prompt ends in a space, which GPT-2's tokens have before a word"),
        (
            ("Once", "--stop", r"a\n"),
            r"--stop 'a\\n' has a backslash and a letter in it; for a newline write $'\n'",
        ),
        (("Once", "--bad-words", r"\t"), "--bad-words '\\\\t' has a backslash"),
        (("Once", "--must-include", r"\n"), "--must-include '\\\\n' has a backslash"),
        (
            ("Once", "--dry-multiplier", 0.8, "--dry-sequence-breakers", r"\n"),
            "--dry-sequence-breakers '\\\\n' has a backslash",
        ),
        (("",), ": no prompt: the text begins after <|endoftext|>; give one in quotes, -f FILE, or -i\n"),
    ],
)
def test_what_is_probably_not_meant_is_remarked_on(
    tell: Callable[..., Result], flags: tuple[str, ...], hint: str
) -> None:
    assert hint in tell(*flags, "--max-new-tokens", 2).err
    assert tell(*flags, "--max-new-tokens", 2, "--quiet").err == ""
    assert "minigpt.generate: prompt" in tell("Once", "--max-new-tokens", 2).err.splitlines()[0]


def test_an_empty_file_and_the_name_of_a_file_are_no_prompts(
    tell: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("Once").write_text("Once a")
    nothing, name = tell("-f", "empty.txt", "--max-new-tokens", 3), tell("Once", "--max-new-tokens", 2)
    assert (nothing.out, name.out) == (f"{STORY[1:4]}\n", " a\n")
    assert (
        ": no prompt: the text begins after <|endoftext|>; give one in quotes, -f FILE, or -i\n"
        in nothing.err
    )
    assert ": Once is a file too: -f Once continues its text\n" in name.err
    assert "no prompt" not in name.err
    assert "is a file too" not in tell("-f", "Once", "--max-new-tokens", 2).err


def test_beams_that_find_one_text_twice_say_so() -> None:
    tokenizer = minigpt.Tokenizer.from_pretrained()
    (great,), (start,), (rest,) = (tokenizer.encode(part) for part in (" great", " gre", "at"))
    likely = [flag for token in (great, start, rest) for flag in ("--logit-bias", f"{token}=80")]
    result = call(
        "Once upon a time", "--num-beams", 2, "--num-return-sequences", 2, "--stop", "great", *likely
    )
    assert result.out == " \n---\n \n"
    assert "text 1 of prompt 0 is text 0 again, in other tokens" in result.err


@pytest.mark.parametrize(
    "flags",
    [("-p", "x"), ("--num-beams", 2, "--no-stream"), ("--json",), ("--output", "{file}"), ("--no-stream",)],
    ids=lambda flags: flags[0],
)
def test_a_bar_on_a_terminal_where_texts_are_shown_at_their_end(
    tell: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[object, ...]
) -> None:
    def screen(*more: object) -> str:
        """What stderr shows where it is a terminal."""
        given = (str(flag).format(file=tmp_path / "text") for flag in (*flags, *more))
        result = tell("Once", *given, terminal=True)
        assert result.code == 0
        return result.err

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(progress, "QUICK", 0)
    assert re.search(r" 0/\d+ \[", screen())
    assert screen("--quiet") == ""


def test_a_text_that_is_shown_as_it_grows_has_no_bar(
    tell: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(progress, "QUICK", 0)
    for flags in ((), ("--num-beams", 2, "--show-beams")):
        assert "tok/s]" not in tell("Once", *flags, terminal=True).err


def test_a_prompt_that_fails_does_not_take_the_others_along(tell: Callable[..., Result]) -> None:
    flags = ("--regex", "[ab]", "--no-repeat-ngram-size", 1, "--json")
    result = tell("-p", "a\nb", "-p", "The king", "-p", "ab", *flags)
    assert result.code == 1
    (record,) = [strict_json(line) for line in result.out.splitlines()]
    assert (record["prompt_index"], record["text"]) == (1, "a")
    first, second, _ = result.err.splitlines()
    assert first.startswith("minigpt.generate: prompt 0 failed: no token is left to choose")
    assert second.startswith("minigpt.generate: prompt 2 failed: no token is left to choose")
    assert tell("-p", "ab", "-p", "ba", *flags).code == 2


# ------------------------------------------------------------------------------ text is data

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows by heart what would set the title, clear the screen and reverse the line."""
    return save(tmp_path_factory.mktemp("hostile"), reciter("a" + HOSTILE + "!"))


@pytest.mark.parametrize("flags", [("--stream",), ("--no-stream",), ("--echo",)])
def test_a_terminal_is_not_told_what_to_do(hostile: Path, flags: tuple[str, ...]) -> None:
    asked = ("--model", hostile, "a", *flags, "--max-new-tokens", 24, "--explain")
    shown = call(*asked, terminal=True)
    assert shown.out.removeprefix("a" if "--echo" in flags else "") == "·]0;title··[2J·31m·!\n"
    assert not set(shown.err) & set(HOSTILE) - set("]0;title[2J31m")
    assert HOSTILE in call(*asked).out, "a pipe gets every byte"


def test_the_most_likely_tokens_stand_beside_each_token(
    tell: Callable[..., Result], records: Callable[..., Any]
) -> None:
    flags = ("Once", "--explain", "--top", 2, "--max-new-tokens", 2)
    heading, first, second, _ = tell(*flags).err.splitlines()
    assert heading.endswith("top 2")
    assert re.search(r'" " 1, ".+" [\d.e-]+$', first)
    assert re.search(r'"a" 1, ".+" [\d.e-]+$', second)
    (record,) = records(*flags)
    assert [len(step) for step in record["top_logprobs"]] == [2, 2]


@pytest.mark.parametrize(
    "flags", [("--top", 2), ("--explain", "--top", 0), ("--explain", "--top", 2, "--logprobs", 1, "--json")]
)
def test_top_is_for_explain(tell: Callable[..., Result], flags: tuple[object, ...]) -> None:
    result = tell("Once", *flags)
    assert result.code == 2
    assert "--top" in result.mistake


def test_a_file_that_cannot_be_written_at_the_end_leaves_the_text(
    tell: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: str, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_file", full)
    result = tell("Once", "--stop", " saw", "--output", tmp_path / "text", "--quiet")
    assert (result.code, result.out) == (1, " a cat\n")
    assert (
        result.err
        == f"minigpt.generate: --output {tmp_path / 'text'}: No space left on device; its text went to stdout\n"
    )


def test_where_torch_cannot_compile_it_is_one_line(
    tell: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    def uncompilable(*_: Any) -> None:
        raise InternalTorchDynamoError("No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(GPT2, "next_logits", uncompilable)
    result = tell("Once")
    assert result.code == 2
    assert result.mistake == (
        "--compile: torch cannot compile here (No working C++ compiler found): leave it out, or install a C++ compiler"
    )


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary has " the" and " they"."""
    directory = save(tmp_path_factory.mktemp("merged"), tiny(vocab_size=262, initializer_range=0.5))
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġthe", "y")]
    words = {a + b: 258 + i for i, (a, b) in enumerate(merges)}
    Tokenizer({**BYTES, **words}, merges, special_tokens={END_OF_TEXT: 257}).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("flags", [(), ("--num-beams", 2), ("--top-k", 5, "--seed", 1), ("--stop", "e")])
def test_a_healed_prompt_is_gone_on_from_its_end(
    merged: Path, flags: tuple[object, ...], tmp_path: Path
) -> None:
    asked = ("--model", merged, "a th", "--heal", "--max-new-tokens", 4, *flags)
    (record,) = [json.loads(line) for line in call(*asked, "--json").text.splitlines()]
    tokenizer = Tokenizer.from_pretrained(merged)
    assert tokenizer.decode(record["prompt_tokens"]) == "a"  # " t" and "h" are taken back
    whole = tokenizer.decode([*record["prompt_tokens"], *record["tokens"]])
    assert (record["prompt"] + record["text"]) == (
        whole if "--stop" not in flags else whole.partition("e")[0]
    )
    assert call(*asked, "--no-stream").text == call(*asked, "--stream").text == record["text"]
    assert call(*asked, "--stream", "--echo").text == call(*asked, "--echo").text == "a th" + record["text"]
    (tmp_path / "p.txt").write_text("a th\n")
    rows = call("--prompts", tmp_path / "p.txt", *asked[:2], *asked[3:]).out
    if "--seed" not in flags:  # with which the row's id is mixed
        assert rows.partition("\n")[2] == record["text"] + "\n"


def test_a_healed_prompt_needs_no_hint(merged: Path) -> None:
    asked = ("--model", merged, "a ", "--max-new-tokens", 2)
    assert "leave it out for better text, or add --heal" in call(*asked).err
    assert "ends in a space" not in call(*asked, "--heal").err
