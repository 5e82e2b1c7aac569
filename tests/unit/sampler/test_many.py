"""Many prompts: each row is answered once, with the text that it has alone, whatever the others are."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from command import END, tiny
from strategies import as_it_comes

from minigpt import InvalidRequest, Tokenizer
from minigpt.data.prompt_rows import PromptRow
from minigpt.sampler import Beam, Completion, Greedy, PromptTooLong, Sample, Strategy, generate
from minigpt.sampler.api import run
from minigpt.sampler.batches import READ_AHEAD
from minigpt.sampler.events import Finished
from minigpt.sampler.many import Answer, complete_many
from minigpt.sampler.registry import names
from minigpt.sampler.requests import prepare
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

LARGE = {"n_layer": 2, "n_embd": 16, "n_head": 2, "initializer_range": 0.5}
MODEL = tiny(**LARGE).eval()
OTHER = tiny(**LARGE, activation_function="relu").eval()
TOKENIZER = Tokenizer({**BYTES, "ĀĀ": 256}, [("Ā", "Ā")], special_tokens={END_OF_TEXT: END})
WORDS = ["Once upon a time", "Once upon a", "The king", "x", "Once upon a time", "A mouse ran", "Once"]
ROWS = [
    PromptRow(f"row {i}", WORDS[i % len(WORDS)], 1 + 5 * i % 14, None if i % 3 else i, {"n": i})
    for i in range(17)
]
Texts = list[tuple[list[int], str]]
strategy = partial(as_it_comes, second=OTHER)


def texts(completions: Any) -> Texts:
    return [(completion.tokens, completion.finish_reason) for completion in completions]


def alone(row: PromptRow, how: Strategy, **limits: Any) -> list[Completion]:
    """A row's completions without any other row, by the engine of `generate`."""
    tokens = TOKENIZER.encode(row.prompt) or [END]
    (request,) = prepare(MODEL, [tokens], **{"max_new_tokens": row.max_new_tokens, **limits})
    events = run(MODEL, [replace(request, id=row.id, seed=row.seed)], how)
    (found,) = [event.completions for event in events if isinstance(event, Finished)]
    return found


def many(rows: Any, how: Strategy | None = None, **options: Any) -> dict[str, Answer[PromptRow]]:
    answers = list(complete_many(MODEL, TOKENIZER, rows, how, **options))
    by_id = {answer.row.id: answer for answer in answers}
    assert len(by_id) == len(answers)
    return by_id


@pytest.mark.parametrize("rows_at_once", [1, 3, None])
@pytest.mark.parametrize("name", names())
def test_every_row_is_answered_once_with_the_text_that_it_has_alone(
    name: str, rows_at_once: int | None
) -> None:
    shuffled = random.Random(name).sample(ROWS, len(ROWS))
    answers = many(shuffled, strategy(name), rows_at_once=rows_at_once)
    assert answers.keys() == {row.id for row in ROWS}
    for row in ROWS:
        answer, expected = answers[row.id], alone(row, strategy(name))
        assert answer.row is row
        assert answer.error is None
        assert texts(answer.completions) == texts(expected)
        for text, other in zip(answer.completions, expected, strict=True):
            assert text.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert text.score == pytest.approx(other.score, abs=1e-4)


def test_random_numbers_follow_from_the_seed_and_the_id() -> None:
    rows = [
        PromptRow("a", "Once"),
        PromptRow("b", "Once"),
        PromptRow("c", "Once", seed=1),
        PromptRow("d", "Once", seed=7),
    ]
    drawn = {row_id: answer.completions[0].tokens for row_id, answer in many(rows, Sample(seed=7)).items()}
    assert len({tuple(tokens) for tokens in drawn.values()}) == 4
    as_c = many([PromptRow("c", "Once")], Sample(seed=1))
    assert as_c["c"].completions[0].tokens == drawn["c"]
    assert many(rows[3:], Sample(seed=8))["d"].completions[0].tokens == drawn["d"]


