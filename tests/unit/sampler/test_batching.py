"""What else is in a batch changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeModel, scrambled, tiny_gpt2

from minigpt.sampler import Beam, BeamSample, Completion, Greedy, Sample, Strategy, generate

STRATEGIES: list[Strategy] = [
    Greedy(),
    Greedy(repetition_penalty=1.8, no_repeat_ngram_size=2, bad_words=[[3], [0, 4]], min_new_tokens=3),
    Sample(seed=1),
    Sample(seed=1, num_return_sequences=3, repetition_penalty=1.8, temperature=1.3, top_p=0.9),
    Beam(num_beams=3, num_return_sequences=3),
    Beam(num_beams=4, repetition_penalty=1.8, no_repeat_ngram_size=2, length_penalty=2.0, min_new_tokens=3),
    BeamSample(num_beams=3, num_return_sequences=2, seed=1),
    BeamSample(num_beams=3, seed=1, repetition_penalty=1.8, temperature=1.3, top_k=9),
]
EACH = pytest.mark.parametrize("strategy", STRATEGIES, ids=range(len(STRATEGIES)))
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [4], [0, 0, 3, 0]]  # unequal, and one of them twice
LIMITS: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": [2, 13, 17]}
TABLE = FakeModel(scrambled(23))
GPT2 = tiny_gpt2()


def outcome(group: list[Completion]) -> list[tuple[list[int], str]]:
    return [(text.tokens, text.finish_reason) for text in group]


@EACH
@pytest.mark.parametrize("model", [TABLE, GPT2], ids=["table", "gpt2"])
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(model: Any, strategy: Strategy) -> None:
    batch = generate(model, PROMPTS, strategy, **LIMITS)
    for prompt, group in zip(PROMPTS, batch, strict=True):
        (alone,) = generate(model, [prompt], strategy, **LIMITS)
        assert outcome(group) == outcome(alone)
        for text, other in zip(group, alone, strict=True):
            assert text.score == pytest.approx(other.score, abs=1e-4)
            assert text.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@EACH
@pytest.mark.parametrize("model", [TABLE, GPT2], ids=["table", "gpt2"])
def test_place_in_the_batch_changes_nothing(model: Any, strategy: Strategy) -> None:
    batch = generate(model, PROMPTS, strategy, **LIMITS)
    backwards = generate(model, PROMPTS[::-1], strategy, **LIMITS)
    assert list(map(outcome, backwards[::-1])) == list(map(outcome, batch))


@EACH
def test_two_equal_prompts_give_equal_texts(strategy: Strategy) -> None:
    batch = generate(GPT2, PROMPTS, strategy, **LIMITS)
    assert outcome(batch[1]) == outcome(batch[3])


@pytest.mark.parametrize(
    "strategy", [Sample(num_return_sequences=6, seed=1), Beam(num_beams=6, num_return_sequences=6)]
)
def test_texts_of_one_prompt_differ(strategy: Strategy) -> None:
    for group in generate(TABLE, PROMPTS, strategy, **LIMITS):
        assert len({tuple(text.tokens) for text in group}) == 6


def test_these_batches_are_uneven() -> None:
    """Texts of one batch end at different times and for different reasons, or else the above would prove little."""
    for model in (TABLE, GPT2):
        batches = [generate(model, PROMPTS, strategy, **LIMITS) for strategy in STRATEGIES]
        found = [text for batch in batches for group in batch for text in group]
        assert len({len(text.tokens) for text in found}) > 2
        assert {text.finish_reason for text in found} == {"eos", "length"}


def test_padding_is_no_repetition() -> None:
    """Pads are of token 0; if they counted, the penalty would keep 0 out of the shorter prompt's text."""
    likes_0 = FakeModel(lambda text: [2.0, 1.0, 0.0])
    strategy = Greedy(repetition_penalty=5.0)
    batch = generate(likes_0, [[1], [2, 2, 2, 2]], strategy, max_new_tokens=1)
    assert [group[0].tokens for group in batch] == [[0], [0]]


@EACH
def test_each_prompt_is_read_once(strategy: Strategy) -> None:
    model = FakeModel(scrambled(23))
    generate(model, PROMPTS, strategy, **LIMITS)
    assert model.reads[0] == (len(PROMPTS), 7)
    assert {width for _, width in model.reads[1:]} == {1}
