"""How well a model predicts a text: log-probabilities of its tokens, and the figures made from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

# torch is imported by the functions that compute, so that `Score` can be had without the wait.
if TYPE_CHECKING:
    from torch import Tensor

    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

# Shapes below:  B rows · T new tokens · N scored tokens of all rows · D n_embd · V vocab_size

AT_ONCE = 512  # tokens whose logits exist at one time: 100 MB with GPT-2's vocabulary
BATCH_SIZE = 4  # windows; more are no faster on a CPU
SORTED = 16  # batches; among so many, windows of like length are read together


@dataclass(frozen=True)
class Score:
    """How many nats a text cost a model, and what they were spent on; the sum of two is that of both texts.

    A figure per token, byte or word is NaN where there are none, and infinite where it exceeds a float.

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
        """Nats per token: the cross-entropy that training lowers."""
        return _ratio(self.nats, self.n_tokens)

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model is undecided; depends on how long tokens are."""
        return exp(self.loss)

    @property
    def word_perplexity(self) -> float:
        """The same per word, words being what white space separates."""
        return exp(_ratio(self.nats, self.n_words))

    @property
    def bits_per_byte(self) -> float:
        """The size of the text, compressed by the model, in bits for each byte: free of the tokenizer."""
        return _ratio(self.nats / math.log(2), self.n_bytes)


def _ratio(amount: float, count: int) -> float:
    return amount / count if count else math.nan


def exp(nats: float) -> float:
    """The perplexity that so many nats stand for; infinite where `math.exp` would raise."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


class Document(NamedTuple):
    """A text as a model reads it, with what it is measured by."""

    tokens: Sequence[int]  # all but the first are predicted
    n_bytes: int
    n_words: int

    def score(self, logprobs: Tensor) -> Score:
        nats = -float(logprobs.double().sum())
        return Score(nats, len(self.tokens) - 1, self.n_bytes, self.n_words)


def document(text: str, tokenizer: Tokenizer) -> Document:
    """A text by itself: end token, text, end token; all but the first are predicted, the bytes are the text's.

    A tokenizer without an end token leaves the text alone: its first token is given, and its bytes do not count.

    Raises:
        ValueError: nothing is left to predict, or the tokenizer lacks a character of the text.

    >>> from minigpt import Tokenizer
    >>> from minigpt.tokenizer.bpe import BYTES
    >>> document("a cat", Tokenizer(BYTES, [], special_tokens={"<|endoftext|>": 256}))
    Document(tokens=[256, 97, 32, 99, 97, 116, 256], n_bytes=5, n_words=2)
    >>> document("a cat", Tokenizer(BYTES, []))
    Document(tokens=[97, 32, 99, 97, 116], n_bytes=4, n_words=2)
    """
    tokens, end = tokenizer.encode(text), tokenizer.end_token
    if not tokens:
        raise ValueError("the text is empty: there is nothing to predict")
    if end is None and len(tokens) == 1:
        raise ValueError(
            f"{text!r} is a single token: this tokenizer has no <|endoftext|> to predict it from, give more"
        )
    bytes_predicted = len(tokenizer.decode_bytes(tokens if end is not None else tokens[1:]))
    whole = tokens if end is None else [end, *tokens, end]
    return Document(whole, bytes_predicted, len(text.split()))


class Window(NamedTuple):
    """What is read in one go: the last `n_scored` tokens are predicted, each from all before it."""

    tokens: Sequence[int]
    n_scored: int
    ends_text: bool = True


def windows(
    tokens: Sequence[int], size: int, stride: int | None = None, context: int = 1
) -> Iterator[Window]:
    """Cuts a text into windows such that each token after the first `context` is predicted exactly once.

    Window k begins at token k * stride and reads `size` tokens, or what is left. Of the tokens that follow
    those, it predicts the ones that no window before it has predicted. So token i (counted from 0) is
    predicted from all i tokens before it if i <= size; every later one from at least size - stride + 1 and
    at most `size`. Stride = size: windows that do not overlap. Stride 1: always the fullest context.

    The page below counts the last target as part of the window: its figures are those of `size` - 1.

    Args:
        tokens: the text.
        size: the model's window, `n_positions`.
        stride: by how much windows move, from 1 to `size`; half of it unless given.
        context: how many tokens at the beginning are given, not predicted; at least 1.

    Raises:
        ValueError: the stride or the context is out of range.

    Source: https://huggingface.co/docs/transformers/perplexity

    >>> [(w.tokens, w.n_scored) for w in windows("abcdefg", size=4, stride=2)]
    [('abcde', 4), ('cdefg', 2)]
    """
    stride = default_stride(size) if stride is None else stride
    if not 1 <= stride <= size:
        raise ValueError(
            f"the stride must be from 1 to the model's context length of {size} tokens, got {stride}"
        )
    if not 1 <= context < len(tokens):
        raise ValueError(
            f"{len(tokens)} tokens, of which {context} are given: at least one must be, and one be left to predict"
        )
    return _windows(tokens, size, stride, context)


