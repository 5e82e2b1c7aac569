"""Progress bars for long work: on a terminal only, and nothing where stderr goes to a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# The bar of the hub's client, so that the same environment variable (HF_HUB_DISABLE_PROGRESS_BARS) governs all.
from huggingface_hub.utils.tqdm import tqdm


def bar(iterable: Iterable[Any] | None = None, **how: Any) -> Any:
    """A tqdm bar, around something to go through, or to be moved by `update`.

    >>> list(bar(range(3)))  # no terminal, no bar
    [0, 1, 2]
    """
    return tqdm(iterable, disable=None, **how)  # type: ignore[no-untyped-call]  # None asks whether it is a terminal
