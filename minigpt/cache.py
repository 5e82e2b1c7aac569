"""The KV cache: keys and values of the tokens that the model has read, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from minigpt.config import GPT2Config
from minigpt.json_files import counted
from minigpt.kernels.memory import MemoryPool

# Shapes below:  B rows · T new tokens · S tokens in view (cached + new) · H heads · K head dimension


class KVCache:
    """Room for the keys and values of `n_max` tokens in each of `rows` rows, reserved once.

    `length` is the write position. Slots from `length` on are scratch: a forward pass fills them and commits
    with `advance`, so a pass that fails half-way leaves the cache as it was.

    `pad` (B,), if given, says how many of the first slots of each row are padding. `pool` gives the memory, and takes it
    back when the cache is gone.

    Raises:
        ValueError: `pad` is not one whole number for each row, from 0 to below `n_max`.

    >>> import torch
    >>> cache = KVCache(GPT2Config(n_layer=1, n_head=2, n_embd=8), 5, rows=1, like=torch.zeros(1))
    >>> new = torch.ones(2, 1, 2, 3, 4)                         # keys of 3 tokens, and their values
    >>> keys, values = cache.layers[0].extend(new)
    >>> cache.advance(3)
    >>> cache.length, keys.shape
    (3, torch.Size([1, 2, 3, 4]))
    """

    # [i, j]: how many of the first slots are known to hold the same in rows i and j: those from before they forked.
    _n_shared: numpy.ndarray  # (rows, rows)

    def __init__(
        self,
        config: GPT2Config,
        n_max: int,
        rows: int,
        *,
        like: Tensor,
        pad: Tensor | None = None,
        pool: MemoryPool | None = None,
    ) -> None:
        if pad is not None:
            check_pad(pad, rows, n_max)
        self.length = 0
        shape = (config.n_layer, 2, rows, config.n_head, n_max, config.head_dim)
        # Structs with the addresses of the model's weights, which `inference.pass_in_c` and `inference.whole_model_in_c` keep
        # here from one pass to the next.
        self.blocks_in_c: Any = None
        self.model_in_c: Any = None
        self._pool = pool or MemoryPool()
        # Not `like.new_empty`: `like` may be sharded, which this is not.
        self._store(self._pool.reserve(shape, like.dtype, like.device))
        self._set_pad_tensor(pad)
        self._forget_forks()

    @property
    def rows(self) -> int:
        return self._slots.size(2)

    def __repr__(self) -> str:
        pad = "" if self.pad is None else f", pad={self.pad.tolist()}"
        return f"KVCache(rows={self.rows}, length={self.length} of {self.n_max}{pad})"

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, or a pickle: what follows from the memory is left out."""
        made = ("_slots", "step", "blocks_in_c", "model_in_c")
        return {name: value for name, value in self.__dict__.items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.blocks_in_c = self.model_in_c = None
        self._store(self._reserved, self._begin)

    def advance(self, n: int) -> None:
        """Commits the `n` tokens that the layers have just stored."""
        self.length += n

    @property
    def slots(self) -> Tensor:
        """Keys and values of all layers, and room for more: (layer, key | value, B, H, n_max, K)."""
        return self._slots

    @property
    def layers(self) -> list[LayerCache]:
        """Each layer's share. Made anew each time: kept, they and the cache would hold each other, and the memory."""
        return [LayerCache(self, self._slots[layer]) for layer in range(len(self._slots))]

    def pads(self) -> list[int]:
        """How many of the first slots of each row are padding."""
        return [0] * self.rows if self.pad is None else self.pad.tolist()

    def check_room(self, n: int) -> None:
        """Refuses more tokens than there is room for."""
        if self.length + n > self.n_max:
            raise ValueError(f"token {self.length + n} does not fit a cache reserved for {self.n_max}")

    def rewind(self, length: int) -> None:
        """Forgets every token from position `length` on.

        Raises:
            ValueError: the cache holds fewer tokens than that.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {counted(self.length, 'tokens')}")
        if length < self.length:
            self.length = length
            self._n_shared = self._n_shared.clip(max=length)

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes a copy of old row `rows[i]`: a repeat forks a row, an omission drops it.

        Unless there are more rows than before, only those that change are copied, and of those that forked from one
        row only what they have read since.
        """
        if len(rows) > self.rows:
            more = self._new_slots((*self._slots.shape[:2], len(rows), *self._slots.shape[3:]))
            more[..., : self.length, :] = self._slots[:, :, list(rows), :, : self.length]
            self._store(more)
        else:
            # Row by row: to index with lists of rows takes more than twice as long.
            begins = {i: int(self._n_shared[i, row]) for i, row in enumerate(rows) if i != row}
            new = {i: self._slots[:, :, rows[i], :, n : self.length].clone() for i, n in begins.items()}
            for i, begin in begins.items():
                self._slots[:, :, i, :, begin : self.length] = new[i]
            if len(rows) < self.rows:
                self._store(self._reserved[:, :, : len(rows)], self._begin)
        if self.pad is not None:
            self._set_pad_tensor(self.pad[list(rows)])
        self._n_shared = self._n_shared[numpy.ix_(rows, rows)]
        self._n_shared[numpy.equal.outer(rows, rows)] = self.length

    def align(self, pad: Sequence[int], length: int) -> None:
        """Row i's tokens move to begin at slot `pad[i]`; then all from slot `length` on are forgotten.

        It is `rewind` for each row by itself: after drafts of which row 0 keeps all and row 1 drops two,

            row 0   a b c d e f            row 0   a b c d e f
            row 1   u v w x y z     ->     row 1   · · u v w x      pad = [0, 2]

        Only the rows that move are copied.

        Raises:
            ValueError: a row holds fewer tokens than would be left of it.
        """
        old = self.pads()
        for row, (start, new_start) in enumerate(zip(old, pad, strict=True)):
            kept, held = length - new_start, self.length - start
            if kept > held:
                raise ValueError(f"cannot keep {counted(kept, 'tokens')} of row {row}: it holds {held}")
        self.rewind(length)
        for row, (start, new_start) in enumerate(zip(old, pad, strict=True)):
            n = length - new_start
            if n > 0 and start != new_start:
                tokens = self._slots[:, :, row, :, start : start + n].clone()  # where they go may overlap
                self._slots[:, :, row, :, new_start:length] = tokens
        self._set_pads(pad)

    # Continuous batching (sampler/engine/scheduler.py): rows are given to new texts, while others go on.

    def begin_with(self, other: KVCache, rows: Sequence[int], length: int) -> None:
        """Row i begins with what row `rows[i]` of another cache begins with, up to slot `length`.

        A token's keys and values follow from the tokens up to it, so texts that begin alike share them.
        """
        theirs = other.pads()
        for row, (start, source) in enumerate(zip(self.pads(), rows, strict=True)):
            first, n = theirs[source], max(0, length - start)
            self._slots[:, :, row, :, : length - n] = 0
            shared = other._slots[:, :, source, :, first : first + n]
            self._slots[:, :, row, :, length - n : length] = shared
        self.length = length
        self._forget_forks()

    def replace_rows(self, rows: Sequence[int], other: KVCache) -> None:
        """Row `rows[i]` becomes row i of another cache; its last token is where those of the other rows are.

        GPT-2 learned its positions and adds them to the tokens, so that a key is right in any slot. If a new
        text is longer than those that are there, they move to the right:

            row 0   a b c         row 0   · · a b c
            row 1   u v w    ->   row 1   p q r s t
        """
        longest, end = other.length - other.least_pad, self._begin + self.length
        if longest > end:
            self._move_to_end_at(longest)
        elif longest > self.length:
            self._begin_at(end - longest)
        pad = self.pads()
        for i, (row, start) in enumerate(zip(rows, other.pads(), strict=True)):
            pad[row] = self.length - (other.length - start)
            self._slots[:, :, row, :, : pad[row]] = 0
            tokens = other._slots[:, :, i, :, start : other.length]
            self._slots[:, :, row, :, pad[row] : self.length] = tokens
        self._set_pads(pad)

    def make_room(self) -> None:
        """Makes room for one token more, if there is padding in all rows: its slots are used again."""
        if self.least_pad:
            self._begin_at(self._begin + min(self.least_pad, self.length))
        if self.length == self.n_max:
            self._move_to_end_at(self.length)

    def grow(self, n_max: int) -> None:
        """Reserves room for `n_max` tokens in each row."""
        larger = self._new_slots((*self._slots.shape[:-2], n_max, self._slots.size(-1)))
        larger[..., : self.length, :] = self._slots[..., : self.length, :]
        self._store(larger)

    @property
    def nbytes(self) -> int:
        """The memory that is reserved."""
        return self._reserved.nbytes

    def _begin_at(self, begin: int) -> None:
        """Makes `begin` the first slot in use; slots that this adds in front become padding."""
        added = self._begin - begin
        self._store(self._reserved, begin)
        self._slots[..., : max(0, added), :] = 0  # whatever was there might be NaN, which no mask hides
        self.length += added
        self._set_pads([pad + added for pad in self.pads()])

    def _move_to_end_at(self, end: int) -> None:
        """Moves the slots in use within what is reserved, so that `end` is the one to be written next."""
        begin = end - self.length
        tokens = self._slots[..., : self.length, :].clone()  # where they go may overlap
        self._reserved[..., begin:end, :] = tokens
        self._store(self._reserved, begin)
        self._begin_at(0)

    def _new_slots(self, shape: tuple[int, ...]) -> Tensor:
        return self._pool.reserve(shape, self._slots.dtype, self._slots.device)

    def _store(self, reserved: Tensor, begin: int = 0) -> None:
        self._reserved, self._begin = reserved, begin  # (layer, key | value, B, H, all slots, K)
        self.step: Any = None  # what `inference.graphed_step` has made for just this memory
        self._slots = reserved[..., begin:, :]  # those in use
        self.n_max = self._slots.size(-2)

    def _set_pads(self, pads: Sequence[int]) -> None:
        self._set_pad_tensor(torch.tensor(pads) if any(pads) else None)
        self._forget_forks()

    def _forget_forks(self) -> None:
        self._n_shared = numpy.zeros((self.rows, self.rows), dtype=int)

    def _set_pad_tensor(self, pad: Tensor | None) -> None:
        self.pad = None if pad is None else pad.to(self._slots.device)
        # Kept as a number, so that asking for the longest row costs no wait for the device.
        self.least_pad = 0 if pad is None else int(pad.min())


class LayerCache:
    """One layer's share of a `KVCache`."""

    def __init__(self, cache: KVCache, slots: Tensor) -> None:
        self._cache, self._slots = cache, slots  # (key | value, B, H, n_max, K)

    @property
    def length(self) -> int:
        return self._cache.length

    @property
    def pad(self) -> Tensor | None:
        return self._cache.pad

    def extend(self, kv: Tensor) -> tuple[Tensor, ...]:
        """Stores new keys and values; returns all of them, old and new, without copying the old.

        Shapes: (key | value, B, H, T, K)  ->  (B, H, S, K) each

        Raises:
            ValueError: they do not fit.
        """
        start, n_new = self._cache.length, kv.size(-2)
        stop = start + n_new
        self._cache.check_room(n_new)
        self._slots.narrow(-2, start, n_new).copy_(kv)
        return self._slots.narrow(-2, 0, stop).unbind()


class NoCache:
    """Null object: the interface of a `KVCache`, but it stores nothing (training, scoring).

    It carries the padding of its one pass, as a cache does for all of them.
    """

    length = 0

    def __init__(self, config: GPT2Config, pad: Tensor | None = None) -> None:
        self.pad = pad
        self.rows = None if pad is None else len(pad)  # None: as many as come
        self.least_pad = 0 if pad is None else int(pad.min())
        self.layers = [self] * config.n_layer

    def extend(self, kv: Tensor) -> tuple[Tensor, ...]:
        return kv.unbind()

    def advance(self, n: int) -> None:
        pass


def check_pad(pad: Tensor, rows: int, n_slots: int) -> None:
    """Refuses a count of padding that does not fit.

    Raises:
        ValueError: `pad` is not one whole number for each of `rows` rows, from 0 to below `n_slots`.
    """
    counts = not (pad.is_floating_point() or pad.is_complex() or pad.dtype == torch.bool)
    if pad.dim() != 1 or len(pad) != rows or not counts:
        raise ValueError(
            f"pad must be {counted(rows, 'whole numbers')}, one for each row, got shape {tuple(pad.shape)},"
            f" {str(pad.dtype).removeprefix('torch.')}"
        )
    if not 0 <= int(pad.min()) <= int(pad.max()) < n_slots:
        raise ValueError(
            f"pad must be from 0 to {n_slots - 1}, one token at least being left: {pad.tolist()}"
        )
