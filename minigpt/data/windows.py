"""In which order training reads: documents shuffled, joined, and cut into full windows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minigpt.data.token_file import TokenFile
from minigpt.json_files import counted


class CircularTokens:
    """Documents joined end to end and the last to the first, read without being copied together.

    Args:
        ids: where they lie: (tokens,).
        spans: which stretches of it, in which order: (documents, 2).

    >>> CircularTokens(np.arange(10), np.array([[4, 10], [0, 4]])).read(3, 9)
    array([7, 8, 9, 0, 1, 2, 3, 4, 5])
    """

    def __init__(self, ids: np.ndarray, spans: np.ndarray) -> None:
        self._ids, self._spans = ids, spans
        self._ends = np.cumsum(spans[:, 1] - spans[:, 0])  # of each document, if the first one begins at 0

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, n: int) -> np.ndarray:
        """The `n` tokens from `start` on: (n,)."""
        start %= len(self)
        parts = []
        i = int(np.searchsorted(self._ends, start, side="right"))
        begin, end = self._spans[i]
        begin = end - (self._ends[i] - start)  # perhaps in the middle of a document
        while n:
            parts.append(self._ids[begin : min(end, begin + n)])
            n -= len(parts[-1])
            i = (i + 1) % len(self._spans)
            begin, end = self._spans[i]
        return np.concatenate(parts)


class Windows:
    """All training windows of a text, epoch after epoch, by their number: a pure function, so nothing to save.

    In each epoch the documents are shuffled anew and joined in a circle; the circle is cut into windows from a
    random place on, and they come in random order. So every token is a target once an epoch (but for the
    rest that fills no window), and the cuts fall elsewhere each time.

    Args:
        tokens: the documents to read.
        length: the context length; a window has one token more, the last target.
        seed: decides every order.

    Raises:
        ValueError: the text is shorter than a window.
    """

    def __init__(self, tokens: TokenFile, length: int, seed: int) -> None:
        self.tokens, self.length, self.seed = tokens, length, seed
        self.n_tokens = tokens.n_tokens
        self.per_epoch = self.n_tokens // length
        self._epoch = -1
        if self.n_tokens < length + 1:
            raise ValueError(
                f"the training text has {counted(self.n_tokens, 'tokens')}, less than a context of {length:,} "
                "and the token after it: give more text, or a smaller --context"
            )

    def rows(self, numbers: range) -> Tensor:
        """Some windows, by their numbers counted over all epochs: (len(numbers), length + 1)."""
        return torch.from_numpy(np.stack([self._window(number) for number in numbers]).astype(np.int64))

    def _window(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        return self._joined.read(int(self._order[place]) * self.length + self._first, self.length + 1)

    def _shuffle(self, epoch: int) -> None:
        random = np.random.default_rng([self.seed, epoch])
        self._joined = CircularTokens(self.tokens.ids, random.permutation(self.tokens.spans))
        self._first = int(random.integers(self.n_tokens))
        self._order = random.permutation(self.per_epoch)
        self._epoch = epoch
