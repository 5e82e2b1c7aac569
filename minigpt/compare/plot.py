"""Decoding methods as points in a picture: quality against diversity (matplotlib, the extra `plot`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure

from minigpt.atomic import all_or_none


def quality_and_diversity(
    points: Mapping[str, tuple[float, float]], human: tuple[float, float] | None, path: Path
) -> None:
    """Draws decoding methods by how varied and how surprising their texts are, as a PNG.

    Args:
        points: for each method, distinct-2 and perplexity.
        human: the same of human texts, if there are any: lines that cross at them.
        path: where to write it.
    """
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.add_subplot()
    if human is not None:
        axes.axvline(human[0], color="0.6", linewidth=0.8, linestyle="--")
        axes.axhline(human[1], color="0.6", linewidth=0.8, linestyle="--")
        axes.plot(*human, "kX", markersize=11, label="human")
    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]  # a list of colours has them
    for i, (name, point) in enumerate(points.items()):
        colour, marker = colours[i % len(colours)], "osD^v"[i // len(colours) % 5]
        axes.plot(*point, marker, color=colour, markersize=7, label=name)
    axes.set(xlabel="distinct-2: more varied →", ylabel="perplexity: more surprising →", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper", frameon=False)
    with all_or_none(path.parent) as aside:
        figure.savefig(aside / path.name, dpi=120)
