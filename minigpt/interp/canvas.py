"""What all pictures share: figures that notebooks show, colours that everybody can read, labels that fit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("pictures need matplotlib: pip install 'minigpt[plot]'") from error
import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.image import AxesImage
from torch import Tensor

Colour = tuple[float, float, float, float]  # red, green, blue, opacity: 0 to 1

SEQUENTIAL: Colormap = colormaps["cividis"]  # made for colour-blind readers; light is much
DIVERGING: Colormap = colormaps["PuOr"]  # white is nothing; distinct to all kinds of colour vision
NOTHING = "0.85"  # grey: what does not exist, or was not computed
TICKS = 40  # more labels than these on one axis are thinned out


class Picture(Figure):
    """A figure that shows itself in a notebook, made without pyplot: no screen is looked for, no state is kept."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=120)
        return data.getvalue()


def canvas(ax: Axes | None, width: float, height: float) -> Axes:
    """The axis that was given, or one in a new picture of this size (in inches)."""
    if ax is not None:
        return ax
    return Picture(figsize=(width, height), layout="constrained").add_subplot()


def figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def label_axis(ax: Axes, side: str, labels: Sequence[str], size: float) -> None:
    """Writes tokens beside the rows ("y") or below the columns ("x"); of very many only some, with their positions."""
    step = -(-len(labels) // TICKS)
    places = range(0, len(labels), step)
    texts = [printable(labels[i]) if step == 1 else f"{i} {printable(labels[i])}" for i in places]
    (ax.set_xticks if side == "x" else ax.set_yticks)(list(places), texts, fontsize=size)
    for text in ax.get_xticklabels() if side == "x" else ax.get_yticklabels():
        text.set_parse_math(False)  # a dollar is a dollar
        if side == "x":
            text.set(rotation=90)


def ink(colour: Colour) -> str:
    """Black or white, whichever has more contrast to a background: at least 4.5 to 1.

    Source: WCAG 2.2, relative luminance and contrast ratio.

    >>> ink((1.0, 1.0, 0.0, 1.0)), ink((0.0, 0.0, 0.4, 1.0))
    ('black', 'white')
    """
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


def heat(
    ax: Axes,
    values: Tensor,
    colours: Colormap,
    low: float = 0.0,
    high: float | None = None,
    *,
    root: bool = False,
    ground: str = NOTHING,
) -> AxesImage:
    """A matrix as colours, from `low` to `high` (or the largest value); what is NaN has the ground's colour.

    With `root` the colours are those of the square roots: where most values are small, they stay distinct.
    """
    shown = values.detach().float().cpu()
    top = max(float(shown.nan_to_num().max()), 1e-9) if high is None else high
    norm = PowerNorm(0.5, low, top) if root else Normalize(low, top)
    ax.set_facecolor(ground)
    return ax.imshow(shown.numpy(), cmap=colours, norm=norm, aspect="auto", interpolation="nearest")


def colour_of(image: ScalarMappable, value: float) -> Colour:
    r, g, b, a = image.to_rgba(np.array([value]))[0]
    return float(r), float(g), float(b), float(a)


def write(ax: Axes, image: ScalarMappable, x: float, y: float, value: float, text: str, size: float) -> None:
    """Writes into a cell, in ink that contrasts with its colour."""
    colour = ink(colour_of(image, value))
    ax.text(x, y, printable(text), ha="center", va="center", fontsize=size, color=colour, parse_math=False)


def printable(text: str) -> str:
    """With what the font does not have as code points."""
    return "".join(c if ord(c) in _font().get_charmap() else f"⟨{ord(c):X}⟩" for c in text)


@cache
def _font() -> FT2Font:
    return font_manager.get_font(font_manager.findfont(FontProperties()))
