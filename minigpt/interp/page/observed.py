"""One pass of the model over a finished text, and all that a page keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.cache import NoCache
from minigpt.cli.progress import late_bar
from minigpt.interp.lens import LensReading, last_point, lens_logits, logit_lens
from minigpt.interp.page.budget import LENS_TOKENS
from minigpt.interp.page.packed import id_dtype, pack
from minigpt.interp.page.patterns import largest, pack_norms, pack_patterns
from minigpt.interp.record import record
from minigpt.interp.recording import Recording
from minigpt.model import GPT2

# Shapes below:  L layers · N points of the lens, L + 1 · H heads · T tokens read · V vocab_size

STREAM = ("embed", "blocks.*.resid_post")
AT_ONCE = 64  # positions whose predictions are in memory together: N x T x V numbers would be gigabytes


@dataclass(frozen=True)
class Observed:
    """What was seen while the model read a text."""

    model: GPT2
    tokens: list[int]  # of the whole text; the last may lie beyond the context length, and is not read then
    patterns: Tensor  # the largest weights of each row, and their keys: (L, H, T, 2k)
    stream: Recording  # with the values of attention

    @property
    def n_read(self) -> int:
        return self.stream.tokens.size(1)

    def attention(self) -> dict[str, Any]:
        """The patterns, and the lengths of what the values add, as the page has them."""
        n = len(self.tokens)
        return {**pack_patterns(self.patterns, n), "norms": pack_norms(self.model, self.stream, n)}

    def logits(self, positions: Sequence[int]) -> Iterator[Tensor]:
        """The model's own logits after some positions, one after the other: (V,) each."""
        last = self.stream[last_point(self.model)][0]
        for first in range(0, len(positions), AT_ONCE):
            yield from lens_logits(self.model, last[list(positions[first : first + AT_ONCE])])

    def predictions(self) -> tuple[dict[str, Any], Tensor]:
        """What each layer predicts at each position, and how surprising each token was.

        Returns:
            `lens` and `surprisal` as the page has them, and the tokens that the lens names.
        """
        parts = list(self._read_lens())
        columns = zip(*map(_columns, parts), strict=True)  # of each part (N, T, ...)
        ids, logprobs, rank, entropy, kl, target = (torch.cat(column, 1) for column in columns)
        n, unread = len(self.tokens), len(self.tokens) - self.n_read
        rank[:, n - 1 :] = 0  # after the last token nothing comes
        bits = torch.full((n,), math.nan)
        bits[1:] = -target[-1, : n - 1] / math.log(2)
        lens = {
            "points": [point.removesuffix(".resid_post") for point in parts[0].points],
            "kept": ids.size(-1),
            "ids": pack(F.pad(ids, (0, 0, 0, unread)), id_dtype(self.model.config.vocab_size)),
            "probability": pack(F.pad(logprobs.exp(), (0, 0, 0, unread)), "float32"),
            "rank": pack(F.pad(rank, (0, unread)), "uint32"),
            "entropy": pack(F.pad(entropy / math.log(2), (0, unread), value=math.nan), "float32"),
            "kl": pack(F.pad(kl.clamp_min(0) / math.log(2), (0, unread), value=math.nan), "float32"),
        }
        return {"lens": lens, "surprisal": pack(bits, "float32")}, ids

    def _read_lens(self) -> Iterator[LensReading]:
        targets = torch.tensor([[*self.tokens[1:], 0]], device=self.model.device)
        with late_bar(total=self.n_read, unit="tok", desc="lens") as bar:
            for first in range(0, self.n_read, AT_ONCE):
                here = slice(first, min(first + AT_ONCE, self.n_read))
                yield logit_lens(
                    self.model, _part(self.stream, here), STREAM, targets=targets[:, here], top=LENS_TOKENS
                )
                bar.update(here.stop - first)


@torch.no_grad()
def observe(model: GPT2, tokens: Sequence[int], kept: int) -> Observed:
    """Lets the model read a text, and keeps what a page shows of it; patterns are reduced as they come.

    Args:
        model: which reads; its results do not change.
        tokens: of the text, at most one more than fit the context length.
        kept: how many weights of each row of attention.
    """
    read = torch.tensor([tokens[: model.config.n_positions]], device=model.device)
    with (
        record(model, "blocks.*.attn.pattern", take=largest(kept)) as patterns,
        record(model, *STREAM, "blocks.*.attn.v") as stream,
    ):
        model.hidden_states(read, NoCache(model.config))  # without logits, which would be T x V numbers
    return Observed(model, list(tokens), patterns.stack("blocks.*.attn.pattern")[:, 0], stream)


def _part(stream: Recording, here: slice) -> Recording:
    """Some positions of the residual stream as a recording of their own."""
    names = [name for name in stream.names if not name.endswith(".v")]
    part = Recording(stream.config, names, {name: [stream[name][:, here]] for name in names})
    part.read, part.pad, part.start = [stream.tokens[:, here]], stream.pad, here.start
    return part


def _columns(reading: LensReading) -> tuple[Tensor, ...]:
    """What a page has of a reading, of its one text: (N, T, ...) each."""
    columns = (
        reading.top_tokens, reading.top_logprobs, reading.rank, reading.entropy, reading.kl, reading.target_logprobs,
    )  # fmt: skip
    return tuple(column[:, 0].cpu() for column in columns)
