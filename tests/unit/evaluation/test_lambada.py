"""LAMBADA: what the last word is, and when it counts as predicted."""

from __future__ import annotations

import pytest
from command import END, reciter
from fakes import tiny_gpt2
from scoring import WINDOW, alone, random_tokens

from minigpt import GPT2, Tokenizer
from minigpt.evaluation.lambada import Example, last_word_example, last_words
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

BYTE_TOKENIZER = Tokenizer(BYTES, [], special_tokens={END_OF_TEXT: END})
NO_END = Tokenizer(BYTES, [])


@pytest.fixture(scope="module")
def model() -> GPT2:
    return tiny_gpt2(n_positions=WINDOW)


@pytest.mark.parametrize(
    ("text", "context", "word"),
    [
        ("She sat on the mat", "She sat on the", " mat"),
        ("She sat on the mat.\n", "She sat on the", " mat."),
        ("two  spaces", "two", "  spaces"),
        ("a line\n end", "a line", "\n end"),
    ],
)
def test_the_space_goes_to_the_last_word(text: str, context: str, word: str) -> None:
    assert last_word_example(text, NO_END) == Example([*context.encode()], [*word.encode()])


@pytest.mark.parametrize("text", ["word", " word", "", "word "])
def test_a_single_word_cannot_be_predicted(text: str) -> None:
    with pytest.raises(ValueError, match="is a single word: there is nothing to predict it from"):
        last_word_example(text, NO_END)


def test_who_knows_the_text_knows_its_last_word() -> None:
    story = "A cat sat on the mat"
    found = last_words(reciter(story).eval(), [last_word_example(story, BYTE_TOKENIZER)])
    assert (found.accuracy, found.n_examples, found.n_cut) == (1.0, 1, 0)
    assert found.perplexity == pytest.approx(1, abs=1e-3)


def test_one_wrong_token_makes_a_word_wrong() -> None:
    knows = reciter("A cat sat on the mat").eval()
    examples = [
        last_word_example(f"A cat sat on the {word}", BYTE_TOKENIZER) for word in ("mat", "mad", "cat", "man")
    ]
    assert last_words(knows, examples).accuracy == 0.25


def test_what_does_not_fit_is_cut_on_the_left_and_counted(model: GPT2) -> None:
    tokens = random_tokens(20)
    fitting, cut = Example(tokens[9:17], tokens[17:18]), Example(tokens[:17], tokens[17:18])
    found = last_words(model, [fitting, cut])
    assert found.n_cut == 1
    assert found.nats == pytest.approx(-2 * alone(model, tokens, 17, WINDOW), rel=1e-5)


def test_a_word_may_fill_the_window_but_not_exceed_it(model: GPT2) -> None:
    assert last_words(model, [Example([1], random_tokens(WINDOW))]).n_examples == 1
    with pytest.raises(
        ValueError, match=f"a last word of {WINDOW + 1} tokens exceeds the model's context length of"
    ):
        last_words(model, [Example([1], random_tokens(WINDOW + 1))])


def test_no_examples(model: GPT2) -> None:
    with pytest.raises(ValueError, match="there are no examples"):
        last_words(model, [])


def test_progress_counts_every_token_that_is_read(model: GPT2) -> None:
    reported: list[int] = []
    last_words(model, [Example([1, 2], [3]), Example([1] * 20, [3])], report=reported.append)
    assert sorted(reported) == [3, WINDOW + 1]
