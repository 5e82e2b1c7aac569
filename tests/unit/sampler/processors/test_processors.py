"""What each processor does, by small examples; that transformers does the same is for tests/parity."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from choices import kept
from fakes import tiny_gpt2
from torch import Tensor

from minigpt.errors import InvalidRequest
from minigpt.sampler import Beam, BeamSample, Greedy, Sample, generate
from minigpt.sampler.events import Request
from minigpt.sampler.processors import (
    DRY,
    XTC,
    BadWords,
    EpsilonCutoff,
    EtaCutoff,
    ExponentialLengthDecay,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    MinP,
    Mirostat,
    NoRepeatNGram,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Watermark,
    chain,
)
from minigpt.sampler.processors.processor import Checked

NONE = float("-inf")
REQUEST = Request(prompt=(5,), max_new_tokens=9, end_tokens=frozenset([0]))
ANY = torch.tensor([[0]])


def text(*tokens: int) -> Tensor:
    return torch.tensor([tokens])


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.0, [0]), (0.49, [0]), (0.51, [0, 1]), (0.6, [0, 1]), (0.81, [0, 1, 2]), (0.96, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_token_that_crosses_p(p: float, expected: list[int]) -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(TopP(p)(logits, ANY)) == [expected]


@pytest.mark.parametrize("p", [0.0, 1e-9, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tiny_p_keeps_at_least_the_likeliest_in_every_precision(dtype: torch.dtype, p: float) -> None:
    """1 - p rounds to 1 in half precision, and then "everything up to 1" is everything."""
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    for cut_off in (TopP(p), MinP(p)):
        left = cut_off(logits, ANY)
        assert left.gather(1, logits.argmax(1, keepdim=True)).isfinite().all()
    assert all(kept(Typical(max(p, 1e-12))(logits, ANY)))  # which may drop the likeliest, but not all


def test_top_p_of_1_changes_nothing_but_what_has_no_probability() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 3.0, -2.0]])
    assert torch.equal(TopP(1.0)(logits, ANY), logits)


def test_ties_with_the_kth_are_kept_and_k_may_exceed_the_vocabulary() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert kept(TopK(2)(logits, ANY)) == [[1, 2, 3], [0, 1]]
    assert torch.equal(TopK(6)(logits, ANY), logits)


def test_min_p_is_a_share_of_the_best() -> None:
    logits = torch.tensor([[0.5, 0.26, 0.24]]).log()
    assert kept(MinP(0.5)(logits, ANY)) == [[0, 1]]


def test_typical_may_drop_the_likeliest() -> None:
    logits = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    assert kept(Typical(0.5)(logits, ANY)) == [[1, 2, 3]]


@pytest.mark.parametrize(
    "cut_off",
    [
        TopK(1, 3),
        TopP(0.0, 3),
        MinP(1.0, 3),
        Typical(0.01, 3),
        EpsilonCutoff(0.95, 3),
        EtaCutoff(0.95, 3),
        TopNSigma(0.01, 3),
        Mirostat(0.01, keep=3),
    ],
)
def test_cut_offs_leave_as_many_as_they_must_keep(cut_off: Any) -> None:
    logits = torch.tensor([[0.9, 0.04, 0.03, 0.02, 0.01]]).log()
    assert kept(cut_off(logits, ANY)) == [[0, 1, 2]]
    assert len(kept(cut_off(logits[:, :2], ANY))[0]) == 2  # and no more than there are


def test_the_repetition_penalty_lowers_either_sign_and_leaves_ruled_out_tokens_so() -> None:
    logits = torch.tensor([[4.0, -4.0, NONE, 4.0, 0.0]])
    out = RepetitionPenalty(2.0)(logits, text(0, 0, 1, 2, 4))
    assert out.tolist() == [[2.0, -8.0, NONE, 4.0, 0.0]]


@pytest.mark.parametrize(
    ("size", "tokens", "banned"),
    [
        (1, [1, 2, 1], [1, 2]),
        (2, [1, 2, 3, 1], [2]),
        (2, [1, 2, 1, 3, 1], [2, 3]),
        (3, [1, 2, 3, 1], []),
        (3, [1, 2, 3, 1, 2], [3]),
        (5, [1, 2, 3], []),
    ],
)
def test_no_ngram_is_repeated(size: int, tokens: list[int], banned: list[int]) -> None:
    out = NoRepeatNGram(size)(torch.zeros(1, 5), text(*tokens))
    assert kept(out) == [[token for token in range(5) if token not in banned]]


@pytest.mark.parametrize(
    ("tokens", "banned"), [([0], [3]), ([1], [2, 3]), ([0, 1, 2], [3, 4]), ([1, 0, 2], [3])]
)
def test_bad_words_are_never_completed(tokens: list[int], banned: list[int]) -> None:
    out = BadWords([[3], [1, 2], [1, 2, 4], [0] * 9])(torch.zeros(1, 5), text(*tokens))
    assert kept(out) == [[token for token in range(5) if token not in banned]]


def test_no_end_before_enough_new_tokens() -> None:
    step = MinNewTokens(2, 3, frozenset([0, 4, 99]))  # the vocabulary has no 99
    lengths = (3, 4, 5, 6)
    left = [kept(step(torch.zeros(1, 5), torch.ones(1, n, dtype=torch.long)))[0] for n in lengths]
    assert left == [[1, 2, 3], [1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_rows_do_not_mix() -> None:
    logits, tokens = torch.randn(3, 6), torch.tensor([[1, 2, 1], [3, 4, 3], [5, 5, 5]])
    for step in (
        RepetitionPenalty(3.0),
        NoRepeatNGram(2),
        BadWords([[1, 2], [3, 0]]),
        TopP(0.5),
        Typical(0.5),
        PresencePenalty(1.0, 1),
        FrequencyPenalty(1.0, 1),
        ExponentialLengthDecay(0, 1.5, 1, frozenset([0, 3])),
        DRY(1.0, allowed_length=1),
        TopNSigma(1.0),
        EpsilonCutoff(0.1),
        EtaCutoff(0.3),
        XTC(1.0),
        Mirostat(1.0),
        Watermark(),
    ):
        alone = [step(logits[i : i + 1], tokens[i : i + 1]) for i in range(3)]
        assert torch.equal(step(logits, tokens), torch.cat(alone)), step


def test_the_chain_has_one_order_and_leaves_out_what_is_off() -> None:
    def own(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits

    everything = Sample(
        watermark=True,
        mirostat_tau=3.0,
        xtc_probability=0.5,
        eta_cutoff=0.1,
        epsilon_cutoff=0.1,
        top_n_sigma=1.0,
        exponential_decay_length_penalty=(1, 1.1),
        dry_multiplier=0.8,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        typical_p=0.5,
        min_p=0.1,
        top_p=0.5,
        top_k=3,
        temperature=2.0,
        processors=(own,),
        min_new_tokens=1,
        bad_words=[[3]],
        no_repeat_ngram_size=2,
        repetition_penalty=2.0,
        logit_bias={1: 1.0},
    )
    steps = chain(everything, REQUEST, keep=3)
    repetition = [RepetitionPenalty, PresencePenalty, FrequencyPenalty, DRY, NoRepeatNGram]
    endings = [MinNewTokens, ExponentialLengthDecay]
    cut_offs = [TopNSigma, TopK, TopP, MinP, Typical, EpsilonCutoff, EtaCutoff, XTC, Mirostat]
    control = [LogitBias, *repetition, BadWords, *endings, Checked]
    assert [type(step) for step in steps] == [*control, Temperature, *cut_offs, Watermark]
    assert [step.keep for step in steps[-1 - len(cut_offs) : -1]] == [3] * len(cut_offs)
    for strategy in (Greedy(), Sample(), Beam(), BeamSample()):
        assert chain(strategy, REQUEST) == []


def test_an_end_token_is_no_bad_word() -> None:
    """As in transformers; to keep a text from ending there is min_new_tokens."""
    (step,) = chain(Greedy(bad_words=[[0], [3], [1, 0]]), REQUEST)
    assert step == BadWords([[3], [1, 0]])
    assert chain(Greedy(bad_words=[[0]]), REQUEST) == []


WHOLE = "a whole number of at least"
RANGES = [
    ("repetition_penalty", 0.0, "a number from 0.0001 to 10000"),
    ("repetition_penalty", 1e39, "a number from 0.0001 to 10000"),
    ("no_repeat_ngram_size", -1, f"{WHOLE} 1, or 0 for off"),
    ("no_repeat_ngram_size", 2.5, f"{WHOLE} 1, or 0 for off"),
    ("min_new_tokens", -1, f"{WHOLE} 0"),
    ("presence_penalty", 2.1, "a number from -2 to 2"),
    ("frequency_penalty", -2.1, "a number from -2 to 2"),
    ("dry_multiplier", -1.0, "a number above 0 and at most 10000, or 0 for off"),
    ("dry_base", 0.9, "a number from 1 to 5"),
    ("dry_allowed_length", 0, f"{WHOLE} 1"),
    ("dry_allowed_length", 10**30, f"{WHOLE} 1 and below 2,147,483,648"),
    ("dry_sequence_breakers", "\n", r"token ids (tokenizer.encode makes them of a text)"),
    (
        "exponential_decay_length_penalty",
        (-1, 1.1),
        "a pair of a whole number of at least 0 and a finite factor above 1",
    ),
    (
        "exponential_decay_length_penalty",
        (1, 1.0),
        "a pair of a whole number of at least 0 and a finite factor above 1",
    ),
    (
        "exponential_decay_length_penalty",
        5,
        "a pair of a whole number of at least 0 and a finite factor above 1",
    ),
    (
        "bad_words",
        ["king"],
        "sequences of at least one token id each (tokenizer.encode makes them of a text)",
    ),
    ("bad_words", "king", "sequences of at least one token id each (tokenizer.encode makes them of a text)"),
    ("bad_words", [[]], "sequences of at least one token id each (tokenizer.encode makes them of a text)"),
    ("logit_bias", {1: math.inf}, "a dict of finite biases, or -inf, by token id"),
    ("logit_bias", {1: 1e39}, "a dict of finite biases, or -inf, by token id"),
    ("logit_bias", {-1: 1.0}, "a dict of finite biases, or -inf, by token id"),
    ("logit_bias", [(1, 2.0)], "a dict of finite biases, or -inf, by token id"),
    ("regex", "yes", 'a Grammar (as Grammar("regex", source, tokenizer.token_bytes()))'),
    ("watermark", 1, "True or False"),
    ("watermark_bias", 0.0, "a number above 0 and at most 10000"),
    ("watermark_bias", math.inf, "a number above 0 and at most 10000"),
    ("watermark_ratio", 1.0, "a number above 0 and below 1"),
    ("watermark_key", 0, f"{WHOLE} 1"),
]
SAMPLING_RANGES = [
    ("temperature", -1.0, "a number from 1e-06 to 10000, or 0"),
    ("temperature", 1e39, "a number from 1e-06 to 10000, or 0"),
    ("temperature", math.inf, "a number from 1e-06 to 10000, or 0"),
    ("temperature", math.nan, "a number from 1e-06 to 10000, or 0"),
    ("temperature", "hot", "a number from 1e-06 to 10000, or 0"),
    ("top_k", -1, f"{WHOLE} 1, or 0 for off"),
    ("top_k", True, f"{WHOLE} 1, or 0 for off"),
    ("top_p", 1.1, "a number from 0 to 1"),
    ("top_p", -0.1, "a number from 0 to 1"),
    ("top_p", math.nan, "a number from 0 to 1"),
    ("min_p", 1.1, "a number from 0 to 1"),
    ("min_p", -0.1, "a number from 0 to 1"),
    ("typical_p", 0.0, "a number above 0 and at most 1"),
    ("typical_p", 1.5, "a number above 0 and at most 1"),
    (
        "typical_p",
        5e-324,
        "a number above 0 and at most 1, and within what float32 represents, from 1.2e-38 to 3.4e+38 in size",
    ),
    ("seed", -1, f"{WHOLE} 0"),
    ("seed", 1.5, f"{WHOLE} 0"),
    ("epsilon_cutoff", 1.0, "a number above 0 and below 1, or 0 for off"),
    ("eta_cutoff", -0.1, "a number above 0 and below 1, or 0 for off"),
    ("top_n_sigma", -1.0, "a number above 0, or 0 for off"),
    ("xtc_probability", 1.1, "a number above 0 and at most 1, or 0 for off"),
    ("xtc_threshold", 0.0, "a number above 0 and at most 1"),
    ("mirostat_tau", 0.0, "a number above 0 and at most 1000"),
    ("mirostat_eta", 0.0, "a number above 0 and at most 1000"),
]
BEAM_RANGES = [
    ("num_beams", 0, "a whole number from 1 to 65536"),
    ("num_beams", 2.5, "a whole number from 1 to 65536"),
    ("num_return_sequences", 0, "a whole number from 1 to 65536"),
    ("length_penalty", 11, "a number from -10 to 10"),
    ("early_stopping", "always", "one of True, False, 'never'"),
    ("early_stopping", 1, "one of True, False, 'never'"),
]


@pytest.mark.parametrize(
    ("strategy", "name", "value", "limit"),
    [
        *((strategy, *case) for strategy in (Greedy, Sample, Beam, BeamSample) for case in RANGES),
        *((strategy, *case) for strategy in (Sample, BeamSample) for case in SAMPLING_RANGES),
        *((strategy, *case) for strategy in (Beam, BeamSample) for case in BEAM_RANGES),
        (Sample, "num_return_sequences", 0, "a whole number from 1 to 65536"),
    ],
)
def test_options_out_of_range_are_refused_at_once(strategy: Any, name: str, value: Any, limit: str) -> None:
    message = f"{name} (--{name.replace('_', '-')}) must be {limit}, got {value!r}"
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}$"):
        strategy(**{name: value})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "top_k (--top-k) must be a whole number of at least 1, or 0 for off, got 0"),
        (lambda: TopP(1.5), "top_p (--top-p) must be a number from 0 to 1, got 1.5"),
        (
            lambda: Temperature(0),
            "temperature (--temperature) must be a number from 1e-06 to 10000, or 0, got 0",
        ),
        (
            lambda: MinNewTokens(-1, 0, frozenset()),
            "min_new_tokens (--min-new-tokens) must be a whole number",
        ),
        (lambda: DRY(1.0, base=0.5), "dry_base (--dry-base) must be a number from 1 to 5, got 0.5"),
        (
            lambda: Watermark(ratio=1.0),
            "watermark_ratio (--watermark-ratio) must be a number above 0 and below 1",
        ),
        (
            lambda: Mirostat(0),
            "mirostat_tau (--mirostat-tau) must be a number above 0 and at most 1000, got 0",
        ),
    ],
)
def test_a_processor_refuses_what_its_option_refuses(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(message)}"):
        make()


def test_more_sequences_than_beams_are_refused() -> None:
    message = r"^num_return_sequences \(.*\) must be at most num_beams \(--num-beams\), 2, got 3$"
    with pytest.raises(InvalidRequest, match=message):
        Beam(num_beams=2, num_return_sequences=3)


def test_ids_that_the_model_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^logit_bias ids must be from 0 to 3, got \[4, 5\]$"):
        LogitBias({4: 1.0, 0: 1.0, 5: 2.0})(torch.zeros(1, 4), ANY)
    with pytest.raises(ValueError, match=r"^bad_words ids must be from 0 to 3, got \[4\]$"):
        BadWords([[0, 4]])(torch.zeros(1, 4), ANY)


# ------------------------------------------------------------------------------ processors of one's own


@pytest.mark.parametrize(
    ("processor", "returned"),
    [
        (lambda logits, tokens: None, "None"),
        (lambda logits, tokens: logits[:, :2], r"float32 of shape \(1, 2\)"),
        (lambda logits, tokens: logits[0], r"float32 of shape \(4,\)"),
        (lambda logits, tokens: logits.long(), r"int64 of shape \(1, 4\)"),
        (lambda logits, tokens: logits.tolist(), "an object of class list"),
    ],
)
def test_a_processor_that_returns_something_else_is_named(processor: Any, returned: str) -> None:
    (step,) = chain(Greedy(processors=(processor,)), REQUEST)
    message = rf"^the processor <lambda> returned {returned}: it must return logits of shape \(1, 4\)$"
    with pytest.raises(InvalidRequest, match=message):
        step(torch.zeros(1, 4), ANY)


def test_a_processor_that_works_in_place_changes_only_its_copy() -> None:
    def ban_first(logits: Tensor, tokens: Tensor) -> Tensor:
        tokens.zero_()
        logits[:, 0] = -9.0
        return logits

    model = tiny_gpt2()
    plain, banned = (
        generate(model, [[1, 2]], Greedy(processors=processors), max_new_tokens=1)[0][0]
        for processors in ((), (lambda logits, tokens: ban_first(logits.clone(), tokens.clone()),))
    )
    (((in_place,),)) = generate(model, [[1, 2]], Greedy(processors=(ban_first,)), max_new_tokens=1)
    assert (in_place.tokens, in_place.logprobs) == (banned.tokens, banned.logprobs)
    assert plain.finish_reason == "length"


def test_processors_are_callables() -> None:
    with pytest.raises(InvalidRequest, match=r"^processors must be a tuple of callables, got \(1,\)$"):
        Greedy(processors=(1,))  # type: ignore[arg-type]
