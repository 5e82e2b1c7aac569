"""Many prompts in plain batches, one after the other: for strategies that do more than choose token after token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from minigpt.errors import InvalidRequest
from minigpt.sampler.api import run
from minigpt.sampler.events import Failed, Finished, LanguageModel, Request
from minigpt.sampler.strategy import Strategy

ROWS = 8  # prompts at once, unless it is said how many
READ_AHEAD = 256  # prompts: so many are at hand to be sorted, however many there are

Numbered = tuple[int, Request]


def in_batches(
    model: LanguageModel,
    requests: Iterable[Request | InvalidRequest],
    strategy: Strategy,
    rows_at_once: int | None = None,
) -> Iterator[Finished | Failed]:
    """Continues any number of prompts; `prompt_index` is a prompt's place among all of them.

    A prompt that is an error already fails with it. A batch in which one fails is decoded again one by one.
    """
    for numbered in longest_first(requests):
        batch: list[Numbered] = []
        for i, request in numbered:
            if isinstance(request, InvalidRequest):
                yield Failed(i, request)
            else:
                batch.append((i, request))
        rows = rows_at_once or ROWS
        for start in range(0, len(batch), rows):
            yield from _together(model, batch[start : start + rows], strategy)


def longest_first(
    requests: Iterable[Request | InvalidRequest],
) -> Iterator[list[tuple[int, Request | InvalidRequest]]]:
    """The requests with their numbers, block by block, in each of which those that take longest come first.

    What is alike in length is decoded side by side, and nobody is left alone with a long text at the end.
    """
    numbered = enumerate(requests)
    while block := list(islice(numbered, READ_AHEAD)):
        yield sorted(block, key=lambda entry: -_length(entry[1]))


def _length(request: Request | InvalidRequest) -> int:
    """How many tokens there will be at most."""
    return len(request.prompt) + request.max_new_tokens if isinstance(request, Request) else 0


def _together(
    model: LanguageModel, batch: Sequence[Numbered], strategy: Strategy
) -> Iterator[Finished | Failed]:
    done = set()
    try:
        for event in run(model, [request for _, request in batch], strategy):
            if isinstance(event, Finished):
                done.add(event.prompt_index)
                yield Finished(batch[event.prompt_index][0], event.completions)
    except InvalidRequest as error:
        if len(batch) == 1:
            yield Failed(batch[0][0], error)
            return
        for place, numbered in enumerate(batch):
            if place not in done:
                yield from _together(model, [numbered], strategy)
