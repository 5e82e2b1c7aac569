"""LAMBADA: accuracy and perplexity of the last word of a passage."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from minigpt.evaluation.logprobs import logprob, predict
from minigpt.evaluation.perplexity import perplexity_of
from minigpt.evaluation.scoring_windows import BATCH_SIZE, Window

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer


class Example(NamedTuple):
    """A passage whose last word is to be predicted."""

    context: list[int]
    target: list[int]

    def window(self, size: int) -> Window:
        """The example as the model reads it: of what does not fit `size` tokens, the oldest are cut."""
        return Window([*self.context, *self.target][-(size + 1) :], len(self.target))

    def is_cut(self, size: int) -> bool:
        return len(self.context) + len(self.target) > size + 1


@dataclass(frozen=True)
class LastWords:
    """How a model predicted the last words of some passages."""

    n_right: int
    nats: float
    n_examples: int
    n_cut: int  # passages whose beginning did not fit the context

    @property
    def accuracy(self) -> float:
        """The share of last words that greedy decoding would have written, from 0 to 1."""
        return self.n_right / self.n_examples

    @property
    def perplexity(self) -> float:
        """Exp of the mean loss per word, not per token."""
        return perplexity_of(self.nats / self.n_examples)


def last_word_example(text: str, tokenizer: Tokenizer) -> Example:
    """Splits a passage before its last word; the space goes to the word, as GPT-2's tokens have it.

    Context and word are encoded apart, so no token spans the border. No end token comes first.

    Raises:
        ValueError: there is a single word.

    Source: Paperno et al. 2016 (arXiv:1606.06031), and `lambada_openai` and `_encode_pair` of
    https://github.com/EleutherAI/lm-evaluation-harness, which splits at the last space, too.

    >>> from minigpt import Tokenizer
    >>> from minigpt.tokenizer.bpe import BYTES
    >>> tokenizer = Tokenizer(BYTES, [])
    >>> [tokenizer.decode(tokens) for tokens in last_word_example("She sat on the mat", tokenizer)]
    ['She sat on the', ' mat']
    """
    text = text.rstrip()
    context = text.rpartition(" ")[0].rstrip()
    if not context:
        raise ValueError(f"{text!r:.60} is a single word: there is nothing to predict it from")
    return Example(tokenizer.encode(context), tokenizer.encode(text[len(context) :]))


def last_words(
    model: GPT2,
    examples: Iterable[Example],
    batch_size: int = BATCH_SIZE,
    report: Callable[[int], object] = lambda n_tokens: None,
) -> LastWords:
    """Predicts the last word of every example; it is right if each of its tokens is the likeliest.

    `report` is called after every example with the number of tokens read.

    Raises:
        ValueError: there is no example, a word alone exceeds the model's context length, or as for `predict`.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> last_words(model, [last_word_example("Once upon a time", tokenizer)]).accuracy
    1.0
    """
    examples, size = list(examples), model.config.n_positions
    if not examples:
        raise ValueError("there are no examples: no last word to predict")
    longest = max(len(one.target) for one in examples)
    if longest > size:
        raise ValueError(f"a last word of {longest} tokens exceeds the model's context length of {size}")
    n_right, nats = 0, 0.0
    windows = (one.window(size) for one in examples)
    for window, measured in predict(model, windows, batch_size, _logprob_and_hit):
        report(len(window.tokens))
        logprobs, hits = measured.double().unbind(1)
        nats -= float(logprobs.sum())
        n_right += bool(hits.all())
    return LastWords(n_right, nats, len(examples), sum(one.is_cut(size) for one in examples))


def _logprob_and_hit(logits: Tensor, targets: Tensor) -> Tensor:
    """For each target its log-probability, and 1 if it is the likeliest token, else 0: (N, 2)."""
    return torch.stack([logprob(logits, targets), (logits.argmax(-1) == targets).float()], dim=1)
