"""A window that slides: texts of any length, of which the model sees the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from minigpt.errors import InvalidRequest
from minigpt.json_files import counted
from minigpt.lazy import Tensor, torch
from minigpt.options import KINDS
from minigpt.sampler.events import LanguageModel

# Shapes below:  B rows · T new tokens · D width of the model · W the model's window


@dataclass(frozen=True)
class Unbounded:
    """The config of a model that reads texts of any length."""

    vocab_size: int
    end_tokens: frozenset[int]
    n_positions: int = 2**63 - 1


@dataclass
class Cost:
    """What sliding has cost: how often the window moved, and how many tokens were read once more for it."""

    slides: int = 0
    tokens_again: int = 0


class SlidingCache:
    """All tokens of each row, and the model's own memory of those that it sees.

    Columns count padding and tokens together, the same for all rows, from 0 to `length`.
    """

    def __init__(self, n_max: int, tokens: Tensor, pads: list[int]) -> None:
        self.n_max, self.pads = n_max, pads
        self._hold(tokens)
        self.firsts: list[int] | None = None  # the column of each row from which on it is remembered
        self.inner: Any = None  # the model's own cache, with room for `room` columns from `begin` on
        self.begin = self.room = 0

    def _hold(self, tokens: Tensor) -> None:
        self.tokens, self.length = tokens, tokens.size(1)

    def extend(self, tokens: Tensor) -> None:
        """Adds new tokens to each row; the model reads them later."""
        self._hold(torch.cat([self.tokens, tokens], 1))

    def rewind(self, length: int) -> None:
        """Forgets every token from column `length` on.

        Raises:
            ValueError: the cache holds fewer tokens than that.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {counted(self.length, 'tokens')}")
        self._hold(self.tokens[:, :length])
        if self.firsts and length >= self.begin:
            self.inner.rewind(length - self.begin)
        else:
            self.firsts = None

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of old row `rows[i]`: a repeat forks a row, an omission drops it."""
        self._hold(self.tokens[list(rows)])
        self.pads = [self.pads[row] for row in rows]
        if self.firsts:
            self.firsts = [self.firsts[row] for row in rows]
            self.inner.select(rows)

    def align(self, pad: Sequence[int], length: int) -> None:
        """Row i's tokens move to begin at column `pad[i]`; then all from column `length` on are forgotten."""
        moves = [new - old for old, new in zip(self.pads, pad, strict=True)]
        rows = zip(self.tokens, moves, strict=True)
        self._hold(torch.stack([row.roll(move) for row, move in rows])[:, :length])
        self.pads = list(pad)
        firsts = [first + move for first, move in zip(self.firsts or [], moves, strict=False)]
        begin = min(firsts, default=0)
        if firsts and 0 <= length - begin <= self.inner.length:
            self.inner.align([first - begin for first in firsts], length - begin)
            self.firsts, self.begin = firsts, begin
        else:
            self.firsts = None


