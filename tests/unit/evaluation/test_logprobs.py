"""The log-probability of every token: in windows and batches as alone."""

from __future__ import annotations

import pytest
import torch
from fakes import tiny_gpt2
from scoring import WINDOW, alone, close, random_tokens

from minigpt import GPT2
from minigpt.evaluation.logprobs import AT_ONCE, document_logprobs, predict, token_logprobs
from minigpt.evaluation.perplexity import Document
from minigpt.evaluation.scoring_windows import scoring_windows


@pytest.fixture(scope="module")
def model() -> GPT2:
    return tiny_gpt2(n_positions=WINDOW)


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
    reported: list[int] = []
    list(document_logprobs(model, [Document(random_tokens(30), 1, 1)] * 2, report=reported.append))
    assert len(reported) > 2
    assert sum(reported) == 58


def test_windows_of_one_length_come_out_batch_by_batch(model: GPT2) -> None:
    passes: list[object] = []
    hook = model.blocks[0].register_forward_hook(lambda *call: passes.append(call))
    cut = scoring_windows(random_tokens(8 * WINDOW + 1), WINDOW, WINDOW)
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
    with pytest.raises(ValueError, match=rf"ids from 0 to 22, the text has \[{unknown}\]: use"):
        token_logprobs(model, [1, unknown])


def test_no_gradient_is_kept(model: GPT2) -> None:
    assert not token_logprobs(model, [1, 2]).requires_grad


def test_a_shorter_context_is_that_of_a_shorter_model(model: GPT2) -> None:
    tokens = random_tokens(30)
    (found,) = document_logprobs(model, [Document(tokens, 1, 1)], stride=2, context_length=4)
    close(found, [alone(model, tokens, i, i if i <= 4 else 3 + (i - 3) % 2) for i in range(1, 30)])
