"""Processors of your own, between the penalties and the temperature."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from minigpt.options import Kind, option
from minigpt.sampler.processors.processor import Checked, Processor, TextContext


def _all_callable(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(map(callable, value))


@dataclass(frozen=True, kw_only=True)
class CustomOptions:
    """Logits processors that the caller brings along, for every strategy."""

    processors: tuple[Processor, ...] = option(
        (), "your own logits processors, after the penalties and before the temperature: functions (logits (B, V),"
        " tokens (B, S)) -> logits (B, V)",
        group=None, kind=Kind("a tuple of callables", _all_callable),
    )  # fmt: skip


class Custom:
    """The place of the caller's own processors in the order."""

    options: ClassVar[type] = CustomOptions

    @classmethod
    def for_text(cls, options: CustomOptions, context: TextContext) -> Iterator[Processor]:
        return map(Checked, options.processors)
