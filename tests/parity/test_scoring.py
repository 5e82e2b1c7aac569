"""Our figures = those of a plain loop over transformers' model."""

from __future__ import annotations

import json
import math
from functools import cache

import pytest
import torch
from command import call
from reference import TINY, pair
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel, GPT2TokenizerFast

import minigpt
from minigpt import hub
from minigpt.evaluation.lambada import Example, last_word_example, last_words
from minigpt.evaluation.logprobs import document_logprobs, predict, token_logprobs
from minigpt.evaluation.perplexity import document
from minigpt.evaluation.scoring_windows import scoring_windows
from minigpt.score import __main__ as score

WINDOW = TINY["n_positions"]
TOLERANCE = {"rtol": 0, "atol": 1e-4}
TEXT = (
    """The king had three daughters.  The youngest was so beautiful that the sun itself, which has seen so \
much, was astonished whenever it shone in her face.

"Once upon a time," said the fox; and the wolf, who was a fool, believed him: 1,234 geese, café!\n"""
    * 30
)
PASSAGES = [
    "Once upon a time",
    "There was once a poor woodcutter who lived with his wife and his two children in the forest",
    'And the wolf said, "Little pig, little pig, let me come in',
    "The king took her by the hand and led her home, and they lived happily ever after.",
    "two  spaces before the  end",
    "a line\n end",
    "word " * 1100 + "word",  # more than the window
]


def tokens_of(n: int) -> list[int]:
    return torch.randint(61, (n,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.no_grad()
def strided(theirs: GPT2LMHeadModel, tokens: list[int], stride: int) -> Tensor:
    """Every token's log-probability, in windows that read as many tokens as the model can."""
    size, done, found = theirs.config.n_positions, 1, []
    for begin in range(0, len(tokens), stride):
        end = min(begin + size + 1, len(tokens))
        ids = torch.tensor([tokens[begin:end]])
        logprobs = theirs(ids[:, :-1]).logits.double().log_softmax(-1)
        each = logprobs.gather(-1, ids[:, 1:, None])[0, :, 0]
        found.append(each[len(each) - (end - done) :])
        done = end
        if end == len(tokens):
            break
    return torch.cat(found)


@torch.no_grad()
def page(theirs: GPT2LMHeadModel, tokens: list[int], stride: int) -> tuple[float, int]:
    """Nats and tokens in the windows of https://huggingface.co/docs/transformers/perplexity.

    Each window's mean loss is multiplied by the tokens that it is the mean of. The page takes one less of each window
    after the first, whose first label, too, has a token before it.
    """
    ids, size, before, nats, n_tokens = torch.tensor([tokens]), theirs.config.n_positions, 0, 0.0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + size, len(tokens))
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - before)] = -100
        n_valid = int((labels[:, 1:] != -100).sum())
        nats += theirs(ids[:, begin:end], labels=labels).loss.item() * n_valid
        n_tokens += n_valid
        before = end
        if end == len(tokens):
            break
    return nats, n_tokens


