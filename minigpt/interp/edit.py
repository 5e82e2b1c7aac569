"""Interventions: what the model computes at a point is replaced while it runs, at the places that were chosen.

They are context managers that compose and nest: at one point the outer one acts first. All of them are undone
when the `with` ends, also after an exception, and one that did not act says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.interp.hooks import KEYS_0, Pass, RowTracker, attached, never_fired, require_watchable
from minigpt.interp.points import as_indices, expand, layer_of, point_of
from minigpt.model import GPT2

# Shapes below:  B rows · T new tokens · H heads

# Name of the point, its value, the pass, where the edit acts (as from `Places.mask`) -> a value of the same shape
Change = Callable[[str, Tensor, Pass, Tensor], Tensor]


@contextmanager
def edit(
    model: GPT2,
    point: str,
    function: Callable[[Tensor], Tensor],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Puts `function(value)` in place of the value at a point, while the `with` lasts.

    The function is given the whole value of a pass (a copy), and its result is used at the chosen heads,
    positions and rows only. With a cache a pass brings the new tokens alone; keys and values that were
    edited stay so in the cache. A pattern that is edited is not normalised again.

    Args:
        model: whose passes are changed.
        point: a name as in `POINTS`; `*` edits several.
        function: must return a value of the same shape.
        layers: only points of these layers.
        heads: only these; every point that is edited must have heads.
        positions: only these tokens (of a pattern: these queries), counted from 0 at each row's first real
            token: the same with a cache, without one, and in a padded batch. Padding is never edited.
        rows: only these texts of the batch; a second batch raises.

    Raises:
        KeyError: there is no such point.
        IndexError: there is no such layer or head; or a position or row was never read.
        ValueError: the result has another shape; or the point was never reached; or it has no heads, or belongs to
            no layer, although some were chosen; or rows or positions came to name something else while texts were
            read (rows that move, a second batch, a window that slides).

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> tokens = torch.tensor([tokenizer.encode("Once upon a time")])
    >>> with torch.no_grad(), edit(model, "blocks.2.mlp.out", torch.zeros_like, positions=[3]):
    ...     changed = model(tokens)
    >>> with torch.no_grad():
    ...     (model(tokens) - changed).abs().amax(-1)[0] > 0
    tensor([False, False, False,  True])
    """

    def change(name: str, value: Tensor, current: Pass, chosen: Tensor) -> Tensor:
        return function(value.clone())

    with edited(model, Edit.at(model, point, change, layers, heads, positions, rows)):
        yield


@contextmanager
def edited(model: GPT2, change: Edit) -> Iterator[None]:
    """Applies an edit until the block ends; then checks that it has acted, unless the block has failed."""
    with attached(model, change):
        yield
    change.check()


def points_to_edit(
    model: GPT2, point: str, layers: Sequence[int] | None, heads: Sequence[int] | None
) -> list[str]:
    """The full names of the points to edit, if what was chosen of them has a meaning at each."""
    require_watchable(model)
    names = expand(model.config, [point], layers)
    for name in names:
        if heads is not None and not point_of(name).has_heads:
            raise ValueError(f"heads={heads} has no effect at {name}, which has no heads")
        if layers is not None and layer_of(name) is None:
            raise ValueError(f"layers={layers} has no effect at {name}, which belongs to no layer")
    return names


