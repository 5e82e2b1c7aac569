"""MAUVE: how near generated texts are to human ones, by the features that a model has of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def mauve(human: Tensor, generated: Tensor) -> float:
    """How near the distribution of generated texts is to that of human ones: 0 is far, 1 the same.

    Clusters both and compares how full the clusters are, so it needs texts in the hundreds to mean much.
    With the package mauve-text, of the extra `compare`.

    Shapes: (texts, features) each; a feature vector is what a model thinks at the end of the text

    Source: Pillutla et al. 2021, "MAUVE: Measuring the Gap Between Neural Text and Human Text".
    """
    from mauve import compute_mauve  # type: ignore[import-untyped]  # an optional package

    if bool((human == human[0]).all() and (generated == human[0]).all()):
        return 1.0  # all are equal, and the package would divide by zero
    with _silent_stderr():
        result = compute_mauve(p_features=human.cpu().numpy(), q_features=generated.cpu().numpy())
    return float(result.mauve)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """The clustering warns of few texts, from C++, at every call."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
