"""Which tokens processors and grammars leave to choose from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minigpt.sampler.grammar import Grammar


def kept(logits: Tensor) -> list[list[int]]:
    """The tokens of each row that are not ruled out: (B, V)."""
    return [[token for token, logit in enumerate(row) if logit > float("-inf")] for row in logits.tolist()]


def allowed(mask: Tensor) -> list[int]:
    """The tokens that a mask (V,) has True for."""
    return mask.nonzero()[:, 0].tolist()


def regex(pattern: str, token_bytes: Sequence[bytes | None]) -> Grammar:
    return Grammar("regex", pattern, token_bytes)


def spelled(tokens: Sequence[int], token_bytes: Sequence[bytes | None]) -> str:
    return b"".join(token_bytes[token] or b"" for token in tokens).decode()
