"""Holding out a part of a text for validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from minigpt.data.token_file import TokenFile


def hold_out(tokens: TokenFile, fraction: float, seed: int) -> tuple[TokenFile, TokenFile]:
    """Splits a text into training and validation by whole documents; of a single one, the end is held out.

    Documents are held out in random order as long as they fit into the fraction; if none does, the shortest is.

    >>> from pathlib import Path
    >>> one = TokenFile(Path("."), np.arange(10), np.array([[0, 10]]), np.zeros(1), "")
    >>> [part.spans.tolist() for part in hold_out(one, 0.2, seed=0)]
    [[[0, 8]], [[8, 10]]]
    """
    spans, n = tokens.spans, tokens.n_tokens
    wanted = min(max(1, round(fraction * n)), n - 1)
    if len(spans) == 1:
        (begin, end) = spans[0]
        cut, whole = end - wanted, replace(tokens, digests=tokens.digests[:0])  # neither part is the document
        return replace(whole, spans=np.array([[begin, cut]])), replace(whole, spans=np.array([[cut, end]]))
    sizes = spans[:, 1] - spans[:, 0]
    held = np.zeros(len(spans), dtype=bool)
    for i in np.random.default_rng(seed).permutation(len(spans)):
        if sizes[i] <= wanted:  # never more than the fraction: one long document could exceed it many times
            held[i], wanted = True, wanted - sizes[i]
    if not held.any():
        held[np.argmin(sizes)] = True
    train, validation = (
        replace(tokens, spans=spans[part], digests=tokens.digests[part]) for part in (~held, held)
    )
    return train, validation
