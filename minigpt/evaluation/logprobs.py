"""The log-probability of every token of a text under a model, in batches of windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.cache import NoCache
from minigpt.evaluation.perplexity import Document
from minigpt.evaluation.scoring_windows import BATCH_SIZE, Window, scoring_windows
from minigpt.options import check_count

if TYPE_CHECKING:
    from minigpt.model import GPT2

# Shapes below:  B rows · T new tokens · N scored tokens of all rows · D n_embd · V vocab_size

AT_ONCE = 512  # tokens whose logits exist at one time: 100 MB with GPT-2's vocabulary
SORTED = 16  # batches; among so many, windows of like length are read together

Measure = Callable[[Tensor, Tensor], Tensor]  # logits (N, V) and the tokens that came (N,) -> (N, ...)


def logprob(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target, in nats: (N,)."""
    return -F.cross_entropy(logits, targets, reduction="none")


def predict(
    model: GPT2, windows: Iterable[Window], batch_size: int = BATCH_SIZE, measure: Measure = logprob
) -> Iterator[tuple[Window, Tensor]]:
    """Reads windows, a batch at a time; yields each with what `measure` makes of its scored tokens, in order.

    Memory is bounded by the batch, however many windows there are; logits are float32. What else is in the
    batch changes the last bits at most.

    Raises:
        ValueError: the model is in training mode, the batch empty, or a token id is beyond the vocabulary.
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout is at work: call model.eval() first")
    check_count("batch_size", batch_size)
    windows = iter(windows)
    while some := list(islice(windows, SORTED * batch_size)):
        order = sorted(range(len(some)), key=lambda i: len(some[i].tokens))
        done: dict[int, Tensor] = {}
        turn = 0
        for begin in range(0, len(some), batch_size):
            rows = order[begin : begin + batch_size]
            done |= zip(rows, _predict_batch(model, [some[i] for i in rows], measure), strict=True)
            while turn in done:  # windows of one length come out at once: a progress bar moves
                yield some[turn], done.pop(turn)
                turn += 1


def _predict_batch(model: GPT2, batch: Sequence[Window], measure: Measure) -> tuple[Tensor, ...]:
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
        raise ValueError(
            f"the model has ids from 0 to {vocab_size - 1}, the text has {unknown[:5].tolist()}: use the model's tokenizer"
        )


def token_logprobs(
    model: GPT2,
    tokens: Sequence[int],
    context: int = 1,
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """The log-probability of each token after the first `context`, in nats: (len(tokens) - context,).

    `scoring_windows` says which of the tokens before it each is predicted from.

    Raises:
        ValueError: as for `scoring_windows` and `predict`.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> tokens = tokenizer.encode("Once upon a time there was a king")
    >>> token_logprobs(model, tokens).shape[0] == len(tokens) - 1
    True
    """
    cut = scoring_windows(tokens, model.config.n_positions, stride, context)
    return torch.cat([logprobs for _, logprobs in predict(model, cut, batch_size)])


def document_logprobs(
    model: GPT2,
    documents: Iterable[Document],
    stride: int | None = None,
    batch_size: int = BATCH_SIZE,
    context_length: int | None = None,
    report: Callable[[int], object] = lambda n_tokens: None,
) -> Iterator[Tensor]:
    """`token_logprobs` of each document, in order; windows of several are read together.

    Args:
        model: in evaluation mode.
        documents: the texts.
        stride: by how many tokens windows move.
        batch_size: windows read at once.
        context_length: how many tokens to read at once; the model's by default.
        report: is called after every window with the number of tokens that it scored.

    Raises:
        ValueError: as for `scoring_windows` and `predict`.
    """
    size = model.config.n_positions if context_length is None else context_length
    cut = (window for one in documents for window in scoring_windows(one.tokens, size, stride))
    parts = []
    for window, logprobs in predict(model, cut, batch_size):
        report(window.n_scored)
        parts.append(logprobs)
        if window.ends_text:
            yield torch.cat(parts)
            parts = []
