"""What two texts begin with alike."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike.

    >>> common_prefix([5, 6, 7], [5, 6, 9, 7]), common_prefix([5], [5, 6])
    (2, 1)
    """
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))
