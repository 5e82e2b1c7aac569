"""Many prompts: by continuous batching if the strategy can do that, or else in plain batches, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from minigpt.errors import InvalidRequest
from minigpt.sampler.engine.evaluation_mode import in_evaluation_mode
from minigpt.sampler.engine.scheduler import Scheduler, rows_and_memory
from minigpt.sampler.events import Failed, Finished, LanguageModel, Request
from minigpt.sampler.running import check_and_complete, run
from minigpt.sampler.strategy import Strategy

ROWS = 8  # prompts at once, unless it is said how many
NO_LIMIT = 1 << 63  # bytes
READ_AHEAD = 256  # prompts: so many are at hand to be sorted, however many there are

Numbered = tuple[int, Request]


def decode_many(
    model: LanguageModel,
    requests: Iterable[Request | InvalidRequest],
    strategy: Strategy,
    rows_at_once: int | None = None,
) -> Iterator[Finished | Failed]:
    """Continues any number of prompts; `prompt_index` is a prompt's place among all of them.

    A prompt that is an error already fails with it.
    """
    # The memory of a sliding window, or of a model of another make, may have no rows that can be replaced.
    continuous = strategy.row_reader(model) is not None and hasattr(model.new_cache(1), "replace_rows")
    decode = continuously if continuous else in_batches
    return decode(model, requests, strategy, rows_at_once)


def continuously(
    model: LanguageModel,
    requests: Iterable[Request | InvalidRequest],
    strategy: Strategy,
    rows_at_once: int | None,
) -> Iterator[Finished | Failed]:
    """As `decode_many`, with a strategy that has a row reader; see `minigpt.sampler.engine.scheduler`.

    Where a prompt fails in an unforeseen way, those beside it are decoded again one by one.
    """
    numbered = chain.from_iterable(longest_first(requests))
    models = [model, *(second.model for second in strategy.models())]
    at_work: dict[int, Request] = {}

    def noted() -> Iterator[tuple[int, Request | InvalidRequest]]:
        for i, request in numbered:
            if isinstance(request, Request):
                at_work[i] = request
                try:
                    request = check_and_complete(model, request, strategy)
                except InvalidRequest as error:
                    request = error
            yield i, request

    rows, memory = rows_and_memory(model.device) if rows_at_once is None else (rows_at_once, NO_LIMIT)
    while True:
        reader = strategy.row_reader(model)
        assert reader is not None
        try:
            for event in in_evaluation_mode(models, Scheduler(reader, strategy, rows, memory).run(noted())):
                at_work.pop(event.prompt_index, None)
                yield event
        except InvalidRequest:
            yield from _one_by_one(model, at_work, strategy)
            at_work.clear()
        else:
            return


def in_batches(
    model: LanguageModel,
    requests: Iterable[Request | InvalidRequest],
    strategy: Strategy,
    rows_at_once: int | None,
) -> Iterator[Finished | Failed]:
    """As `decode_many`, with any strategy. A batch in which a prompt fails is decoded again one by one."""
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

    So texts of like length are decoded side by side, and no long one is left to be decoded alone at the end.
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
    left = dict(batch)
    try:
        for event in run(model, [request for _, request in batch], strategy):
            if isinstance(event, Finished):
                i, _ = batch[event.prompt_index]
                del left[i]
                yield Finished(i, event.completions)
    except InvalidRequest as error:
        if len(batch) == 1:
            yield Failed(batch[0][0], error)
        else:
            yield from _one_by_one(model, left, strategy)


def _one_by_one(
    model: LanguageModel, requests: Mapping[int, Request], strategy: Strategy
) -> Iterator[Finished | Failed]:
    """Prompts one of which has failed beside the others: alone, each shows whether it is the one."""
    for numbered in requests.items():
        yield from _together(model, [numbered], strategy)
