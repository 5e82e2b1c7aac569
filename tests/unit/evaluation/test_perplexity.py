"""Loss, perplexity, bits per byte: what the names mean, and which tokens and bytes of a text they count."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from command import END

from minigpt import Tokenizer
from minigpt.evaluation.perplexity import Document, Score, bare_document, document
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

BYTE_TOKENIZER = Tokenizer(BYTES, [], special_tokens={END_OF_TEXT: END})
NO_END = Tokenizer(BYTES, [])


def test_figures_are_what_their_names_say() -> None:
    score = Score(nats=12 * math.log(2), n_tokens=6, n_bytes=24, n_words=3)
    assert score.loss == pytest.approx(2 * math.log(2))
    assert score.perplexity == pytest.approx(4)
    assert score.word_perplexity == pytest.approx(16)
    assert score.bits_per_byte == pytest.approx(0.5)


def test_scores_add_up() -> None:
    assert Score(1.5, 2, 3, 4) + Score(10.0, 20, 30, 40) == Score(11.5, 22, 33, 44)


def test_figures_of_nothing_are_nan() -> None:
    nothing = Score(0.0, 0, 0, 0)
    figures = (nothing.loss, nothing.perplexity, nothing.word_perplexity, nothing.bits_per_byte)
    assert all(map(math.isnan, figures))


def test_a_perplexity_beyond_all_floats_is_infinite() -> None:
    assert Score(1e6, 1, 1, 1).perplexity == math.inf


def test_a_score_can_be_had_without_torch() -> None:
    code = "import sys; from minigpt.evaluation.perplexity import Score; from minigpt.evaluation import bare_document; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------ documents


def test_a_document_lies_between_end_tokens_which_are_no_bytes_of_its() -> None:
    assert document("Hé ho", BYTE_TOKENIZER) == Document([END, *"Hé ho".encode(), END], 6, 2)


def test_without_an_end_token_the_first_token_is_given() -> None:
    assert document("é ho", NO_END) == Document([*"é ho".encode()], 4, 2)
    assert document("I am", NO_END) == Document([*b"I am"], 3, 1)  # "I" is no word that is predicted


def test_an_end_token_written_out_is_text() -> None:
    assert document(END_OF_TEXT, BYTE_TOKENIZER).tokens == [END, *END_OF_TEXT.encode(), END]


@pytest.mark.parametrize(
    ("text", "tokenizer", "words"),
    [
        ("", BYTE_TOKENIZER, "the text is empty"),
        ("", NO_END, "the text is empty"),
        ("a", NO_END, "'a' is a single token: without an end token, nothing predicts it; give more text"),
    ],
)
def test_a_text_with_nothing_to_predict(text: str, tokenizer: Tokenizer, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        document(text, tokenizer)


def test_a_document_s_score_counts_what_was_predicted() -> None:
    one = document("a b", BYTE_TOKENIZER)
    assert one.score(torch.tensor([-1.0, -2.0, -3.0, -4.0])) == Score(10.0, 4, 3, 2)


def test_a_document_without_end_tokens_is_that_of_a_tokenizer_without_one() -> None:
    assert bare_document("é ho", BYTE_TOKENIZER) == document("é ho", NO_END)
