"""Loss, perplexity and bits per byte: what the log-probabilities of a text amount to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Score:
    """The negative log-probability of a text in nats, and its length; the sum of two is that of both texts.

    A metric per token, byte or word is NaN where there are none, and infinite where it exceeds a float.

    >>> score = Score(nats=70.0, n_tokens=20, n_bytes=80, n_words=16) + Score(10.0, 5, 20, 4)
    >>> score.loss, round(score.perplexity, 2), round(score.bits_per_byte, 3)
    (3.2, 24.53, 1.154)
    """

    nats: float
    n_tokens: int
    n_bytes: int
    n_words: int

    def __add__(self, other: Score) -> Score:
        return Score(
            self.nats + other.nats,
            self.n_tokens + other.n_tokens,
            self.n_bytes + other.n_bytes,
            self.n_words + other.n_words,
        )

    @property
    def loss(self) -> float:
        """Nats per token: the cross-entropy that training minimises."""
        return _ratio(self.nats, self.n_tokens)

    @property
    def perplexity(self) -> float:
        """exp(loss), per token: comparable only across models with the same tokenizer."""
        return perplexity_of(self.loss)

    @property
    def word_perplexity(self) -> float:
        """Perplexity per word between white space: comparable across tokenizers."""
        return perplexity_of(_ratio(self.nats, self.n_words))

    @property
    def bits_per_byte(self) -> float:
        """Bits for each byte of the text, were it compressed by the model: comparable across tokenizers."""
        return _ratio(self.nats / math.log(2), self.n_bytes)


def _ratio(amount: float, count: int) -> float:
    return amount / count if count else math.nan


def perplexity_of(loss: float) -> float:
    """exp(loss); infinite where `math.exp` would raise.

    >>> perplexity_of(0.0), perplexity_of(1000.0)
    (1.0, inf)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class Document(NamedTuple):
    """The tokens of a text as a model reads them, and the bytes and words that are predicted."""

    tokens: Sequence[int]  # all but the first are predicted
    n_bytes: int
    n_words: int

    def score(self, logprobs: Tensor) -> Score:
        """The score by the log-probability of each predicted token: (len(tokens) - 1,)."""
        nats = -float(logprobs.double().sum())
        return Score(nats, len(self.tokens) - 1, self.n_bytes, self.n_words)


def document(text: str, tokenizer: Tokenizer) -> Document:
    """A text between end-of-text tokens; all tokens but the first are predicted, the bytes are the text's.

    With a tokenizer that has no end token, as `bare_document`.

    Raises:
        ValueError: nothing is left to predict, or the tokenizer lacks a character of the text.

    >>> from minigpt import Tokenizer
    >>> from minigpt.tokenizer.bpe import BYTES
    >>> document("a cat", Tokenizer(BYTES, [], special_tokens={"<|endoftext|>": 256}))
    Document(tokens=[256, 97, 32, 99, 97, 116, 256], n_bytes=5, n_words=2)
    """
    end = tokenizer.end_token
    if end is None:
        return bare_document(text, tokenizer)
    tokens = _encoded(text, tokenizer)
    return Document([end, *tokens, end], len(tokenizer.decode_bytes(tokens)), len(text.split()))


def bare_document(text: str, tokenizer: Tokenizer) -> Document:
    """A text without end-of-text tokens: its first token is given, not predicted, and what it spells does not count.

    Raises:
        ValueError: nothing is left to predict, or the tokenizer lacks a character of the text.

    >>> from minigpt import Tokenizer
    >>> from minigpt.tokenizer.bpe import BYTES
    >>> bare_document("a cat", Tokenizer(BYTES, []))
    Document(tokens=[97, 32, 99, 97, 116], n_bytes=4, n_words=1)
    """
    tokens = _encoded(text, tokenizer)
    if len(tokens) == 1:
        raise ValueError(
            f"{text!r} is a single token: without an end token, nothing predicts it; give more text"
        )
    predicted = tokenizer.decode_bytes(tokens[1:])
    return Document(tokens, len(predicted), len(predicted.decode(errors="replace").split()))


def _encoded(text: str, tokenizer: Tokenizer) -> list[int]:
    tokens = tokenizer.encode(text)
    if not tokens:
        raise ValueError("the text is empty: there is nothing to predict")
    return tokens
