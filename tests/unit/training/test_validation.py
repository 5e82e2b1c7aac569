"""Validation: the plain sum over all windows of held-out text."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from learning import new_model, numbers

from minigpt import GPT2, Tokenizer
from minigpt.data.token_file import TokenFile
from minigpt.evaluation.perplexity import Score
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.byte_level import byte_tokenizer, character_tokenizer
from minigpt.training.distributed import Processes
from minigpt.training.validation import Validation

CPU = torch.device("cpu")


def judged(
    tokenizer: Tokenizer, ids: list[int], length: int, most: int = 10**6, batch_size: int = 3
) -> tuple[GPT2, Validation, Score]:
    tokens = TokenFile(Path(), np.array(ids, np.uint16), np.array([[0, len(ids)]]), np.zeros(1), "")
    validation = Validation(tokens, length, most, tokenizer)
    model = new_model(vocab_size=tokenizer.vocab_size, n_positions=length).train()
    score = validation.score(model, batch_size, CPU, Processes(), nullcontext)
    assert model.training
    return model.eval(), validation, score


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_validation_is_the_plain_sum_over_all_its_windows(batch_size: int) -> None:
    text = "A täle of 😀 and wörds, told twice over."
    tokenizer = byte_tokenizer()
    ids = [256, *tokenizer.encode(text), 256, *tokenizer.encode(text)]
    model, validation, score = judged(tokenizer, ids, 10, batch_size=batch_size)
    n = (len(ids) - 1) // 10
    nats = 0.0
    for i in range(n):
        logits = model(torch.tensor([ids[10 * i : 10 * i + 10]]))[0]
        nats += F.cross_entropy(logits, torch.tensor(ids[10 * i + 1 : 10 * i + 11]), reduction="sum").item()
    assert validation.windows.tolist() == [ids[10 * i : 10 * i + 11] for i in range(n)]
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.n_tokens == 10 * n
    assert score.n_bytes == sum(token != 256 for token in ids[1 : 10 * n + 1])
    assert score.loss == pytest.approx(nats / (10 * n))
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / score.n_bytes)


def test_bytes_are_those_of_the_text_whatever_it_is_cut_into() -> None:
    text = "Köln, Ærø und 😀: naïve façades. " * 3
    joined = Tokenizer({**BYTES, "Ġu": 256, "nd": 257, "<|endoftext|>": 258}, [("Ġ", "u"), ("n", "d")])
    for tokenizer in (byte_tokenizer(), character_tokenizer([text]), joined, Tokenizer.from_pretrained()):
        ids = [tokenizer.end_token, *tokenizer.encode(text)]
        _, validation, score = judged(tokenizer, ids, len(ids) - 1)
        assert score.n_bytes == validation.n_bytes == len(text.encode())
        assert score.n_tokens == len(ids) - 1


def test_a_text_shorter_than_a_window_is_judged_whole() -> None:
    _, validation, score = judged(byte_tokenizer(), [256, 1, 2, 3], 16)
    assert validation.windows.tolist() == [[256, 1, 2, 3]]
    assert score.n_tokens == 3


def test_a_single_token_predicts_nothing() -> None:
    with pytest.raises(ValueError, match="the validation text is a single token: hold out more"):
        judged(byte_tokenizer(), [256], 16)


@given(st.integers(2, 257), st.integers(1, 20), st.integers(1, 400))
def test_a_long_text_is_read_at_equal_distances(n: int, length: int, most: int) -> None:
    tokens = replace(numbers(n), ids=np.arange(n))  # so that windows are told apart
    validation = Validation(tokens, length, most, byte_tokenizer())
    length = min(length, n - 1)
    whole = [tokens.ids[i : i + length + 1].tolist() for i in range(0, n - length, length)]
    rows = validation.windows.tolist()
    assert [row for row in whole if row in rows] == rows
    assert len(rows) == max(1, min(len(whole), most // length))
    assert rows[0] == whole[0]
    assert len(rows) == 1 or rows[-1] == whole[-1]
    assert validation.n_tokens == length * len(rows)
