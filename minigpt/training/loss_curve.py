"""The loss curve of a run as a picture (matplotlib, the extra `plot`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minigpt.atomic import all_or_none


def loss_curve(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draws training and validation loss by step, as a PNG.

    Args:
        lines: a run's metrics: `step` and `loss`, at some steps `val_loss`.
        path: where to write it.
    """
    lines = list(lines)
    checked = [line for line in lines if "val_loss" in line]
    figure = Figure(figsize=(8, 4.5), layout="constrained")  # no pyplot: it needs a display backend
    axes = figure.add_subplot()
    steps = [line["step"] for line in lines]
    axes.plot(
        steps, [line["loss"] for line in lines], color="0.75", linewidth=0.8, label="training, each step"
    )
    axes.plot(steps, _smooth([line["loss"] for line in lines]), label="training, smoothed")
    axes.plot(
        [line["step"] for line in checked],
        [line["val_loss"] for line in checked],
        "o-",
        markersize=3,
        label="validation",
    )
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    with all_or_none(path.parent) as aside:
        figure.savefig(aside / path.name, dpi=120)


def _smooth(values: list[float]) -> list[float]:
    """Each value's mean with its neighbours, as many on either side, so that the curve does not lag behind.

    >>> _smooth([1.0, 2.0, 6.0])  # of few values, each is alone
    [1.0, 2.0, 6.0]
    """
    reach = len(values) // 100
    sums = [0.0, *accumulate(values)]

    def mean(i: int) -> float:
        near = min(reach, i, len(values) - 1 - i)
        return (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)

    return [mean(i) for i in range(len(values))]
