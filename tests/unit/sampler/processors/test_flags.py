"""The processors' options as flags of the command line."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import pytest

from minigpt import Tokenizer
from minigpt.cli import Failure
from minigpt.cli import strategy_flags as options
from minigpt.cli.model_flags import ModelFlags
from minigpt.cli.parser import Parser
from minigpt.options import option
from minigpt.sampler import Greedy, Sample, Strategy, option_values
from minigpt.sampler.choosing import SAMPLING
from minigpt.tokenizer.bpe import BYTES

# Tokens 256 to 258 are '."', '\n\n' and 'the'; all others are bytes.
TOKENIZER = Tokenizer(
    {**BYTES, '."': 256, "ĊĊ": 257, "th": 258, "the": 259}, [(".", '"'), ("Ċ", "Ċ"), ("t", "h"), ("th", "e")]
)


def strategy(kind: type[Strategy], *flags: str) -> Strategy:
    parser = Parser("generate")
    options.add_flags(defaultdict(lambda: parser))
    args = parser.parse(flags)
    return options.build_strategy(kind, args, options.Loaded(ModelFlags(), TOKENIZER))


def test_every_option_has_its_flag() -> None:
    control = {
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "exponential_decay_length_penalty": (20, 1.1),
        "watermark_bias": 3.0,
        "watermark_ratio": 0.5,
        "watermark_key": 7,
    }
    sampling = {
        "epsilon_cutoff": 3e-4,
        "eta_cutoff": 2e-3,
        "top_n_sigma": 1.0,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
    }
    assert sampling.keys() <= SAMPLING
    assert not control.keys() & SAMPLING
    given = {**control, "exponential_decay_length_penalty": "20,1.1", **sampling}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    expected = Sample(**control, **sampling, watermark=True, seed=1)
    assert strategy(Sample, *flags, "--watermark", "--seed=1") == expected


def test_a_breaker_is_every_token_that_holds_it() -> None:
    flags = [f"--dry-sequence-breakers={text}" for text in ("\n", '"', "over there", "é")]
    found = strategy(Greedy, *flags)
    last = TOKENIZER.encode("over there")[-1]
    assert found == Greedy(dry_sequence_breakers=tuple(sorted([10, 34, 256, 257, last, "é".encode()[-1]])))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--exponential-decay-length-penalty=20", "expected START,FACTOR, got '20'"),
        ("--exponential-decay-length-penalty=a,1.1", "expected START,FACTOR, got 'a,1.1'"),
        ("--dry-sequence-breakers=", "expected TEXT, got ''"),
        ("--dry-allowed-length=2.5", "expected a whole number, got '2.5'"),
    ],
)
def test_what_a_flag_cannot_be_is_said(flag: str, message: str) -> None:
    with pytest.raises(Failure, match=f"{flag.partition('=')[0]}: {message}"):
        strategy(Greedy, flag)


def test_values_are_read_from_their_texts() -> None:
    assert option_values.BIASES.parse("7=-2.5") == (7, -2.5)
    assert option_values.START_AND_FACTOR.parse("20,1.1") == (20, 1.1)


def test_strategies_that_disagree_on_a_flag_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Greedy):
        """One with a share of tokens where others have a number."""

        top_k: float = option(0.5, "a share of the tokens", group="sampling")

    having = options.having
    monkeypatch.setattr(options, "having", lambda name: [*having(name), *([Odd] if name == "top_k" else [])])
    with pytest.raises(TypeError, match="declare the option top_k differently: its kind, choices and group"):
        options.add_flags(defaultdict(lambda: Parser("generate")))


def test_the_help_of_a_shared_flag_says_how_strategies_differ() -> None:
    parser = Parser("generate")
    options.add_flags(defaultdict(lambda: parser))
    shown = " ".join(parser.format_help().split()).replace("- ", "-")  # lines break at hyphens, too
    assert "40 is usual (at least 1, or 0 for off); contrastive: number of candidates" in shown
    assert "10 is usual (from 1 to 65536; default: 5); default for diverse-beam: 4" in shown


def test_a_banned_mark_is_banned_in_every_token_that_holds_it() -> None:
    assert strategy(Greedy, "--bad-words=\n") == Greedy(bad_words=((10,), (32, 10), (257,)))
    the, space_the = TOKENIZER.encode("the"), TOKENIZER.encode(" the")
    assert strategy(Greedy, "--bad-words=th") == Greedy(bad_words=((258,), (32, 258)))  # not in "the"
    assert strategy(Greedy, "--bad-words=the") == Greedy(bad_words=(tuple(the), tuple(space_the)))
