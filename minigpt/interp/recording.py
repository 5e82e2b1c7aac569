"""What was recorded of a text: tensors by the names of their points."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import GPT2Config
from minigpt.interp.points import all_points, expand, meant_points, point_of
from minigpt.interp.tensor_file import Chunks, FileChunks
from minigpt.json_files import counted

# Shapes below:  B rows · T tokens · S slots of the text, padding included · H heads · L layers


FACTS = {"tokens", "pad", "start", "reduced", "heads"}  # what a file holds beside the points


class Recording(Mapping[str, Tensor]):
    """The values of one batch of texts at the points that were asked for: `seen["blocks.3.attn.pattern"]`.

    A text that was read in several passes (while generating) has its passes joined along the tokens; the
    rows of a pattern, which grow from pass to pass, are filled up with zeros.

    `tokens` (B, T) is what was read, `pad` (B,) says how many of each row's first slots are padding; their
    values mean nothing, and `row` leaves them out. `start` is how many slots the cache held before.
    """

    def __init__(
        self,
        config: GPT2Config,
        names: Sequence[str],
        values: Chunks,
        reduced: bool = False,
        heads: list[int] | None = None,
    ) -> None:
        self.config = config
        self.names = list(names)
        self.reduced = reduced  # by `take`: the axes are no longer those of the points
        self.heads = heads  # the numbers of those that were recorded; None is all
        self.pad = torch.empty(0, dtype=torch.long)
        self.start = 0
        self.read: list[Tensor] = []  # tokens, pass by pass
        self.chunks = values

    @property
    def tokens(self) -> Tensor:
        return torch.cat(self.read, 1) if self.read else torch.empty(0, 0, dtype=torch.long)

    def __getitem__(self, name: str) -> Tensor:
        chunks = self.steps(name)
        if len(chunks) == 1:
            return chunks[0]
        if self.reduced:
            raise ValueError(
                f"{name} was reduced by take= in {len(chunks)} passes, which may not fit together: "
                "read them one by one with steps()"
            )
        return join(name, chunks)

    def steps(self, name: str) -> list[Tensor]:
        """What each pass gave at a point: first the prompt's, then one for each new token.

        Raises:
            KeyError: the point was not recorded, or nothing has been read yet.
        """
        if name not in self.names:
            raise KeyError(f"{name} was not recorded; {self._advice(name)}")
        if name not in self.chunks:
            raise KeyError(f"{name} holds nothing yet: run the model inside the `with`")
        return list(self.chunks[name])

    def _advice(self, name: str) -> str:
        """What to read instead of a point that was not recorded."""
        if "*" in name:
            return f"there are {_listed(self.names)}; stack() takes a name with *"
        is_point = name in all_points(self.config)  # rightly spelt, so none that is near is meant
        meant = "" if is_point else meant_points(name, self.names)
        return meant or f"there are {_listed(self.names)}"

    def require_whole(self, *names: str) -> None:
        """Raises unless these points hold all that the model computed there, as analyses need it.

        Raises:
            KeyError: one was not recorded.
            ValueError: only some heads were, or `take=` has made something else of the values.
        """
        for name in names:
            self.steps(name)
            if self.reduced:
                raise ValueError(f"{name} was reduced by take= while it was recorded: record it without")
            if self.heads is not None and point_of(name).has_heads:
                raise ValueError(f"{name} was recorded of heads {self.heads} only: record it without heads=")

    def require_beginning(self) -> None:
        """Raises ValueError unless the text was recorded from its first token on."""
        if self.start:
            raise ValueError(
                f"the recording began at slot {self.start}, so that what came before is not known: use record_text"
            )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def stack(self, pattern: str, layers: Sequence[int] | None = None) -> Tensor:
        """The values of all points that match, one behind the other: (L, ...).

        Raises:
            KeyError: no point matches, or one of them was not recorded.
            ValueError: their shapes differ.
        """
        names = expand(self.config, [pattern], layers)
        values = [self[name] for name in names]
        if len({value.shape for value in values}) > 1:
            raise ValueError(f"{pattern!r} matches points of different shapes: {_listed(names)}")
        return torch.stack(values)

    def row(self, index: int) -> Recording:
        """One text of a padded batch as if it had been recorded alone: B = 1, and its padding left out.

        Raises:
            IndexError: there is no such row.
            ValueError: `take=` has changed the axes.
        """
        if not 0 <= index < len(self.pad):
            raise IndexError(f"there is no row {index}: the recording has {counted(len(self.pad), 'texts')}")
        if self.reduced:
            raise ValueError("a recording with take= cannot be split into rows: its axes are not known")
        pad = int(self.pad[index])
        cut = max(0, pad - self.start)  # what was there before the recording is not in it
        values = {name: [self._cut(name, self[name][index : index + 1], cut, pad)] for name in self.names}
        alone = Recording(self.config, self.names, values, heads=self.heads)
        alone.read = [self.tokens[index : index + 1, cut:]]
        alone.pad, alone.start = torch.zeros(1, dtype=torch.long), max(0, self.start - pad)
        return alone

    @classmethod
    def load(cls, path: str | os.PathLike[str], config: GPT2Config) -> Recording:
        """Reads a recording that was written by `record(..., to=path)`; tensors are read when asked for.

        Raises:
            ValueError: the file is no recording, or that of another model.
        """
        values = FileChunks(Path(path))
        if FACTS - set(values):
            raise ValueError(f"{path} is no recording: it was not written by record(..., to=...)")
        names = [name for name in values if name not in FACTS]
        unknown = set(names) - set(all_points(config))
        if unknown:
            raise ValueError(f"{path} is the recording of another model: this one has no {min(unknown)}")
        heads = values["heads"][0].tolist() or None
        loaded = cls(config, names, values, bool(values["reduced"][0]), heads)
        loaded.read, loaded.pad = list(values["tokens"]), values["pad"][0]
        loaded.start = int(values["start"][0])
        return loaded

    def _cut(self, name: str, value: Tensor, cut: int, pad: int) -> Tensor:
        """Without the slots that are padding."""
        axis = point_of(name).token_axis
        if name == "logits" and value.size(axis) < self.tokens.size(1):
            return value  # of each pass only the newest token has any, and that is never padding
        value = value.narrow(axis, cut, value.size(axis) - cut)
        return value[..., pad:] if name.endswith("attn.pattern") else value

    def __repr__(self) -> str:
        rows, n = self.tokens.shape
        return f"Recording({counted(len(self), 'points')}, {rows} x {n} tokens)"

    def _repr_html_(self) -> str:
        """For notebooks: a table of what there is."""
        cells = [
            (name, " × ".join(map(str, self.steps(name)[0].shape)), len(self.steps(name)))
            for name in self.names
            if name in self.chunks
        ]
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{shape}</td><td>{n}</td></tr>" for name, shape, n in cells
        )
        head = "<tr><th>point</th><th>shape</th><th>passes</th></tr>"
        return f"<table><caption>{escape(repr(self))}</caption>{head}{rows}</table>"


def join(name: str, chunks: Sequence[Tensor]) -> Tensor:
    """The passes of one text behind each other along the tokens; patterns as wide as the last.

    >>> join("blocks.0.attn.pattern", [torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 3)])[0, 0]
    tensor([[1., 1., 0.],
            [1., 1., 0.],
            [1., 1., 1.]])
    """
    if name.endswith("attn.pattern"):
        width = max(chunk.size(-1) for chunk in chunks)
        chunks = [F.pad(chunk, (0, width - chunk.size(-1))) for chunk in chunks]
    return torch.cat(list(chunks), point_of(name).token_axis)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