class Sliding:
    """A model that reads texts of any length: it looks at their last tokens only.

    GPT-2 has learned each position by itself, so what it remembers of a token holds at that position only:
    moving the window means reading it again. To do that seldom, it moves by `stride` tokens at once. Of n
    tokens the model sees all if they fit its window W, and else those from ceil((n - W) / stride) * stride
    on, which are W - stride + 1 to W. That depends on n alone: batch mates, rewinds and drafts change
    nothing.

    A stride of 1 is the naive crop to the last W tokens: the most context, but all of it is read again for
    every new token. The default, half the window, always leaves at least half of it as context, and reads
    about one token again for each new one. `cost` counts them.

    Args:
        model: any language model with a window.
        stride: from 1 to the window's length; half of it unless given.

    Raises:
        ValueError: the stride is out of range.

    >>> import minigpt
    >>> model = minigpt.GPT2(minigpt.GPT2Config(vocab_size=9, n_positions=4, n_embd=8, n_layer=1, n_head=1))
    >>> sliding = Sliding(model.eval())
    >>> logits = sliding.next_logits(torch.tensor([[1, 2, 3, 4, 5]]), sliding.new_cache(5))
    >>> torch.allclose(logits, model(torch.tensor([[3, 4, 5]]))[:, -1], atol=1e-6)
    True
    """

    def __init__(self, model: LanguageModel, stride: int | None = None) -> None:
        self.model = model
        self.window = model.config.n_positions
        self.stride = max(1, self.window // 2) if stride is None else stride
        if not KINDS[int].has(self.stride) or not 1 <= self.stride <= self.window:
            raise InvalidRequest(
                f"stride must be a whole number from 1 to the model's context length of {self.window}, got {stride!r}"
            )
        self.config = Unbounded(model.config.vocab_size, model.config.end_tokens)
        self.cost = Cost()

    def modules(self) -> Iterator[torch.nn.Module]:
        """The model's own, as `torch.nn.Module.modules` gives them; none for one that is no such module."""
        return self.model.modules() if isinstance(self.model, torch.nn.Module) else iter(())

    @property
    def device(self) -> torch.device:
        return self.model.device

    def new_cache(self, n_max: int, rows: int = 1, pad: Tensor | None = None) -> SlidingCache:
        """An empty cache; however large `n_max`, the model's own memory has room for its window only."""
        pads = [0] * rows if pad is None else pad.tolist()
        return SlidingCache(n_max, torch.empty(rows, 0, dtype=torch.long, device=self.device), pads)

    def next_logits(self, tokens: Tensor, cache: SlidingCache) -> Tensor:
        """Reads `tokens`; logits for the one that follows: (B, T)  ->  (B, V)."""
        return self.model.next_logits(*self._add(tokens, cache))

    def hidden_states(self, tokens: Tensor, cache: SlidingCache) -> Tensor:
        """Everything but the head, for each token as with the window that ends at it: (B, T)  ->  (B, T, D)."""
        return self._each(self.model.hidden_states, tokens, cache)

    def lens_states(self, tokens: Tensor, cache: SlidingCache) -> Tensor:
        """The stream after every layer: (B, T)  ->  (n_layer + 1, B, T, D)."""
        return self._each(self.model.lens_states, tokens, cache)

    def unembed(self, x: Tensor) -> Tensor:
        return self.model.unembed(x)

    def _each(self, read: Callable[[Tensor, Any], Tensor], tokens: Tensor, cache: SlidingCache) -> Tensor:
        """Reads piece by piece, a new one wherever the window moves."""
        ends = range(cache.length + 1, cache.length + tokens.size(1) + 1)
        sizes = [len(list(same)) for _, same in groupby(ends, lambda end: self._firsts(cache.pads, end))]
        pieces = torch.split(tokens, sizes, 1)
        return torch.cat([read(*self._add(new, cache))[..., -new.size(1) :, :] for new in pieces], -2)

    def start(self, n: int) -> int:
        """Where the window begins in a text of n tokens."""
        return max(0, -((self.window - n) // self.stride)) * self.stride  # rounded up

    def _firsts(self, pads: list[int], length: int) -> list[int]:
        """The column of each row at which its window begins when there are `length` columns."""
        return [pad + self.start(length - pad) for pad in pads]

    def _add(self, tokens: Tensor, cache: SlidingCache) -> tuple[Tensor, Any]:
        """Adds tokens to the cache; what the model has to read now, and the memory that it reads it into."""
        before = cache.length
        cache.extend(tokens)
        firsts = self._firsts(cache.pads, cache.length)
        # The room runs out early where the row that began first has left the batch.
        if firsts == cache.firsts and cache.length - cache.begin <= cache.room:
            return tokens, cache.inner
        if before:
            self.cost.slides += 1
            self.cost.tokens_again += sum(max(0, before - first) for first in firsts)
        cache.firsts, cache.begin = firsts, min(firsts)
        cache.room = min(self.window, cache.n_max - cache.begin)
        cache.inner = None  # frees the old memory before there is a new one
        pad = torch.tensor([first - cache.begin for first in firsts], device=self.device)
        pad = pad.clamp_max(cache.room - 1)  # a row that begins later is filling as long as this memory lasts
        cache.inner = self.model.new_cache(cache.room, len(firsts), pad if len({*firsts}) > 1 else None)
        return cache.tokens[:, cache.begin :], cache.inner
