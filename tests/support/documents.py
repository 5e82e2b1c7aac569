"""Token files that hold what is easily told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minigpt.data.token_file import TokenFile


def documents(lengths: list[int]) -> TokenFile:
    """Documents whose tokens are all different: token i is i."""
    ends = np.cumsum(lengths)
    spans = np.stack([ends - lengths, ends], axis=1)
    return TokenFile(Path(), np.arange(sum(lengths), dtype=np.uint16), spans, np.arange(len(lengths)), "")
