"""Texts that must contain phrases, against a search through all texts there are."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from fakes import FakeModel, Text, after_last, scrambled, tiny_gpt2

from minigpt.sampler import Beam, Greedy, generate, stream
from minigpt.sampler.api import run
from minigpt.sampler.engine.beam_search import Hypothesis
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.constrained import Constrained, Goal, _phrases

PROMPTS = [(1, 2, 3), (4,), (5, 6, 7, 0, 0)]
GPT2 = tiny_gpt2()


def holds(text: Any, phrase: Any) -> bool:
    return any(tuple(text[i : i + len(phrase)]) == tuple(phrase) for i in range(len(text)))


def exhaustive(
    model: FakeModel, prompt: Text, n: int, ends: set[int], phrases: list[list[int]]
) -> list[tuple[Text, float]]:
    """All texts that contain the phrases, best first."""
    found = []
    for length in range(1, n + 1):
        for text in product(range(model.config.vocab_size), repeat=length):
            over = text[-1] in ends or length == n
            if over and not ends & set(text[:-1]) and all(holds(text, phrase) for phrase in phrases):
                rows = [torch.tensor(model.rule((*prompt, *text[:i]))).log_softmax(-1) for i in range(length)]
                found.append((text, sum(row[t].item() for row, t in zip(rows, text, strict=True)) / length))
    return sorted(found, key=lambda pair: -pair[1])


@pytest.mark.parametrize("ends", [set(), {3}])
@pytest.mark.parametrize(
    "phrases",
    [
        [[1]],
        [[2, 0]],
        [[0, 1, 2]],
        [[1, 1]],
        [[1], [2]],
        [[1, 2], [2, 0]],  # overlapping: three tokens can do
        [[1, 2], [2, 1]],
        [[2], [1, 2]],  # one within the other
        [[1, 2, 0], [2]],
        [[0, 1], [2, 1], [1, 0]],
    ],
    ids=str,
)
def test_at_full_width_it_finds_the_best_of_all_texts_with_the_phrases(
    phrases: list[list[int]], ends: set[int]
) -> None:
    model = FakeModel(scrambled(4, seed=3))
    n = 5 if sum(map(len, phrases)) <= 5 else 6
    strategy = Constrained(
        num_beams=400, early_stopping="never", num_return_sequences=400, must_include=phrases
    )
    expected = exhaustive(model, (1, 0), n, ends, phrases)
    (found,) = generate(model, [(1, 0)], strategy, max_new_tokens=n, end_tokens=ends)
    assert [tuple(text.tokens) for text in found][:30] == [text for text, _ in expected][:30]
    assert [text.score for text in found][:30] == pytest.approx(
        [score for _, score in expected][:30], abs=1e-5
    )


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("model", [FakeModel(scrambled(23)), GPT2], ids=["table", "gpt2"])
@pytest.mark.parametrize(
    "phrases",
    [[[6]], [[6, 6, 6]], [[7, 8, 9], [9, 7, 8]], [[3], [4], [5]], [[6, 7], [7, 6], [6], [10, 11, 12]]],
    ids=str,
)
def test_every_text_has_every_phrase(model: Any, phrases: list[list[int]], width: int) -> None:
    """With room, and with just enough of it; with end tokens that are likely and others that are not."""
    strategy = Constrained(num_beams=width, num_return_sequences=width, must_include=phrases)
    for room, ends in product([0, 4], [[], [0, 13, 17, 20]]):
        n = sum(map(len, phrases)) + room
        for group in generate(model, PROMPTS, strategy, max_new_tokens=n, end_tokens=ends):
            assert group
            for text in group:
                assert all(holds(text.tokens, phrase) for phrase in phrases)
                assert not set(text.tokens[:-1]) & set(ends)
                assert text.finish_reason == ("eos" if text.tokens[-1] in ends else "length")


@pytest.mark.parametrize("must_include", [(), [[]][:0]])
@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"num_beams": 4, "length_penalty": 0.5, "num_return_sequences": 3}]
)
def test_without_phrases_it_is_beam_search(options: dict[str, Any], must_include: Any) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 8, "end_tokens": [1, 5], "top_logprobs": 2}
    found = generate(GPT2, PROMPTS, Constrained(must_include=must_include, **options), **limits)
    assert found == generate(GPT2, PROMPTS, Beam(**options), **limits)


def test_a_phrase_that_comes_by_itself_costs_nothing() -> None:
    model = FakeModel(scrambled(12, seed=1))
    for prompt in PROMPTS:
        ((free,),) = generate(model, [prompt], Beam(num_beams=6), max_new_tokens=9)
        strategy = Constrained(num_beams=18, must_include=[free.tokens[3:5]])
        ((bound,),) = generate(model, [prompt], strategy, max_new_tokens=9)
        assert bound.score >= free.score - 1e-6


def test_the_prompt_does_not_count() -> None:
    ((text,),) = generate(GPT2, [(1, 2, 3)], Constrained(must_include=[[1, 2, 3], [2, 3]]), max_new_tokens=6)
    assert holds(text.tokens, [1, 2, 3])


def test_when_the_tokens_just_suffice_one_beam_is_left() -> None:
    model = FakeModel(scrambled(12))
    strategy = Constrained(num_beams=5, must_include=[[5, 6, 7, 8]])
    ((text,),) = generate(model, [(1,)], strategy, max_new_tokens=4)
    assert text.tokens == [5, 6, 7, 8]
    assert model.reads == [(1, 1)] * 4


def test_no_beam_is_wasted_on_what_has_no_room_for_all_phrases() -> None:
    """1 is likeliest, but only with 2 first and then 3, or 3 and then 2, do both fit; the latter is better."""
    rows = {1: [0.1, 0.5, 0.25, 0.15], 2: [0.4, 0.4, 0.1, 0.1], 3: [0.2, 0.1, 0.6, 0.1], 0: [0.25] * 4}
    strategy = Constrained(num_beams=2, num_return_sequences=2, must_include=[[2], [3]])
    (found,) = generate(FakeModel(after_last(rows)), [(1,)], strategy, max_new_tokens=2)
    assert [text.tokens for text in found] == [[3, 2], [2, 3]]


def test_the_beams_are_shared_among_the_banks() -> None:
    """A text that has the phrase stays among the beams, though six others are likelier by far."""
    model = FakeModel(lambda text: [5.0, 4.9, 4.8, 4.7, 4.6, 4.5, 0.0])
    events = run(
        model, prepare(model, [(0,)], max_new_tokens=3), Constrained(num_beams=4, must_include=[[6]])
    )
    first, *_ = [event for event in events if type(event).__name__ == "BeamsExtended"]
    assert [beam.token for beam in first.beams] == [0, 1, 2, 6]


def test_each_of_a_phrases_spellings_will_do() -> None:
    likes_9 = FakeModel(lambda text: [1.0 * (token == 9) for token in range(12)])
    for phrase in ([[3, 4], [9]], [[9], [3, 4]], ((3, 4), (9,))):
        ((text,),) = generate(likes_9, [(1,)], Constrained(must_include=[phrase]), max_new_tokens=4)
        assert text.tokens == [9, 9, 9, 9]
    ((text,),) = generate(
        likes_9, [(1,)], Constrained(must_include=[[[3, 4], [9]]], bad_words=[[9]]), max_new_tokens=2
    )
    assert text.tokens == [3, 4]


def test_an_end_before_the_phrases_is_not_taken() -> None:
    """0 ends a text and is likely throughout; 3 is rare."""
    model = FakeModel(after_last(dict.fromkeys(range(4), (0.7, 0.2, 0.09, 0.01))))
    strategy = Constrained(num_beams=3, num_return_sequences=3, must_include=[[3]])
    (group,) = generate(model, [(1,)], strategy, max_new_tokens=5, end_tokens=[0])
    assert {text.finish_reason for text in group} == {"eos"}
    assert all(text.tokens[-1] == 0 and 3 in text.tokens for text in group)


def test_a_stop_before_the_phrases_is_not_taken() -> None:
    model = FakeModel(scrambled(12))

    def stop(tokens: Any) -> bool:
        return len(tokens) >= 2 and sum(tokens[-2:]) % 3 == 0

    strategy = Constrained(num_beams=4, num_return_sequences=4, must_include=[[5], [6, 7]])
    (group,) = generate(model, [(1,)], strategy, max_new_tokens=12, stop=stop)
    for text in group:
        stops = [n for n in range(1, len(text.tokens) + 1) if stop(text.tokens[:n])]
        assert stops == ([len(text.tokens)] if text.finish_reason == "stop" else [])
        assert holds(text.tokens, [5])
        assert holds(text.tokens, [6, 7])


@pytest.mark.parametrize("must_include", [[[5]], [[5, 6], [7]], [[[5], [6, 7]], [8]]], ids=str)
def test_batch_and_stream_and_logprobs(must_include: Any) -> None:
    strategy = Constrained(num_beams=4, num_return_sequences=4, must_include=must_include)
    single = Constrained(num_beams=4, must_include=must_include)
    limits: dict[str, Any] = {"max_new_tokens": 8, "end_tokens": [2, 13]}
    batch = generate(GPT2, PROMPTS, strategy, **limits)
    for prompt, group in zip(PROMPTS, batch, strict=True):
        (alone,) = generate(GPT2, [prompt], strategy, **limits)
        assert [text.tokens for text in alone] == [text.tokens for text in group]
        assert list(stream(GPT2, prompt, single, **limits)) == group[0].tokens
        for text in group:
            assert text.score == pytest.approx(sum(text.logprobs) / len(text.tokens), abs=1e-5)


def test_other_options_still_hold() -> None:
    strategy = Constrained(
        num_beams=4,
        must_include=[[5, 6], [9]],
        bad_words=[[1], [6, 9]],
        no_repeat_ngram_size=2,
        min_new_tokens=7,
    )
    model, prompts = FakeModel(scrambled(12)), [(1, 2, 3), (4,), (0, 0, 7, 8)]
    for (text,) in generate(model, prompts, strategy, max_new_tokens=8, end_tokens=[2]):
        assert holds(text.tokens, [5, 6])
        assert 9 in text.tokens
        assert 1 not in text.tokens
        assert not holds(text.tokens, [6, 9])
        assert len(set(pairwise(text.tokens))) == len(text.tokens) - 1 >= 6


@pytest.mark.parametrize("bad", [[[5]], [[4, 5]]])
def test_a_phrase_that_another_option_forbids_is_an_error(bad: list[list[int]]) -> None:
    with pytest.raises(
        ValueError, match="no token is left to choose after 1 prompt token: the options rule out"
    ):
        generate(GPT2, [(1,)], Constrained(must_include=[[4, 5]], bad_words=bad), max_new_tokens=6)


def test_phrases_that_overlap_need_less_room() -> None:
    model = FakeModel(scrambled(23))
    options = Constrained(num_beams=4, must_include=[[1, 2], [2, 3]])
    ((text, *_),) = generate(model, [(1,)], options, max_new_tokens=3, end_tokens=[])
    assert text.tokens == [1, 2, 3]
    with pytest.raises(ValueError, match="phrases are 4 tokens together, more than fit the 2 new ones"):
        generate(model, [(1,)], options, max_new_tokens=2, end_tokens=[])


def test_phrases_that_do_not_overlap_after_all_are_an_error() -> None:
    strategy = Constrained(num_beams=4, must_include=[[1, 2], [2, 2], [1, 1, 2, 1]])  # 1 1 2 1 2 2 at least
    with pytest.raises(ValueError, match="phrases are 6 tokens together, more than fit the 5 new ones"):
        generate(FakeModel(scrambled(23)), [(1,)], strategy, max_new_tokens=5, end_tokens=[])


@pytest.mark.parametrize(
    ("must_include", "message"),
    [
        (
            [[1, 2, 3], [4, 5]],
            r"phrases are 5 tokens together, more than fit the 4 new ones .*\(--max-new-tokens\)",
        ),
        ([[23]], r"^must_include ids must be from 0 to 22, got \[23\]"),
        ([[29, 5]], r"must be from 0 to 22, got \[29\]"),
        ([[3, 13]], "holds the end token 13, at which a text ends"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(must_include: Any, message: str) -> None:
    model = FakeModel(scrambled(23))
    with pytest.raises(ValueError, match=message):
        generate(model, [(1,)], Constrained(must_include=must_include), max_new_tokens=4, end_tokens=[13])
    assert model.reads == []


@pytest.mark.parametrize(
    ("must_include", "message"),
    [
        (
            [[5], []],
            r"must_include \(--must-include\): phrase 2 has no tokens: it is empty, or the vocabulary cannot",
        ),
        ([[[5], []]], "phrase 1 has no tokens"),
        (
            ["king"],
            r"must_include \(--must-include\) must be phrases, each of token ids or .*, got \['king'\]",
        ),
    ],
)
def test_what_is_no_phrase_is_refused(must_include: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Constrained(must_include=must_include)


def test_phrases_that_come_with_another_need_no_room() -> None:
    assert Goal.of([[1, 2, 3], [2], [2], [2, 3]]).phrases == (((1, 2, 3),),)
    assert Goal.of([[[2, 1], [3, 1]], [[3], [2]]]).phrases == (((2, 1), (3, 1)),)
    assert len(Goal.of([[[2, 1], [3, 1]], [2]]).phrases) == 2


class Letters:
    """A tokenizer that knows small letters and the space: its ids are theirs."""

    def encode(self, text: str) -> list[int]:
        if not text.isascii():
            raise ValueError("the vocabulary has no token for byte 195")
        return [ord(letter) for letter in text]


def test_on_the_command_line_a_phrase_is_spelled_with_a_space_and_without() -> None:
    class Loaded:
        tokenizer = Letters()

    assert _phrases(["ab", " c", "", "é"], Loaded()) == (
        ((97, 98), (32, 97, 98)),
        ((32, 99),),
        (),
        (),
    )


def test_a_greedy_text_that_has_the_phrase_is_found_by_a_single_beam_too() -> None:
    ((greedy,),) = generate(GPT2, [(1,)], Greedy(), max_new_tokens=5)
    strategy = Constrained(num_beams=1, must_include=[greedy.tokens])
    ((text,),) = generate(GPT2, [(1,)], strategy, max_new_tokens=5)
    assert text.tokens == greedy.tokens


@pytest.mark.parametrize("error", [0.0, 1e-7, -1e-7, 1e-6])
def test_of_equal_candidates_the_first_are_looked_at(error: float) -> None:
    """A kernel may round equal scores apart; neither that nor topk decides which of them are looked at."""
    strategy = Constrained(num_beams=2, must_include=[[19]])
    (request,) = prepare(FakeModel(scrambled(23)), [(1,)], max_new_tokens=9, end_tokens=[])
    search = strategy.new_search(0, request)
    search.live = 2 * search.live
    totals = torch.full((2, 23), -3.0)
    totals[1, 11] = -2.0
    totals += error * (torch.arange(46).view(2, 23) % 3)
    assert search.candidates(totals, 3).tolist() == [23 + 11, 0, 1, 2, 19, 23, 23 + 1, 23 + 19]


@pytest.mark.parametrize("error", [0.0, 1e-7, -1e-7, 1e-6])
def test_of_equal_beams_the_first_come_first(error: float) -> None:
    """Their order decides between equal candidates of the next step."""
    strategy = Constrained(num_beams=2, must_include=[[19]])
    (request,) = prepare(FakeModel(scrambled(23)), [(1,)], max_new_tokens=9, end_tokens=[])
    search = strategy.new_search(0, request)
    equal = [Hypothesis(tokens=(1,), total=-3.0), Hypothesis(tokens=(2,), total=-3.0 + error)]
    assert search.going_on(equal) == equal
