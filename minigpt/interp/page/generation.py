"""The text that a page shows: a prompt, and what a strategy makes of it, with all that it reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from minigpt.cli.progress import late_bar
from minigpt.errors import InvalidRequest
from minigpt.model import GPT2
from minigpt.sampler.events import Completion, Finished, Request, TokenGenerated
from minigpt.sampler.lattice import Lattice
from minigpt.sampler.requests import prepare
from minigpt.sampler.running import run
from minigpt.sampler.strategies.greedy import Greedy
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.text import prompt_ids
from minigpt.tokenizer import Tokenizer

USUAL_LENGTH = 20  # new tokens, where the context has room for them
Overflow = Literal["error", "truncate", "stop"]
OVERFLOWS = get_args(Overflow)


@dataclass(frozen=True)
class Asked:
    """What is to be written after a prompt, and how.

    `max_new_tokens` of 0 shows the prompt alone; None is 20, or what fits the context length.
    """

    strategy: Strategy = field(default_factory=Greedy)
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    overflow: Overflow = "error"
    allow_special: bool = False

    def __post_init__(self) -> None:
        if self.strategy.n_texts != 1:
            raise InvalidRequest(
                f"num_return_sequences (--num-return-sequences) must be 1, got {self.strategy.n_texts}: a page shows"
                " one text, and all beams that were looked at for it"
            )
        if self.overflow not in OVERFLOWS:
            raise InvalidRequest(
                f"overflow={self.overflow!r} is not for a page, which shows one context: use {', '.join(OVERFLOWS)}"
            )
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            raise InvalidRequest(
                f"max_new_tokens (--max-new-tokens) must be at least 0, got {self.max_new_tokens}"
            )


@dataclass(frozen=True)
class Written:
    """A prompt and what came after it."""

    prompt: str
    request: Request
    completion: Completion | None  # None: nothing was asked for
    beams: Lattice | None

    @property
    def tokens(self) -> list[int]:
        """Prompt and new tokens."""
        return [*self.request.prompt, *(self.completion.tokens if self.completion else ())]


def prepared(model: GPT2, tokenizer: Tokenizer, prompt: str, asked: Asked) -> Request:
    """The prompt's tokens and limits, checked.

    Raises:
        PromptTooLong: prompt and new tokens do not fit the context length.
        InvalidRequest: the prompt cannot be encoded.
    """
    ids, n_new = prompt_ids(prompt, tokenizer, asked.allow_special), asked.max_new_tokens
    if n_new is None:
        room = (
            model.config.n_positions
            if asked.overflow == "truncate"
            else model.config.n_positions - len(ids) + 1
        )
        n_new = max(1, min(USUAL_LENGTH, room))
    (request,) = prepare(
        model, [ids], max_new_tokens=max(1, n_new), overflow=asked.overflow, trace=True,
        stop=tokenizer.stop_strings(*asked.stop).completed if asked.stop else None,
    )  # fmt: skip
    return request


def write(model: GPT2, prompt: str, request: Request, asked: Asked) -> Written:
    """Continues a prompt with a strategy.

    Raises:
        InvalidRequest: the options rule out every token.
    """
    if asked.max_new_tokens == 0:
        return Written(prompt, request, None, None)
    beams = Lattice([request.prompt])
    completions: Sequence[Completion] = ()
    with late_bar(total=request.max_new_tokens, unit="tok", desc="text") as bar:
        for event in run(model, [request], asked.strategy):
            beams.take(event)
            if isinstance(event, TokenGenerated):
                bar.update()
            elif isinstance(event, Finished):
                completions = event.completions
    return Written(prompt, request, completions[0], beams if beams.steps[0] else None)
