"""How well a model predicts a text: who is predicted from what, and the figures made from that."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from command import END, reciter
from fakes import tiny_gpt2
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from minigpt import GPT2, Tokenizer
from minigpt.evaluation.lambada import Example, example, last_words
from minigpt.evaluation.perplexity import (
    AT_ONCE,
    Document,
    Score,
    document,
    document_logprobs,
    predict,
    token_logprobs,
    windows,
)
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

WINDOW = 8
BYTE_TOKENIZER = Tokenizer(BYTES, [], special_tokens={END_OF_TEXT: END})
NO_END = Tokenizer(BYTES, [])


@pytest.fixture(scope="module")
def model() -> GPT2:
    return tiny_gpt2(n_positions=WINDOW)


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(23, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def alone(model: GPT2, tokens: list[int], i: int, reach: int) -> float:
    """The log-probability of token i from the `reach` tokens before it, by the book."""
    context = torch.tensor([tokens[max(0, i - reach) : i]])
    return model(context)[0, -1].double().log_softmax(-1)[tokens[i]].item()


def close(found: Tensor, expected: list[float] | Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        found.double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance
    )


# ------------------------------------------------------------------------------ figures


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
    code = "import sys; from minigpt.evaluation.perplexity import Score; import minigpt.evaluation.lambada; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------ documents


def test_a_document_lies_between_end_tokens_which_are_no_bytes_of_its() -> None:
    assert document("Hé ho", BYTE_TOKENIZER) == Document([END, *"Hé ho".encode(), END], 6, 2)


def test_without_an_end_token_the_first_token_is_given() -> None:
    assert document("é ho", NO_END) == Document([*"é ho".encode()], 4, 2)


def test_an_end_token_written_out_is_text() -> None:
    assert document(END_OF_TEXT, BYTE_TOKENIZER).tokens == [END, *END_OF_TEXT.encode(), END]


@pytest.mark.parametrize(
    ("text", "tokenizer", "words"),
    [
        ("", BYTE_TOKENIZER, "the text is empty"),
        ("", NO_END, "the text is empty"),
        ("a", NO_END, r"'a' is a single token.*no <\|endoftext\|> to predict it from"),
    ],
)
def test_a_text_with_nothing_to_predict(text: str, tokenizer: Tokenizer, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        document(text, tokenizer)


def test_a_document_s_score_counts_what_was_predicted() -> None:
    one = document("a b", BYTE_TOKENIZER)
    assert one.score(torch.tensor([-1.0, -2.0, -3.0, -4.0])) == Score(10.0, 4, 3, 2)


# ------------------------------------------------------------------------------ windows


@given(st.data())
def test_every_token_is_predicted_once_and_from_enough(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60), "tokens")
    size = data.draw(st.integers(1, 20), "window")
    stride = data.draw(st.integers(1, size), "stride")
    context = data.draw(st.integers(1, n - 1), "context")
    predicted: list[int] = []
    found = list(windows(range(n), size, stride, context))
    for window in found:
        first = window.tokens[0]
        assert first % stride == 0
        assert len(window.tokens) <= size + 1
        for i in window.tokens[-window.n_scored :]:
            assert i <= size or size - stride + 1 <= i - first <= size
            assert i > size or first == 0
        predicted.extend(window.tokens[-window.n_scored :])
    assert predicted == list(range(context, n))
    assert [window.ends_text for window in found] == [False] * (len(found) - 1) + [True]


def test_windows_move_by_half_their_size_unless_told() -> None:
    assert list(windows(range(99), 8)) == list(windows(range(99), 8, 4))
    assert list(windows(range(9), 1)) == list(windows(range(9), 1, 1))


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_beyond_the_window_would_skip_tokens(stride: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to the model's context length of 8 tokens, got {stride}"):
        windows(range(99), 8, stride)


@pytest.mark.parametrize(("n", "context"), [(1, 1), (5, 5), (5, 0), (0, 1)])
def test_something_is_given_and_something_left_to_predict(n: int, context: int) -> None:
    with pytest.raises(ValueError, match=f"{n} tokens, of which {context} are given"):
        windows(range(n), 8, 4, context)


# ------------------------------------------------------------------------------ log-probabilities


def test_stride_1_is_every_token_alone_with_its_full_window(model: GPT2) -> None:
    tokens = random_tokens(30)
    expected = [alone(model, tokens, i, WINDOW) for i in range(1, 30)]
    close(token_logprobs(model, tokens, stride=1), expected)


@pytest.mark.parametrize("n", [2, WINDOW, WINDOW + 1, WINDOW + 2, 30, 4 * WINDOW + 1])
def test_the_largest_stride_is_windows_that_do_not_overlap(model: GPT2, n: int) -> None:
    tokens = random_tokens(n)
    expected = [alone(model, tokens, i, (i - 1) % WINDOW + 1) for i in range(1, n)]
    close(token_logprobs(model, tokens, stride=WINDOW), expected)


def test_a_larger_context_leaves_out_and_changes_nothing_else(model: GPT2) -> None:
    tokens = random_tokens(30)
    for context in (2, WINDOW, 15, 29):
        close(token_logprobs(model, tokens, context), token_logprobs(model, tokens)[context - 1 :])


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_in_a_batch_as_alone(model: GPT2, batch_size: int) -> None:
    documents = [Document(random_tokens(n, seed=n), n, 1) for n in (30, 2, 9, 17, 5, 30, 3)]
    together = list(document_logprobs(model, documents, stride=3, batch_size=batch_size))
    for one, found in zip(documents, together, strict=True):
        close(found, token_logprobs(model, one.tokens, stride=3, batch_size=1))


def test_more_windows_than_are_sorted_at_once_stay_in_order(model: GPT2) -> None:
    documents = [Document(random_tokens(2 + n % 13, seed=n), n, 1) for n in range(60)]
    found = list(document_logprobs(model, documents, batch_size=1))
    assert len(found) == 60
    for one, logprobs in zip(documents, found, strict=True):
        close(logprobs, token_logprobs(model, one.tokens))


def test_the_whole_is_the_sum_of_its_parts(model: GPT2) -> None:
    documents = [Document(random_tokens(n), n - 2, 3) for n in (20, 7)]
    scores = [
        one.score(found) for one, found in zip(documents, document_logprobs(model, documents), strict=True)
    ]
    whole = scores[0] + scores[1]
    nats = -sum(token_logprobs(model, one.tokens).sum().item() for one in documents)
    assert whole.nats == pytest.approx(nats, rel=1e-6)
    assert (whole.n_tokens, whole.n_bytes, whole.n_words) == (19 + 6, 18 + 5, 6)


def test_more_scored_tokens_than_logits_at_once() -> None:
    wide = tiny_gpt2(n_positions=AT_ONCE + 100)
    tokens = random_tokens(AT_ONCE + 101)
    with torch.no_grad():
        expected = wide(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
    close(token_logprobs(wide, tokens), expected[range(AT_ONCE + 100), tokens[1:]])


def test_progress_counts_every_scored_token(model: GPT2) -> None:
    told: list[int] = []
    list(document_logprobs(model, [Document(random_tokens(30), 1, 1)] * 2, report=told.append))
    assert len(told) > 2
    assert sum(told) == 58


def test_windows_of_one_length_come_out_batch_by_batch(model: GPT2) -> None:
    passes: list[object] = []
    hook = model.blocks[0].register_forward_hook(lambda *call: passes.append(call))
    cut = windows(random_tokens(8 * WINDOW + 1), WINDOW, WINDOW)
    assert [len(passes) for _ in predict(model, cut, batch_size=2)] == [1, 1, 2, 2, 3, 3, 4, 4]
    hook.remove()


def test_half_precision_is_summed_in_full() -> None:
    half = tiny_gpt2(n_positions=WINDOW).to(torch.bfloat16)
    assert token_logprobs(half, random_tokens(9)).dtype == torch.float32


def test_dropout_would_make_the_figures_random() -> None:
    with pytest.raises(ValueError, match=r"training mode.*model\.eval"):
        token_logprobs(tiny_gpt2().train(), [1, 2])


def test_an_empty_batch_would_score_nothing(model: GPT2) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        token_logprobs(model, [1, 2], batch_size=0)


@pytest.mark.parametrize("unknown", [-1, 23])
def test_a_token_that_the_model_does_not_know(model: GPT2, unknown: int) -> None:
    with pytest.raises(ValueError, match=rf"ids from 0 to 22, the text holds \[{unknown}\]"):
        token_logprobs(model, [1, unknown])


def test_no_gradient_is_kept(model: GPT2) -> None:
    assert not token_logprobs(model, [1, 2]).requires_grad


# ------------------------------------------------------------------------------ last words


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
    assert example(text, NO_END) == Example([*context.encode()], [*word.encode()])


@pytest.mark.parametrize("text", ["word", " word", "", "word "])
def test_a_single_word_cannot_be_predicted(text: str) -> None:
    with pytest.raises(ValueError, match="is a single word: there is nothing to predict it from"):
        example(text, NO_END)


def test_who_knows_the_text_knows_its_last_word() -> None:
    story = "A cat sat on the mat"
    found = last_words(reciter(story).eval(), [example(story, BYTE_TOKENIZER)])
    assert (found.accuracy, found.n_examples, found.n_cut) == (1.0, 1, 0)
    assert found.perplexity == pytest.approx(1, abs=1e-3)


def test_one_wrong_token_makes_a_word_wrong() -> None:
    knows = reciter("A cat sat on the mat").eval()
    examples = [example(f"A cat sat on the {word}", BYTE_TOKENIZER) for word in ("mat", "mad", "cat", "man")]
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
    told: list[int] = []
    last_words(model, [Example([1, 2], [3]), Example([1] * 20, [3])], report=told.append)
    assert sorted(told) == [3, WINDOW + 1]
