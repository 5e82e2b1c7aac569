"""Attention knockout: chosen queries may not see chosen keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from minigpt.interp.edit import Places
from minigpt.interp.hooks import KEYS_0, MASK, Pass, attached, require_watchable
from minigpt.interp.points import as_indices
from minigpt.model import GPT2

# Shapes below:  B rows · T new tokens · S tokens in view (cached + new) · H heads


@contextmanager
def knock_out(
    model: GPT2,
    queries: Sequence[int],
    keys: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """The tokens at positions `queries` do not see those at positions `keys`: their scores are -inf.

    What is left of a query's attention sums to 1 again, and the fused kernel stays in use.

    Args:
        model: whose passes are changed.
        queries: positions that shall not see; counted from each row's first real token.
        keys: positions that shall not be seen by them.
        layers: in these only.
        heads: of these only.
        rows: in these texts of the batch only.

    Raises:
        IndexError: there is no such layer or head; or a position or row was never read.
        ValueError: a query cannot see a key anyway, or would be left with no key at all; or rows or positions came to
            name something else, as for `edit`.

    Source: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models".

    >>> import minigpt
    >>> from minigpt.interp.record import record_text
    >>> model, tokenizer = minigpt.load()
    >>> with knock_out(model, queries=[3], keys=[0], layers=[1]):
    ...     seen = record_text(model, tokenizer.encode("Once upon a time"), "blocks.1.attn.pattern")
    >>> seen["blocks.1.attn.pattern"][0, :, 3, 0]
    tensor([0., 0., 0., 0., 0.])
    """
    require_watchable(model)
    n_positions = model.config.n_positions
    where = Places.of(model, heads, as_indices("position", queries, n_positions, "queries"), rows)
    hidden = as_indices("position", keys, n_positions, "keys")
    chosen = as_indices("layer", layers, model.config.n_layer)
    if where.positions is None or hidden is None:
        raise ValueError("a knockout needs queries that shall not see, and keys that shall not be seen")
    blind = [(query, key) for query in where.positions for key in hidden if key > query]
    if blind:
        raise ValueError(f"query {blind[0][0]} cannot see key {blind[0][1]}, which comes after it, anyway")
    visitor = _KnockOut(model, range(model.config.n_layer) if chosen is None else chosen, hidden, where)
    with attached(model, visitor):
        yield
    visitor.check()


class _KnockOut:
    """A visitor that takes keys out of the masks."""

    changes = True

    def __init__(self, model: GPT2, layers: Sequence[int], keys: list[int], where: Places) -> None:
        masks = [f"blocks.{layer}.{MASK}" for layer in layers]
        self.names = where.names.union(masks)
        self._n_heads = 1 if where.heads is None else model.config.n_head  # 1: the mask of all of them
        self._keys, self._where = keys, where
        self._silent = set(masks)

    def begin(self, current: Pass) -> None:
        self._where.begin(current)

    def visit(self, name: str, value: Tensor, current: Pass) -> Tensor:
        if name == KEYS_0:
            self._where.require_rows_in_place(value, current)
            return value
        self._silent.discard(name)
        mask = value.expand(len(current.tokens), self._n_heads, *value.shape[-2:])  # (B, H, T, S)
        positions = torch.arange(value.size(-1), device=value.device) - current.pad[:, None]  # (B, S)
        hidden = torch.isin(positions, torch.tensor(self._keys, device=value.device))
        lost = self._where.mask(mask, True, current) & hidden[:, None, None]
        if not lost.any():
            return value
        left = mask & ~lost
        if not left.any(-1).all():
            raise ValueError(
                f"keys {list(self._keys)} are all that a query sees: its attention cannot sum to 1"
            )
        return left

    def check(self) -> None:
        """Raises what has to be raised where a query or a layer was never met."""
        if self._silent:
            raise ValueError(f"the knockout did nothing: {', '.join(sorted(self._silent)[:3])} never fired")
        self._where.check()
