"""What a processor is, and how it is watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minigpt.errors import InvalidRequest

Processor = Callable[[Tensor, Tensor], Tensor]  # (logits (B, V), tokens (B, S)) -> logits (B, V)
RULED_OUT = float("-inf")


def require(holds: bool, name: str, value: Any, limit: str) -> None:
    if not holds:
        raise InvalidRequest(f"{name} must be {limit}, got {value}")


def unchanged(logits: Tensor, tokens: Tensor) -> Tensor:
    """The step before all others: what there was to begin with."""
    return logits


@dataclass(frozen=True)
class Watched:
    """A processor that tells what it did, row by row."""

    processor: Processor
    watch: Callable[[tuple[int, ...], str, Tensor, Tensor], None]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        out = self.processor(logits, tokens)
        name = getattr(self.processor, "__name__", type(self.processor).__name__)
        for text, before, after in zip(tokens.tolist(), logits, out, strict=True):
            self.watch(tuple(text), name, before, after)
        return out