@pytest.mark.parametrize("stride", [1, 7, WINDOW // 2, WINDOW])
@pytest.mark.parametrize("n", [2, WINDOW, WINDOW + 1, WINDOW + 2, 200])
def test_every_token_as_in_a_loop_over_the_reference(tmp_path, n, stride):
    ours, theirs = pair(tmp_path)
    found = token_logprobs(ours, tokens_of(n), stride=stride)
    torch.testing.assert_close(found.double(), strided(theirs, tokens_of(n), stride), **TOLERANCE)


@pytest.mark.parametrize("stride", [1, 7, WINDOW // 2, WINDOW - 1])
@pytest.mark.parametrize("n", [WINDOW - 1, WINDOW, 200])
def test_the_recipe_of_the_documentation_of_transformers(tmp_path, n, stride):
    ours, theirs = pair(tmp_path)
    found = [each for _, each in predict(ours, scoring_windows(tokens_of(n), WINDOW - 1, stride))]
    nats, n_tokens = page(theirs, tokens_of(n), stride)
    assert sum(map(len, found)) == n_tokens
    assert -torch.cat(found).double().sum().item() == pytest.approx(nats, rel=1e-5)


@cache
def bundled() -> tuple[GPT2LMHeadModel, GPT2TokenizerFast]:
    folder = hub.bundled()
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def test_the_command_without_end_tokens_is_the_loss_of_a_model_with_labels():
    theirs, tokenizer = bundled()
    ids = torch.tensor([tokenizer(PASSAGES[3])["input_ids"]])
    with torch.no_grad():
        expected = theirs(ids, labels=ids).loss.double().exp().item()
    record = json.loads(call("--json", "--no-end-tokens", "--text", PASSAGES[3], main=score.main).text)
    assert record["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert record["tokens"] == ids.numel() - 1


@pytest.mark.parametrize("stride", [512, 1023])
def test_the_command_with_one_token_less_of_context_is_the_recipe_of_the_documentation(stride):
    theirs, tokenizer = bundled()
    nats, n_tokens = page(theirs, tokenizer(TEXT)["input_ids"], stride)
    flags = ("--json", "--no-end-tokens", "--context", 1023, "--stride", stride)
    record = json.loads(call(*flags, "--text", TEXT, main=score.main).text)
    assert record["tokens"] == n_tokens
    assert record["perplexity"] == pytest.approx(math.exp(nats / n_tokens), rel=1e-5)


@pytest.mark.parametrize("stride", [512, 1024])
def test_a_document_as_the_reference_reads_it(stride):
    model, tokenizer = minigpt.load()
    theirs, their_tokenizer = bundled()
    one = document(TEXT, tokenizer)
    (found,) = document_logprobs(model, [one], stride)
    end = their_tokenizer.eos_token_id
    tokens = [end, *their_tokenizer(TEXT)["input_ids"], end]
    assert len(tokens) > 2 * model.config.n_positions
    expected = strided(theirs, tokens, stride)
    torch.testing.assert_close(found.double(), expected, **TOLERANCE)
    score, nats = one.score(found), -expected.sum()
    assert score.loss == pytest.approx((nats / len(expected)).item(), rel=1e-6)
    assert score.perplexity == pytest.approx((nats / len(expected)).exp().item(), rel=1e-5)
    assert score.word_perplexity == pytest.approx((nats / len(TEXT.split())).exp().item(), rel=1e-5)
    assert score.bits_per_byte == pytest.approx(
        (nats / torch.tensor(2.0).log() / len(TEXT.encode())).item(), rel=1e-6
    )


@torch.no_grad()
def last_word_loop(text: str, theirs: GPT2LMHeadModel, tokenizer: GPT2TokenizerFast) -> tuple[bool, float]:
    """Whether the last word is right, and its nats: as lm-evaluation-harness goes about lambada_openai."""
    context = " ".join(text.split(" ")[:-1]).rstrip()
    target = text[len(context) :]
    whole, n_context = tokenizer(context + target)["input_ids"], len(tokenizer(context)["input_ids"])
    expected = torch.tensor(whole[n_context:])
    read = torch.tensor([whole[-(theirs.config.n_positions + 1) :][:-1]])
    logprobs = theirs(read).logits[0, -len(expected) :].double().log_softmax(-1)
    nats = -logprobs.gather(-1, expected[:, None]).sum().item()
    return bool((logprobs.argmax(-1) == expected).all()), nats


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_last_words_as_in_a_loop_over_the_reference(batch_size):
    model, tokenizer = minigpt.load()
    found = last_words(model, [last_word_example(text, tokenizer) for text in PASSAGES], batch_size)
    expected = [last_word_loop(text, *bundled()) for text in PASSAGES]
    assert {right for right, _ in expected} == {True, False}
    assert found.accuracy == sum(right for right, _ in expected) / len(PASSAGES)
    mean = sum(nats for _, nats in expected) / len(PASSAGES)
    assert found.perplexity == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-4)
    assert found.n_cut == 1


def test_words_of_several_tokens_are_right_only_as_a_whole(tmp_path):
    ours, theirs = pair(tmp_path)
    tokens = tokens_of(20)
    with torch.no_grad():
        for _ in range(3):
            tokens.append(int(theirs(torch.tensor([tokens])).logits[0, -1].argmax()))
    wrong = [*tokens[20:22], (tokens[22] + 1) % 61]
    found = last_words(ours, [Example(tokens[:20], tokens[20:]), Example(tokens[:20], wrong)])
    assert found.accuracy == 0.5
