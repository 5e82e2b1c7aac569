"""Where a text ends, and what is refused before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
from fakes import FakeModel, after_last, counting, scrambled

from minigpt.sampler import Beam, BeamSample, Greedy, PromptTooLong, Sample, Strategy, generate, stream
from minigpt.sampler.requests import prepare

STRATEGIES = [Greedy(), Sample(seed=1, top_k=1), Beam(num_beams=3), BeamSample(num_beams=3, seed=1)]
BY_NAME = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)


def count_from(prompt: list[int], strategy: Strategy | None = None, **limits: Any) -> tuple[list[int], str]:
    """New tokens and finish reason from a model that counts to 9 and starts again."""
    ((text, *_),) = generate(FakeModel(counting(10), n_positions=8), [prompt], strategy, **limits)
    return text.tokens, text.finish_reason


def ends_with(*tokens: int) -> Callable[[Sequence[int]], bool]:
    return lambda text: tuple(text[-len(tokens) :]) == tokens


@BY_NAME
@pytest.mark.parametrize("n", [1, 2, 6])
def test_max_new_tokens_counts_new_tokens(strategy: Strategy, n: int) -> None:
    model = FakeModel(scrambled(7))
    for group in generate(model, [[1], [2, 3, 4]], strategy, max_new_tokens=n):
        assert [(len(text.tokens), text.finish_reason) for text in group] == [(n, "length")]


def test_fifty_tokens_unless_told() -> None:
    ((text,),) = generate(FakeModel(counting(10)), [[0]])
    assert len(text.tokens) == 50


@pytest.mark.parametrize("strategy", STRATEGIES[:3], ids=lambda strategy: type(strategy).__name__)
def test_an_end_token_is_the_last_of_the_text(strategy: Strategy) -> None:
    assert count_from([2], strategy, max_new_tokens=7, end_tokens=[5, 9]) == ([3, 4, 5], "eos")


def test_the_end_tokens_are_the_models_own_unless_given() -> None:
    model = FakeModel(counting(10), end_tokens=[5])
    reasons = [
        generate(model, [[2]], max_new_tokens=4, **given)[0][0].finish_reason
        for given in ({}, {"end_tokens": None}, {"end_tokens": []}, {"end_tokens": [6]})
    ]
    assert reasons == ["eos", "eos", "length", "eos"]


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    """GPT-2's only special token starts texts, too."""
    assert count_from([5, 2], max_new_tokens=3, end_tokens=[5]) == ([3, 4, 5], "eos")
    assert count_from([5], max_new_tokens=2, end_tokens=[5]) == ([6, 7], "length")


def test_an_end_token_at_the_limit_is_an_end() -> None:
    assert count_from([2], max_new_tokens=3, end_tokens=[5]) == ([3, 4, 5], "eos")


@pytest.mark.parametrize("strategy", STRATEGIES[:3], ids=lambda strategy: type(strategy).__name__)
def test_a_stop_may_need_several_tokens(strategy: Strategy) -> None:
    assert count_from([1], strategy, max_new_tokens=7, stop=ends_with(3, 4, 5)) == ([2, 3, 4, 5], "stop")


def test_a_stop_is_found_after_a_false_start() -> None:
    """ "aab" in "aaab": a matcher that starts again at the first mismatch would miss it."""
    script = [0, 0, 0, 1, 2]
    model = FakeModel(lambda text: [9.0 * (token == script[len(text) - 1]) for token in range(3)])
    ((text,),) = generate(model, [[2]], max_new_tokens=5, stop=ends_with(0, 0, 1))
    assert (text.tokens, text.finish_reason) == ([0, 0, 0, 1], "stop")


def test_a_stop_sees_new_tokens_alone() -> None:
    assert count_from([1, 2], max_new_tokens=4, stop=ends_with(2, 3)) == ([3, 4, 5, 6], "length")


def test_a_finished_text_writes_and_computes_nothing_more() -> None:
    model = FakeModel(counting(10), end_tokens=[5])
    short, long = generate(model, [[4], [6]], max_new_tokens=6)
    assert (short[0].tokens, long[0].tokens) == ([5], [7, 8, 9, 0, 1, 2])
    assert model.reads == [(2, 1), *[(1, 1)] * 5]  # and the last token is not read back


def test_beams_of_a_finished_prompt_leave_the_batch() -> None:
    goes_on = [0.1, 0.1, 0.4, 0.4]
    model = FakeModel(after_last({0: [0.5, 0.3, 0.1, 0.1], 2: goes_on, 3: goes_on}), end_tokens=[0, 1])
    short, long = generate(model, [[0], [2]], Beam(num_beams=2, early_stopping=True), max_new_tokens=4)
    assert (short[0].tokens, len(long[0].tokens)) == ([0], 4)
    assert model.reads == [(2, 1), *[(2, 1)] * 3]  # two prompts, and then two beams of the second


# The window: a model with 8 positions


@BY_NAME
@pytest.mark.parametrize(("length", "n"), [(7, 2), (8, 1), (1, 8)])
def test_the_window_is_used_to_its_last_position(strategy: Strategy, length: int, n: int) -> None:
    """The last new token is never read, so it needs no position: a full prompt yields one token."""
    model = FakeModel(counting(10), n_positions=8)
    ((text, *_),) = generate(model, [[1] * length], strategy, max_new_tokens=n)
    assert (len(text.tokens), text.finish_reason) == (n, "length")