@pytest.mark.parametrize("how", [Greedy(), Sample(seed=1, num_return_sequences=2), strategy("beam")])
def test_a_row_that_fails_does_not_disturb_the_others(how: Strategy) -> None:
    def none_after_the(logits: Any, tokens: Any) -> Any:
        return logits - float("inf") if tokens[0, 0] == ord("T") else logits

    bad = [PromptRow("long", "x" * 40), PromptRow("new", "x", max_new_tokens=100)]
    masked = replace(how, processors=(none_after_the,))
    answers = many([*bad, *ROWS], masked, rows_at_once=4)
    for row in ROWS:
        if row.prompt.startswith("The "):
            assert answers[row.id].completions == []
            with pytest.raises(InvalidRequest, match="no token is left to choose after 8 prompt tokens"):
                raise answers[row.id].error or AssertionError
        else:
            assert texts(answers[row.id].completions) == texts(alone(row, how))
    for row in bad:
        error = answers[row.id].error
        assert isinstance(error, PromptTooLong)
        assert answers[row.id].request is None


def test_rows_are_read_as_they_are_needed() -> None:
    read = 0

    def endless() -> Iterator[PromptRow]:
        nonlocal read
        while True:
            read += 1
            row = PromptRow(str(read), "x" if read % 2 else "x" * 40, 1)
            kept.append(weakref.ref(row))
            yield row

    kept: list[weakref.ref[PromptRow]] = []
    answers = complete_many(MODEL, TOKENIZER, endless())
    for _ in range(3000):
        next(answers)
    assert read < 3000 + 2 * READ_AHEAD
    gc.collect()
    assert sum(row() is not None for row in kept) < 2 * READ_AHEAD


def test_limits_and_texts_are_those_of_complete() -> None:
    row = PromptRow("a", "Once")
    (plain,) = many([row], max_new_tokens=9)["a"].completions
    assert (len(plain.tokens), plain.text) == (9, TOKENIZER.decode(plain.tokens))
    stop = TOKENIZER.decode(plain.tokens[3:4])
    (stopped,) = many([row], stop=[stop])["a"].completions
    assert (stopped.finish_reason, stopped.text) == ("stop", (plain.text or "").partition(stop)[0])
    (slid,) = many([row], overflow="slide", max_new_tokens=60)["a"].completions
    ((by_hand,),) = generate(MODEL, [TOKENIZER.encode("Once")], overflow="slide", max_new_tokens=60)
    assert slid.tokens == by_hand.tokens
    assert len(many([row], top_logprobs=3, max_new_tokens=2)["a"].completions[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows_at_once": 0}, "rows_at_once must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_tokens": 3}, "max_new_tokens"),
        ({"stride": 3}, "it is for slide"),
        ({"stop": [""]}, r"^a stop string must not be empty, got \[''\]: every text"),
        ({"stop": 5}, "stop must be a list of strings, got 5"),
        ({"strategy": "greedy"}, "is a name"),
        ({"strategy": strategy("speculative", draft=tiny(vocab_size=600))}, "must share one vocabulary"),
    ],
)
def test_what_is_wrong_for_all_rows_is_refused_before_any(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        complete_many(MODEL, TOKENIZER, ROWS, **wrong)


def test_what_is_no_row_is_refused_once_those_before_it_are_answered() -> None:
    message = r'^rows are an iterable of minigpt.PromptRow\(id="1", prompt="..."\), got \'The king\'$'
    for rows in ("The king", ["The king"]):
        with pytest.raises(InvalidRequest, match=message):
            list(complete_many(MODEL, TOKENIZER, rows))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"^rows are an iterable .* got 5$"):
        complete_many(MODEL, TOKENIZER, 5)  # type: ignore[arg-type]
    for how in (Greedy(), Beam(num_beams=2)):  # by continuous batching, and in batches
        answers = complete_many(MODEL, TOKENIZER, [ROWS[0], "The king"], how)  # type: ignore[list-item]
        assert next(answers).row is ROWS[0]
        with pytest.raises(InvalidRequest, match="got 'The king'"):
            next(answers)


def test_a_tokenizer_comes_second() -> None:
    with pytest.raises(InvalidRequest, match=r"complete_many\(\) takes a tokenizer second, got 'gpt2'"):
        complete_many(MODEL, "gpt2", ROWS)  # type: ignore[arg-type]