@dataclass
class Places:
    """Where an edit acts: heads, positions and rows; None is all of them. It notes which it has met."""

    heads: list[int] | None = None
    positions: list[int] | None = None
    rows: list[int] | None = None
    names_rows: bool = False  # whether the user chose them
    met_positions: set[int] = field(default_factory=set)
    met_rows: int = 0
    longest: int = 0  # most tokens that a row had
    batch: Tensor | None = None  # the tokens of the batch whose rows were named
    text: Tensor | None = None  # the tokens of the texts whose positions were named
    context: int = 0  # most tokens that the model can see
    tracker: RowTracker = field(default_factory=RowTracker)

    @classmethod
    def of(
        cls,
        model: GPT2,
        heads: Sequence[int] | None,
        positions: Sequence[int] | None,
        rows: Sequence[int] | None,
    ) -> Places:
        """Checks what can be known before a pass."""
        return cls(
            as_indices("head", heads, model.config.n_head),
            as_indices("position", positions, model.config.n_positions),
            as_indices("row", rows),
            names_rows=rows is not None,
            context=model.config.n_positions,
        )

    @property
    def names(self) -> frozenset[str]:
        """What it must be shown: rows that are named must stay where they are, which the first layer's keys show."""
        return frozenset() if self.rows is None else frozenset([KEYS_0])

    def require_rows_in_place(self, keys: Tensor, current: Pass) -> None:
        """Raises ValueError where `rows` no longer names the texts that it named in the pass before."""
        if self.tracker.moved(keys, current.start):
            raise ValueError(
                "the rows of the batch were moved between two passes, as by beams or texts that end: rows= no "
                "longer names the same texts; leave it out, or generate one text at a time"
            )

    def begin(self, current: Pass) -> None:
        """Notes how many rows and tokens there are.

        Raises:
            ValueError: `rows` or `positions` would name something else than in the pass before.
        """
        if self.names_rows and current.start == 0 and len(current.tokens) > 1:
            if self.batch is not None and not _begin_alike(self.batch, current.tokens):
                raise ValueError(
                    "a second batch was read: rows= names rows of one batch (a long list of prompts is read in several): "
                    "open the intervention for each batch, or leave rows= out"
                )
            self.batch = current.tokens
        if self.positions is not None:
            self._follow_text(current)
        self.longest = max(self.longest, int(current.positions.max()) + 1)
        self.met_rows = max(self.met_rows, len(current.tokens))

    def _follow_text(self, current: Pass) -> None:
        """Keeps the tokens of the texts, by which a window that slid is known from another text."""
        before, self.text = self.text, current.tokens
        if before is None:
            return
        if current.start > 0:
            if len(before) == len(current.tokens):
                self.text = torch.cat([before[:, : current.start], current.tokens], 1)
        elif before.size(1) >= self.context and _goes_on(before, current.tokens):
            raise ValueError(
                'the window slid (overflow="slide"): what is left of the text was read again from its first token on, '
                "and the positions would name other tokens; write no more than fits the context"
            )

    def mask(self, value: Tensor, has_heads: bool, current: Pass) -> Tensor:
        """True where the edit acts: (B, T, 1), or (B, H, T, 1) with heads. Notes the positions that it meets."""
        places = current.positions[:, -value.size(2 if has_heads else 1) :]  # of logits maybe the last alone
        chosen = places >= 0
        if self.positions is not None:
            chosen = torch.isin(places, torch.tensor(self.positions, device=places.device))
        if self.rows is not None:
            here = torch.arange(len(places), device=places.device)
            chosen = chosen & torch.isin(here, torch.tensor(self.rows, device=places.device))[:, None]
        if self.positions is not None:
            self.met_positions |= set(places[chosen].tolist())
        if not has_heads:
            return chosen[:, :, None]
        every = torch.arange(value.size(1), device=places.device)
        heads = every if self.heads is None else torch.tensor(self.heads, device=places.device)
        return chosen[:, None, :, None] & torch.isin(every, heads)[:, None, None]

    def check(self) -> None:
        """Raises IndexError where a position or a row was never met."""
        unmet = sorted(set(self.positions or ()) - self.met_positions)
        if unmet and unmet[0] < self.longest:
            raise IndexError(
                f"position {unmet[0]} was never edited: the rows that were chosen are shorter, or nothing is computed "
                "there (while a text is read into a cache, logits of the newest token only)"
            )
        if unmet:
            raise IndexError(
                f"position {unmet[0]} was never read: the longest text had positions 0 to {self.longest - 1}"
            )
        beyond = [row for row in self.rows or () if row >= self.met_rows]
        if beyond:
            raise IndexError(f"row {beyond[0]} was never read: the batch had rows 0 to {self.met_rows - 1}")


def _begin_alike(a: Tensor, b: Tensor) -> bool:
    """Whether two batches are of the same texts, as far as the shorter one goes: (B, T) each."""
    n = min(a.size(1), b.size(1))
    return torch.equal(a[:, :n], b[:, :n])


def _goes_on(text: Tensor, tokens: Tensor) -> bool:
    """Whether tokens are the end of a text, without its beginning, and one token more: (B, S), (B, T)."""
    n = tokens.size(1) - 1
    return 0 < n < text.size(1) and torch.equal(text[:, text.size(1) - n :], tokens[:, :-1])


class Edit:
    """A visitor that changes values at some points and places."""

    changes = True

    def __init__(self, names: Sequence[str], change: Change, where: Places) -> None:
        self.names = where.names.union(names)
        self.where = where
        self._change = change
        self._silent = list(names)  # that have not acted yet
        self._last: Pass | None = None

    @classmethod
    def at(
        cls,
        model: GPT2,
        point: str,
        change: Change,
        layers: Sequence[int] | None,
        heads: Sequence[int] | None,
        positions: Sequence[int] | None,
        rows: Sequence[int] | None,
    ) -> Edit:
        """A change of what was chosen of a point, as the arguments of `edit` name it; its errors, too."""
        names = points_to_edit(model, point, layers, heads)
        return cls(names, change, Places.of(model, heads, positions, rows))

    def begin(self, current: Pass) -> None:
        self._last = current
        self.where.begin(current)

    def visit(self, name: str, value: Tensor, current: Pass) -> Tensor:
        if name == KEYS_0:
            self.where.require_rows_in_place(value, current)
            return value
        if name in self._silent:
            self._silent.remove(name)
        chosen = self.where.mask(value, point_of(name).has_heads, current)
        if not chosen.any():
            return value
        new = self._change(name, value, current, chosen)
        if not isinstance(new, Tensor) or new.shape != value.shape:
            got = tuple(new.shape) if isinstance(new, Tensor) else repr(new)
            raise ValueError(
                f"the edit of {name} must give a tensor of shape {tuple(value.shape)}, got {got}"
            )
        return torch.where(chosen, new.to(value), value)

    def check(self) -> None:
        """Raises what has to be raised where the edit did not act as asked."""
        if self._last is None:
            raise ValueError(f"the edit of {', '.join(self._silent[:3])} did nothing: no text was read")
        if self._silent:
            raise ValueError(f"{never_fired(self._silent, self._last)}; the edit did nothing there")
        self.where.check()