@BY_NAME
@pytest.mark.parametrize(("length", "n"), [(7, 3), (8, 2), (9, 1), (1, 9)])
def test_what_does_not_fit_is_refused_before_anything_is_computed(
    strategy: Strategy, length: int, n: int
) -> None:
    model = FakeModel(counting(10), n_positions=8)
    needs = r" and needs \d+ positions with \d+ new ones \(the last is not read\)" if length <= 8 else ""
    message = f" has {length} tokens?{needs}, the model's context length is 8: shorten the prompt, "
    with pytest.raises(PromptTooLong, match=f"^prompt 0{message}"):
        generate(model, [[1] * length, [1]], strategy, max_new_tokens=n)
    with pytest.raises(PromptTooLong, match=f"^the prompt{message}"):
        stream(model, [1] * length, strategy, max_new_tokens=n)
    assert model.reads == []


@BY_NAME
@pytest.mark.parametrize(
    ("length", "n", "dropped"), [(7, 2, 0), (7, 3, 1), (8, 2, 1), (9, 1, 1), (12, 8, 11)]
)
def test_truncate_drops_the_oldest_tokens_and_says_how_many(
    strategy: Strategy, length: int, n: int, dropped: int
) -> None:
    model, prompt = FakeModel(scrambled(10), n_positions=8), [i % 10 for i in range(length)]
    (request,) = prepare(model, [prompt], max_new_tokens=n, overflow="truncate")
    assert (request.dropped, list(request.prompt)) == (dropped, prompt[dropped:])
    cut = generate(model, [prompt], strategy, max_new_tokens=n, overflow="truncate")
    assert cut == generate(model, [prompt[dropped:]], strategy, max_new_tokens=n)
    assert cut[0][0].finish_reason == "length"


def test_truncate_cannot_make_room_for_more_than_the_window() -> None:
    with pytest.raises(
        PromptTooLong,
        match=r"^the prompt has 1 token and needs 9 positions with 9 new ones .* context length is 8",
    ):
        count_from([1], max_new_tokens=9, overflow="truncate")


@BY_NAME
@pytest.mark.parametrize(("length", "n", "written", "reason"), [
    (7, 2, 2, "length"), (7, 3, 2, "overflow"), (8, 1, 1, "length"), (8, 50, 1, "overflow"), (1, 9, 8, "overflow"),
])  # fmt: skip
def test_stop_ends_at_the_edge_of_the_window(
    strategy: Strategy, length: int, n: int, written: int, reason: str
) -> None:
    tokens, why = count_from([1] * length, strategy, max_new_tokens=n, overflow="stop")
    assert (len(tokens), why) == (written, reason)


def test_stop_cannot_start_beyond_the_edge() -> None:
    with pytest.raises(
        PromptTooLong,
        match=r"^the prompt has 9 tokens, the model's context length is 8: shorten the prompt, or overflow",
    ):
        count_from([1] * 9, max_new_tokens=1, overflow="stop")


def test_an_end_before_the_edge_is_an_end() -> None:
    assert count_from([1, 2, 3], max_new_tokens=50, overflow="stop", end_tokens=[5]) == ([4, 5], "eos")


# Messages


@pytest.mark.parametrize(
    ("prompts", "limits", "message"),
    [
        ([[1]], {"max_new_tokens": 0}, r"^max_new_tokens must be a whole number of at least 1, got 0$"),
        (
            [[1]],
            {"overflow": "slid"},
            r"^overflow='slid' is not known; there are error, truncate, stop, slide$",
        ),
        ([[1]], {"top_logprobs": -1}, r"^top_logprobs must be a whole number of at least 0, got -1$"),
        ([1, 2], {}, r"^prompts is a list of prompts, each a list of ids: write \[tokens\], not tokens$"),
        ([[1], []], {}, r"^an empty prompt has nothing to continue: give at least one token"),
        ([[1], [3, 10, -1]], {}, r"^the model knows ids from 0 to 9, the prompt holds \[10, -1\]$"),
    ],
)
def test_mistakes_are_told(prompts: Any, limits: dict[str, Any], message: str) -> None:
    model = FakeModel(counting(10))
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, **limits)
    assert model.reads == []


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    model = FakeModel(scrambled(10), n_positions=8)
    asked = {"max_new_tokens": 3, "top_logprobs": 2, "stride": 5}
    usual = generate(model, [[1]], Sample(seed=5), overflow="slide", **asked)
    of_numpy = {name: numpy.int64(n) for name, n in asked.items()}
    assert generate(model, [[1]], Sample(seed=numpy.int64(5)), overflow="slide", **of_numpy) == usual
    with pytest.raises(ValueError, match=r"stride must be a whole number from 1 to .*, got True$"):
        generate(model, [[1]], overflow="slide", stride=True)


def test_no_prompts_no_texts() -> None:
    assert generate(FakeModel(counting(10)), []) == []


@pytest.mark.parametrize("strategy", [Sample(num_return_sequences=2), Beam(num_return_sequences=2)])
def test_a_stream_is_of_one_text(strategy: Strategy) -> None:
    with pytest.raises(
        ValueError,
        match=r"^stream continues a prompt in one way: num_return_sequences must be 1 \(\w+ has 2\)",
    ):
        stream(FakeModel(counting(10)), [1], strategy)
