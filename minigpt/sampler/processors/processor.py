"""What a logits processor is, and what it may know of the text that it acts on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from minigpt.errors import InvalidRequest
from minigpt.lazy import Tensor, torch
from minigpt.sampler.events import Request

Processor = Callable[["Tensor", "Tensor"], "Tensor"]  # (logits (B, V), tokens (B, S)) -> logits (B, V)
RULED_OUT = float("-inf")


@dataclass(frozen=True)
class TextContext:
    """The text, or the beams of one prompt, that a chain of processors acts on."""

    request: Request
    index: int = 0  # which of its prompt's texts
    keep: int = 1  # how many tokens a cut-off leaves at least

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt)

    @property
    def end_tokens(self) -> frozenset[int]:
        return self.request.end_tokens


class Stage(Protocol):
    """A class of processors, as `order.ORDER` lists them: it knows its options, and what they ask for."""

    options: ClassVar[type]

    @classmethod
    def for_text(cls, options: Any, context: TextContext) -> Iterator[Processor]:
        """The processors that these options ask for, of one text: mostly one or none."""


@dataclass(frozen=True)
class Checked:
    """A processor brought along by the caller: it gets copies, and must return what a processor returns."""

    processor: Processor

    @property
    def __name__(self) -> str:
        return name_of_stage(self.processor)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        out = self.processor(logits.clone(), tokens.clone())
        if not isinstance(out, torch.Tensor):
            given = "None" if out is None else f"an object of class {type(out).__name__}"
        elif out.shape != logits.shape or not out.is_floating_point():
            given = f"{str(out.dtype).removeprefix('torch.')} of shape {tuple(out.shape)}"
        else:
            return out
        raise InvalidRequest(
            f"the processor {self.__name__} returned {given}: it must return logits of shape {tuple(logits.shape)}"
        )


def name_of_stage(processor: Processor) -> str:
    """What a trace calls a processor: a function's own name, or that of its class."""
    name: str = getattr(processor, "__name__", type(processor).__name__)
    return name
