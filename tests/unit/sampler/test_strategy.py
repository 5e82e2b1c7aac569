"""What all strategies share: names of options, repr, help, copies, and processors of their own."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from fakes import FakeModel, scrambled, tiny_gpt2
from torch import Tensor

from minigpt.errors import InvalidRequest, UnknownArgument
from minigpt.options import option, options_of, require_in_range
from minigpt.sampler import (
    Beam,
    BeamSample,
    Constrained,
    Grammar,
    Greedy,
    PromptLookup,
    Sample,
    Speculative,
    Strategy,
    generate,
)
from minigpt.sampler.events import Request
from minigpt.sampler.processors import (
    ORDER,
    LogitBias,
    Processor,
    Stage,
    Temperature,
    TextContext,
    TopK,
    chain,
)
from minigpt.sampler.registry import find, implied_by, name_of, names
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import BYTES
from minigpt.training.settings import Settings

MODEL = tiny_gpt2()
LIMITS: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": []}


def made(name: str) -> Strategy:
    kind = find(name)
    return kind(**{name: MODEL for name, declared in options_of(kind).items() if declared.required})


def texts(strategy: Strategy, **limits: Any) -> list[list[int]]:
    return [
        text.tokens for group in generate(MODEL, [[1, 2], [3]], strategy, **LIMITS | limits) for text in group
    ]


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        (Beam, "width", "it is called num_beams"),
        (Beam, "beam_size", "it is called num_beams"),
        (Sample, "n", "it is called num_return_sequences"),
        (Greedy, "bad_words_ids", "it is called bad_words"),
        (Sample, "topp", r"did you mean top_p\?"),
        (Sample, "max_new_tokens", "it is an argument of complete and generate"),
        (Sample, "max_tokens", "it is an argument of complete and generate: max_new_tokens"),
        (Sample, "stop_strings", "it is an argument of complete and generate: stop"),
        (Sample, "heal", "it is an argument of minigpt.complete"),
        (Sample, "generator", "it is called seed"),
        (Sample, "num_samples", "it is called num_return_sequences"),
        (Sample, "temp", "it is called temperature"),
        (Greedy, "temp", r"it is an option of strategies that sample: Sample\(temperature=.*BeamSample.*"),
        (Sample, "min_new_token", r"did you mean min_new_tokens\?"),
        (Sample, "do_sample", "Sample samples, Greedy does not"),
        (Greedy, "zzz", r"help\(Greedy\) lists what there is"),
        (
            Greedy,
            "temperature",
            r"it is an option of strategies that sample: Sample\(temperature=.*BeamSample.*",
        ),
        (Beam, "top_p", r"it is an option of strategies that sample: Sample\(top_p=.*BeamSample.*"),
        (Sample, "num_beams", "it is an option of beam search: of Beam, for one"),
        (Sample, "nucleus", "it is called top_p"),
        (Greedy, "num_return_sequences", "it is an option of Sample and of Beam"),
    ],
)
def test_an_option_that_is_not_there_is_answered_with_the_right_one(
    kind: Any, name: str, advice: str
) -> None:
    with pytest.raises(UnknownArgument, match=f"^{kind.__name__} has no option {name}: {advice}$"):
        kind(**{name: 5})


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Beam, 5, r"Beam takes its options by name, got 5: write name=value; help\(Beam\) lists the names$"),
        (Sample, 0.7, r"Sample takes its options by name, got 0.7: write name=value"),
        (Speculative, MODEL, r"Speculative takes its options by name, got GPT2\("),
        (Greedy, "x", r"Greedy takes its options by name, got 'x'"),
    ],
)
def test_options_are_given_by_name(kind: Any, value: object, message: str) -> None:
    with pytest.raises(UnknownArgument, match=f"^{message}") as raised:
        kind(value)
    assert "\n" not in str(raised.value)


def test_mistakes_are_invalid_requests() -> None:
    with pytest.raises(InvalidRequest):
        Sample(seed=1.5)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ repr, help, copies


def test_the_repr_shows_what_differs_from_the_default() -> None:
    assert repr(Greedy()) == "Greedy()"
    assert repr(Sample(top_p=0.9, seed=7)) == "Sample(seed=7, top_p=0.9)"
    assert repr(Beam(num_beams=3, logit_bias={1: 2.0})) == "Beam(logit_bias={1: 2.0}, num_beams=3)"
    assert eval(repr(BeamSample(num_beams=3, seed=1))) == BeamSample(num_beams=3, seed=1)


@pytest.mark.parametrize("name", names())
def test_help_lists_every_option_with_its_range(name: str) -> None:
    shown = " ".join((inspect.getdoc(find(name)) or "").split())
    for option_name, declared in options_of(find(name)).items():
        assert f" {option_name}: {' '.join(declared.described_in_python.split())}" in shown
    assert "--" not in shown
    assert "repeatable" not in shown


def test_what_help_says_of_values_in_python_works() -> None:
    tokenizer = Tokenizer(BYTES, [])
    words = [tokenizer.encode(" king")]
    Sample(bad_words=words, logit_bias={26: -5.0}, exponential_decay_length_penalty=(20, 1.1))
    Greedy(dry_multiplier=0.8, dry_sequence_breakers=tokenizer.encode("\n"))
    Greedy(regex=Grammar("regex", " ?(yes|no)", tokenizer.token_bytes()))
    Constrained(must_include=words)
    shown = " ".join((inspect.getdoc(Constrained) or "").split())
    for value in (
        '[tokenizer.encode(" king")]',
        'Grammar("regex", pattern, tokenizer.token_bytes())',
        "(20, 1.1)",
    ):
        assert value in shown


def test_help_of_the_settings_of_training_lists_them() -> None:
    shown = " ".join((inspect.getdoc(Settings) or "").split())
    assert " batch_size: sequences per batch, over all processes (at least 1; default: 12)" in shown
    assert all(f" {name}: " in shown for name in options_of(Settings))


@pytest.mark.parametrize("name", names())
def test_copies_are_equal_and_write_the_same(name: str) -> None:
    strategy = made(name)
    for again in (copy.copy(strategy), pickle.loads(pickle.dumps(strategy)), copy.deepcopy(strategy)):
        assert type(again) is type(strategy)
        assert repr(again).partition("(")[0] == type(strategy).__name__
        assert texts(again) == texts(strategy)
    assert copy.copy(strategy) == strategy == replace(strategy)


# ------------------------------------------------------------------------------ temperature 0, seeds


def test_a_temperature_of_0_is_greedy_whatever_the_cut_offs() -> None:
    cut_offs: dict[str, Any] = {"typical_p": 0.2, "top_k": 3, "xtc_probability": 1.0, "mirostat_tau": 3.0}
    assert texts(Sample(temperature=0)) == texts(Sample(temperature=0.0, **cut_offs)) == texts(Greedy())
    assert texts(BeamSample(num_beams=3, temperature=0)) == texts(Beam(num_beams=3))
    assert texts(PromptLookup(do_sample=True, temperature=0)) == texts(Greedy())
    assert Sample(temperature=0).seed is None


def test_the_most_extreme_temperatures_keep_the_order() -> None:
    logits = torch.tensor([[1.0, 1.001, 0.999, -5.0]])
    for temperature in (1e-6, 1e4):
        assert Temperature(temperature)(logits, torch.tensor([[0]])).argmax() == 1
    assert texts(Sample(temperature=1e4, top_k=1)) == texts(Sample(temperature=1e-6)) == texts(Greedy())


# ------------------------------------------------------------------------------ what flags imply


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("", "greedy"),
        ("seed", "greedy"),
        ("repetition_penalty regex", "greedy"),
        *((f, "sample") for f in ("temperature", "top_k", "top_p", "min_p", "typical_p", "xtc_probability", "mirostat_tau")),
        ("num_return_sequences", "sample"),
        ("num_beams", "beam"),
        ("num_beams seed", "beam"),
        ("early_stopping", "beam"),
        ("num_beams num_return_sequences", "beam"),
        ("num_beams temperature", "beam-sample"),
        ("num_beam_groups", "diverse-beam"),
        ("must_include", "constrained"),
        ("must_include num_beams", "constrained"),
        ("penalty_alpha", "contrastive"),
        ("penalty_alpha top_k", "contrastive"),
        ("dola_layers top_p", "dola"),
        ("amateur temperature", "contrastive-decoding"),
        ("draft", "speculative"),
        ("draft num_draft_tokens top_p", "speculative"),
        ("max_ngram", "prompt-lookup"),
        ("num_draft_tokens", "prompt-lookup"),
    ],
)  # fmt: skip
def test_the_strategy_follows_from_the_options(given: str, name: str) -> None:
    assert name_of(implied_by(given.split())) == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "num_beams penalty_alpha",
            "--num-beams and --penalty-alpha cannot be combined: no strategy has them all",
        ),
        ("amateur_temperature", "--amateur-temperature has no effect without --amateur: add it, or leave"),
    ],
)
def test_what_no_strategy_has_together_is_refused(given: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{message}"):
        implied_by(given.split())


# ------------------------------------------------------------------------------ processors of its own


@dataclass(frozen=True)
class Cooling:
    """Temperature that falls from `hot` to 1 over so many tokens."""

    hot: float
    n_tokens: int
    prompt_length: int

    def __post_init__(self) -> None:
        require_in_range(Annealed, hot=self.hot)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        written = tokens.size(1) - self.prompt_length
        return logits / (1 + (self.hot - 1) * max(0.0, 1 - written / self.n_tokens))


@dataclass(frozen=True, kw_only=True)
class Annealed(Sample):
    """Sampling with a temperature that falls."""

    hot: float = option(1.5, "first temperature", group="sampling", above=0, most=9)
    cooling: int = option(20, "tokens until the temperature is 1", group="sampling", least=1)

    def own_processors(self, text: TextContext) -> Iterable[tuple[type[Stage], Processor]]:
        yield Temperature, Cooling(self.hot, self.cooling, text.prompt_length)


def test_a_strategy_brings_a_processor_that_has_its_place_in_the_order() -> None:
    def own(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits

    strategy = Annealed(processors=(own,), top_k=3, logit_bias={1: 1.0}, seed=1)
    steps = chain(strategy, Request((1, 2), max_new_tokens=9))
    assert [getattr(step, "__name__", type(step).__name__) for step in steps] == [
        "LogitBias",
        "own",
        "Cooling",
        "TopK",
    ]
    assert ORDER.index(LogitBias) < ORDER.index(Temperature) < ORDER.index(TopK)


def test_a_place_that_is_none_is_refused() -> None:
    class Lost(Greedy):
        def own_processors(self, text: TextContext) -> Iterable[tuple[type[Stage], Processor]]:
            yield Cooling, lambda logits, tokens: logits  # type: ignore[misc]

    with pytest.raises(
        TypeError, match=r"^Lost.own_processors: .*Cooling'> is no stage of the order; name one of ORDER$"
    ):
        Lost()


def test_its_own_processor_acts_and_is_validated() -> None:
    logits = torch.tensor([[2.0, 1.0]])
    (step,) = chain(Annealed(hot=3.0, cooling=2), Request((0,), max_new_tokens=9))
    for written, temperature in enumerate((3.0, 2.0, 1.0, 1.0)):
        assert step(logits, torch.zeros(1, 1 + written, dtype=torch.long)).equal(logits / temperature)
    with pytest.raises(
        InvalidRequest, match=r"^hot \(--hot\) must be a number above 0 and at most 9, got 10$"
    ):
        Annealed(hot=10)
    assert (
        texts(Annealed(hot=1.0, seed=3)) == texts(Sample(seed=3)) != texts(Annealed(hot=9, cooling=9, seed=3))
    )


def test_the_draft_model_is_no_text() -> None:
    with pytest.raises(InvalidRequest, match=r"^draft \(--draft\) must be a loaded model .*, got 'gpt2'$"):
        Speculative(draft="gpt2")  # type: ignore[arg-type]
    assert Speculative(draft=FakeModel(scrambled(5))).num_draft_tokens == 4
