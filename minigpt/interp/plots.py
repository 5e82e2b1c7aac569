"""Pictures of what was recorded and computed (matplotlib, the extra `plot`).

Each function returns the figure; with `ax=` it draws into an axis of yours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigpt.interp.attribution import Attribution
from minigpt.interp.canvas import (
    DIVERGING,
    SEQUENTIAL,
    TICKS,
    canvas,
    colour_of,
    figure_of,
    heat,
    ink,
    label_axis,
    printable,
    write,
)
from minigpt.interp.gradients import TokenAttribution
from minigpt.interp.heads import HeadStatistics
from minigpt.interp.labels import token_labels
from minigpt.interp.lens import LensReading
from minigpt.interp.patching import Sweep
from minigpt.interp.points import expand
from minigpt.interp.recording import Recording
from minigpt.json_files import counted
from minigpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Shapes below:  L layers · H heads · T tokens (queries and keys) · N layers of a lens

WHITE = (1.0, 1.0, 1.0, 1.0)
WIDTH_OF_TEXT = 90  # characters a line of coloured text
WIDEST = 16.0  # inches, of a picture that has a column for each token


def attention(
    pattern: Tensor, labels: Sequence[str], *, title: str = "attention", ax: Axes | None = None
) -> Figure:
    """One head: each row is a query, and its colours show the keys it attends to.

    Args:
        pattern: (T, T), or value-weighted attention.
        labels: of the tokens, as from `token_labels`.
        title: above the picture.
        ax: an axis to draw into.

    Raises:
        ValueError: the pattern is no matrix with as many rows as there are labels.
    """
    if pattern.shape != (len(labels), len(labels)):
        raise ValueError(
            f"a pattern of shape {tuple(pattern.shape)} does not fit {counted(len(labels), 'labels')}"
        )
    n, pattern = len(labels), pattern.detach().float().cpu()
    side = min(12.0, max(3.5, 1.5 + 0.28 * n))
    ax = canvas(ax, side, side)
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    image = heat(ax, pattern.masked_fill(later, torch.nan), SEQUENTIAL, root=True)
    size = 9 if n <= 25 else 7
    label_axis(ax, "x", labels, size)
    label_axis(ax, "y", labels, size)
    if n <= 12:
        for query, key in (~later).nonzero().tolist():
            value = float(pattern[query, key])
            write(ax, image, key, query, value, f"{value:.2f}".lstrip("0") or "0", 7)
    ax.set(title=title, xlabel="key: attended to", ylabel="query: attends")
    figure_of(ax).colorbar(image, ax=ax, shrink=0.6)
    return figure_of(ax)


def attention_grid(
    seen: Recording, *, row: int = 0, layers: Sequence[int] | None = None, ax: Axes | None = None
) -> Figure:
    """All heads side by side: a small picture each, layers downwards, heads to the right.

    Args:
        seen: a recording of the patterns, from the text's beginning.
        row: which text of the batch.
        layers: only these.
        ax: an axis to draw into.
    """
    seen.require_whole(*expand(seen.config, ["blocks.*.attn.pattern"], layers))
    patterns = seen.row(row).stack("blocks.*.attn.pattern", layers)[:, 0].float().cpu()  # (L, H, T, T)
    n_layer, n_head, n, _ = patterns.shape
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    gap = max(1, n // 12)
    tiles = torch.full((n_layer, n_head, n + gap, n + gap), torch.nan)
    tiles[:, :, :n, :n] = patterns.masked_fill(later, torch.nan)
    whole = tiles.permute(0, 2, 1, 3).reshape(n_layer * (n + gap), n_head * (n + gap))[:-gap, :-gap]
    ax = canvas(ax, max(4.0, 1.1 * n_head + 1.5), max(2.5, 1.1 * n_layer + 0.8))
    image = heat(ax, whole, SEQUENTIAL, root=True, ground="white")
    middle = (n - 1) / 2
    ax.set_xticks(
        [head * (n + gap) + middle for head in range(n_head)], [str(head) for head in range(n_head)]
    )
    names = range(n_layer) if layers is None else layers
    ax.set_yticks([i * (n + gap) + middle for i in range(n_layer)], [str(layer) for layer in names])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(title=f"attention of all heads, {counted(n, 'tokens')}", xlabel="head", ylabel="layer")
    figure_of(ax).colorbar(image, ax=ax, shrink=0.6)
    return figure_of(ax)


def lens(
    reading: LensReading,
    tokenizer: Tokenizer,
    *,
    row: int = 0,
    positions: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """The likeliest next token at each layer and position; colour is how far the layer is from the last one.

    Args:
        reading: from `logit_lens`.
        tokenizer: of the model.
        row: which text of the batch.
        positions: only these slots; the last 20 that are not padding unless given. Of more than 40 the colours alone are shown.
        ax: an axis to draw into.
    """
    n = reading.tokens.size(1)
    places = list(range(max(int(reading.pad[row]), n - 20), n) if positions is None else positions)
    kl = reading.kl[:, row, places].float().flip(0)  # the last layer on top
    guesses = reading.top_tokens[:, row, places, 0].flip(0)
    readable = len(places) <= TICKS
    ax = canvas(ax, 1.8 + 0.75 * len(places) if readable else WIDEST, 1.4 + 0.32 * len(kl))
    image = heat(ax, kl, SEQUENTIAL.reversed(), root=True)
    for i, tokens in enumerate(guesses.tolist() if readable else []):
        for j, label in enumerate(token_labels(tokenizer, tokens)):
            write(ax, image, j, i, float(kl[i, j]), label if len(label) <= 9 else label[:8] + "…", 7)
    label_axis(ax, "x", token_labels(tokenizer, reading.tokens[row, places].tolist()), 8)
    ax.set_yticks(
        range(len(kl)), [name.removeprefix("blocks.") for name in reversed(reading.points)], fontsize=8
    )
    ax.set(title="what each layer would predict", xlabel="after this token")
    figure_of(ax).colorbar(image, ax=ax, label="KL to the last layer (nats)")
    return figure_of(ax)


def attribution(
    parts: Attribution | TokenAttribution,
    labels: Sequence[str] | None = None,
    *,
    n: int = 15,
    ax: Axes | None = None,
) -> Figure:
    """Bars of what adds to a logit: the `n` largest parts of the model, or every token of the text in order.

    Args:
        parts: from `direct_attribution`, or by gradients.
        labels: of the tokens; their ids unless given.
        n: how many parts.
        ax: an axis to draw into.
    """
    if isinstance(parts, TokenAttribution):
        names, values, total = (
            list(map(str, parts.tokens)) if labels is None else list(labels),
            parts.values.tolist(),
            parts.value,
        )
    else:
        largest = parts.largest(n)
        names, values, total = [name for name, _ in largest], [value for _, value in largest], parts.total
    ax = canvas(ax, 6, 1.2 + 0.24 * min(TICKS, len(names)))
    high, low = DIVERGING(0.1), DIVERGING(0.9)
    ax.barh(range(len(names)), values, color=[high if value >= 0 else low for value in values])
    label_axis(ax, "y", names, 8)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(title=f"what makes up {total:+.2f}", xlabel="contribution")
    return figure_of(ax)


def sweep(result: Sweep, labels: Sequence[str] | None = None, *, ax: Axes | None = None) -> Figure:
    """Layers downwards, positions or heads to the right; 0 is the corrupt text, 1 the clean one.

    Args:
        result: from `patch_positions` and its like; grey is what was not done.
        labels: of the columns, such as the tokens of the text.
        ax: an axis to draw into.
    """
    columns = result.columns if labels is None else labels
    if len(columns) != len(result.columns):
        raise ValueError(
            f"{counted(len(result.columns), 'columns')} cannot have {counted(len(columns), 'labels')}"
        )
    reach = max(1.0, float(result.values.nan_to_num().abs().max()))
    ax = canvas(ax, min(WIDEST, 2.2 + 0.5 * len(columns)), 1.6 + 0.32 * len(result.rows))
    image = heat(ax, result.values, DIVERGING.reversed(), -reach, reach)
    label_axis(ax, "x", columns, 8)
    label_axis(ax, "y", result.rows, 8)
    if len(columns) <= 25:
        for i, j in (~result.values.isnan()).nonzero().tolist():
            value = float(result.values[i, j])
            write(ax, image, j, i, value, f"{value:z.2f}", 7)  # z: never -0.00
    ax.set_title(result.title)
    figure_of(ax).colorbar(image, ax=ax)
    return figure_of(ax)


def surprisal(bits: Tensor, labels: Sequence[str], *, ax: Axes | None = None) -> Figure:
    """The text itself, each token on a colour that says how surprising it was (dark: much).

    Args:
        bits: (T,) from `surprisal`; NaN is left without colour.
        labels: of the tokens, as from `token_labels`.
        ax: an axis to draw into.
    """
    lines = _lines(labels)
    ax = canvas(ax, 9, 1.2 + 0.26 * (1 + lines[-1][1]))
    ax.set(xlim=(0, WIDTH_OF_TEXT), ylim=(lines[-1][1] + 1, 0))
    ax.set_axis_off()
    top = max(1.0, float(bits.nan_to_num().max()))
    image = ax.scatter([], [], c=[], cmap=SEQUENTIAL.reversed(), vmin=0, vmax=top)
    for value, label, (column, line) in zip(bits.tolist(), labels, lines, strict=True):
        known = value == value
        colour = colour_of(image, value) if known else WHITE
        width = len(printable(label))
        ax.fill_between([column, column + width], line + 0.05, line + 0.95, color=colour, linewidth=0)
        ax.text(
            column + width / 2, line + 0.5, printable(label), ha="center", va="center", fontsize=8,
            family="monospace", color=ink(colour), parse_math=False,
        )  # fmt: skip
    figure_of(ax).colorbar(image, ax=ax, label="bits")
    return figure_of(ax)


def head_statistics(statistics: HeadStatistics, *, ax: Axes | None = None) -> Figure:
    """Six small maps, layers downwards and heads to the right: entropy and distance to their largest, shares to 1.

    Args:
        statistics: from `minigpt.interp.head_statistics`.
        ax: an axis to draw into.
    """
    n_layer, n_head = statistics.entropy.shape
    ax = canvas(ax, max(8.0, 0.3 * 3 * n_head + 4), max(5.0, 0.3 * 2 * n_layer + 3))
    ax.set_axis_off()
    for i, field in enumerate(fields(statistics)):
        small = ax.inset_axes((i % 3 * 0.36, 0.58 - i // 3 * 0.58, 0.22, 0.38))
        values: Tensor = getattr(statistics, field.name)
        share = field.name not in ("entropy", "mean_distance")
        image = heat(small, values, SEQUENTIAL, 0, 1 if share else None, root=share)
        small.set_xticks(range(0, n_head, -(-n_head // 12)))
        small.set_yticks(range(0, n_layer, -(-n_layer // 12)))
        small.tick_params(labelsize=7)
        small.set_title(field.name.replace("_", " "), fontsize=9)
        small.set_xlabel("head", fontsize=7)
        small.set_ylabel("layer", fontsize=7)
        figure_of(ax).colorbar(image, cax=small.inset_axes((1.04, 0, 0.06, 1))).ax.tick_params(labelsize=7)
    return figure_of(ax)


def _lines(labels: Sequence[str]) -> list[tuple[int, int]]:
    """Column and line of each token, broken where a line is full or a line break was read.

    >>> _lines(["a", "⏎", "b"])
    [(0, 0), (1, 0), (0, 1)]
    """
    places, column, line = [], 0, 0
    for label in labels:
        width = len(printable(label))
        if column and column + width > WIDTH_OF_TEXT:
            column, line = 0, line + 1
        places.append((column, line))
        column += width
        if label.endswith("⏎"):
            column, line = 0, line + 1
    return places