def default_stride(size: int) -> int:
    return max(1, size // 2)


def _windows(tokens: Sequence[int], size: int, stride: int, done: int) -> Iterator[Window]:
    for start in range(0, len(tokens), stride):
        stop = min(start + size + 1, len(tokens))
        if stop > done:
            yield Window(tokens[start:stop], stop - done, stop == len(tokens))
            done = stop
        if stop == len(tokens):
            return


Measure = Callable[["Tensor", "Tensor"], "Tensor"]  # logits (N, V) and the tokens that came (N,) -> (N, ...)


def logprob(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target, in nats: (N,)."""
    import torch.nn.functional as F

    return -F.cross_entropy(logits, targets, reduction="none")


def predict(
    model: GPT2, windows: Iterable[Window], batch_size: int = BATCH_SIZE, measure: Measure = logprob
) -> Iterator[tuple[Window, Tensor]]:
    """Reads windows, a batch at a time; each with what `measure` says of its scored tokens, in order.

    Memory is bounded by the batch, however many windows there are; logits are float32. What else is in the
    batch changes nothing but the last bits.

    Raises:
        ValueError: the model is in training mode, the batch empty, or a token none that the model knows.
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout is at work: call model.eval() first")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    windows = iter(windows)
    while some := list(islice(windows, SORTED * batch_size)):
        order = sorted(range(len(some)), key=lambda i: len(some[i].tokens))
        found: dict[int, Tensor] = {}
        turn = 0
        for begin in range(0, len(some), batch_size):
            rows = order[begin : begin + batch_size]
            found |= zip(rows, _predict_batch(model, [some[i] for i in rows], measure), strict=True)
            while turn in found:  # windows of one length come out at once: a progress bar moves
                yield some[turn], found.pop(turn)
                turn += 1


def _predict_batch(model: GPT2, batch: Sequence[Window], measure: Measure) -> tuple[Tensor, ...]:
    import torch

    from minigpt.cache import NoCache

    # Padding on the right: no token sees what comes after it, so there need be no mask.
    tokens = torch.zeros(len(batch), max(len(window.tokens) for window in batch), dtype=torch.long)
    is_scored = torch.zeros_like(tokens, dtype=torch.bool)
    for row, window in enumerate(batch):
        n = len(window.tokens)
        tokens[row, :n] = torch.tensor(window.tokens)
        is_scored[row, n - window.n_scored : n] = True
    _check_ids(tokens, model.config.vocab_size)
    tokens, is_scored = tokens.to(model.device), is_scored[:, 1:].to(model.device)
    with torch.no_grad():
        x = model.hidden_states(tokens[:, :-1], NoCache(model.config))[is_scored]  # (B, T, D) -> (N, D)
        targets = tokens[:, 1:][is_scored]
        parts = zip(torch.split(x, AT_ONCE), torch.split(targets, AT_ONCE), strict=True)
        measured = torch.cat([measure(model.unembed(part).float(), target) for part, target in parts])
    return torch.split(measured.cpu(), [window.n_scored for window in batch])


def _check_ids(tokens: Tensor, vocab_size: int) -> None:
    unknown = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(unknown):
        found = unknown[:5].tolist()
        raise ValueError(f"the model knows ids from 0 to {vocab_size - 1}, the text holds {found}")


def token_logprobs(
    model: GPT2,
    tokens: Sequence[int],
    context: int = 1,
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """The log-probability of each token after the first `context`, in nats: (len(tokens) - context,).

    `windows` says which of the tokens before it each is predicted from.

    Raises:
        ValueError: as for `windows` and `predict`.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> tokens = tokenizer.encode("Once upon a time there was a king")
    >>> token_logprobs(model, tokens).shape[0] == len(tokens) - 1
    True
    """
    import torch

    cut = windows(tokens, model.config.n_positions, stride, context)
    return torch.cat([logprobs for _, logprobs in predict(model, cut, batch_size)])


def document_logprobs(
    model: GPT2,
    documents: Iterable[Document],
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
    report: Callable[[int], object] = lambda n_tokens: None,
) -> Iterator[Tensor]:
    """`token_logprobs` of each document, in order; windows of several are read together.

    `report` is told after every window how many tokens it scored.

    Raises:
        ValueError: as for `windows` and `predict`.
    """
    import torch

    size = model.config.n_positions
    cut = (window for one in documents for window in windows(one.tokens, size, stride))
    parts = []
    for window, logprobs in predict(model, cut, batch_size):
        report(window.n_scored)
        parts.append(logprobs)
        if window.ends_text:
            yield torch.cat(parts)
            parts = []
