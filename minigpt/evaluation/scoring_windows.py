"""Cutting a text that exceeds the context length into windows, such that each token is predicted once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from minigpt.json_files import counted

BATCH_SIZE = 4  # windows; more are no faster on a CPU


class Window(NamedTuple):
    """What is read in one go: the last `n_scored` tokens are predicted, each from all before it."""

    tokens: Sequence[int]
    n_scored: int
    ends_text: bool = True


def scoring_windows(
    tokens: Sequence[int], size: int, stride: int | None = None, context: int = 1
) -> Iterator[Window]:
    """Cuts a text into windows such that each token after the first `context` is predicted exactly once.

    Window k begins at token k * stride and reads `size` tokens, or what is left. Of the tokens that follow
    those, it predicts the ones that no window before it has predicted. So token i (counted from 0) is
    predicted from all i tokens before it if i <= size; every later one from at least size - stride + 1 and
    at most `size`. Stride = size: windows that do not overlap. Stride 1: always the fullest context.

    The page below counts the last target as part of the window: its windows are those of `size` - 1. In their mean, it
    counts one token too few of each window after the first.

    Args:
        tokens: the text.
        size: the context length: how many tokens the model reads at once.
        stride: by how much windows move, from 1 to `size`; half of it by default.
        context: how many tokens at the beginning are given, not predicted; at least 1.

    Raises:
        ValueError: the stride or the context is out of range.

    Source: https://huggingface.co/docs/transformers/perplexity

    >>> [(w.tokens, w.n_scored) for w in scoring_windows("abcdefg", size=4, stride=2)]
    [('abcde', 4), ('cdefg', 2)]
    """
    stride = default_stride(size) if stride is None else stride
    if not 1 <= stride <= size:
        raise ValueError(
            f"the stride must be from 1 to the model's context length of {size} tokens, got {stride}"
        )
    if not 1 <= context < len(tokens):
        raise ValueError(
            f"{counted(len(tokens), 'tokens')}, of which {context} given: at least one must be, and one be left"
            " to predict"
        )
    return _windows(tokens, size, stride, context)


def default_stride(size: int) -> int:
    """Half of the context length."""
    return max(1, size // 2)


def _windows(tokens: Sequence[int], size: int, stride: int, done: int) -> Iterator[Window]:
    for start in range(0, len(tokens), stride):
        stop = min(start + size + 1, len(tokens))
        if stop > done:
            yield Window(tokens[start:stop], stop - done, stop == len(tokens))
            done = stop
        if stop == len(tokens):
            return
