"""Texts for many prompts, each as soon as it is done: `complete_many`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, Protocol, TypeVar, Unpack

from minigpt.errors import InvalidRequest
from minigpt.json_files import shown
from minigpt.sampler.batches import decode_many
from minigpt.sampler.engine.second_model import check_second_model
from minigpt.sampler.events import Completion, Failed, Finished, LanguageModel, Request
from minigpt.sampler.requests import Lengths, Limits, checked_strategy, prepare
from minigpt.sampler.running import with_sliding_window
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.text import TextTokenizer, check_tokenizer, healer, prompt_ids, stop_test, with_text


class Row(Protocol):
    """One prompt of many; `minigpt.data.prompt_rows.PromptRow` is one. What is None is as for all."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def max_new_tokens(self) -> int | None: ...
    @property
    def seed(self) -> int | None: ...


R = TypeVar("R", bound=Row)
NO_ROW = 'rows are an iterable of minigpt.PromptRow(id="1", prompt="...")'


@dataclass(frozen=True)
class Answer(Generic[R]):
    """What became of one row: its completions, best first, or the reason why it has none."""

    row: R
    request: Request | None = None  # in token ids; None where the prompt cannot be encoded, or does not fit
    completions: list[Completion] = field(default_factory=list)
    error: InvalidRequest | None = None


def complete_many(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    rows: Iterable[R],
    strategy: Strategy | None = None,
    *,
    rows_at_once: int | None = None,
    stop: Sequence[str] = (),
    allow_special: bool = False,
    heal: bool = False,
    stride: int | None = None,
    **lengths: Unpack[Lengths],
) -> Iterator[Answer[R]]:
    """Continues the prompts of many rows; yields what became of each as soon as it is known.

    Each row's text is the one that it would have alone: it does not depend on the other rows, their order or
    `rows_at_once`. Random numbers follow from the seed and the row's id. Rows are read as they are needed,
    so there may be any number of them. A row that fails does not disturb the others.

    Args:
        model, tokenizer: as `minigpt.load` returns them.
        rows: prompts with their ids, each a `minigpt.PromptRow`.
        strategy: greedy decoding unless given.
        rows_at_once: how many texts are decoded side by side; as many as pay off unless given.
        stop, allow_special, heal, stride, lengths: as for `minigpt.complete`; `max_new_tokens` is for rows that
            do not have their own.

    Raises:
        InvalidRequest: an argument cannot be used.

    >>> import minigpt
    >>> from minigpt import PromptRow
    >>> model, tokenizer = minigpt.load()
    >>> rows = [PromptRow("a", "Once upon a time"), PromptRow("b", "The king", max_new_tokens=3)]
    >>> for answer in complete_many(model, tokenizer, rows, max_new_tokens=5):
    ...     print(answer.row.id, len(answer.completions[0].tokens))
    b 3
    a 5
    """
    others = ("stride", "heal", "allow_special", "rows_at_once")
    strategy = checked_strategy("complete_many", model, strategy, lengths, others)
    check_tokenizer("complete_many", tokenizer)
    if isinstance(rows, str) or not isinstance(rows, Iterable):
        raise InvalidRequest(f"{NO_ROW}, got {shown(rows)}")
    if rows_at_once is not None and rows_at_once < 1:
        raise InvalidRequest(f"rows_at_once must be at least 1, got {rows_at_once}")
    stops = stop_test(stop, tokenizer)
    model = with_sliding_window(model, lengths.get("overflow", "error"), stride)
    limits: Limits = {**lengths, "stop": stops.completed if stop else None}
    prepare(model, [], **limits)  # what is wrong with the limits is no row's fault
    for second in strategy.models():
        check_second_model(model, second, [Request((0,), max_new_tokens=1)])
    healed = healer(model, tokenizer, stops) if heal else None

    def to_request(row: R) -> Request:
        request = _request(row, model, tokenizer, allow_special, limits)
        return healed(request) if healed else request

    decode = partial(decode_many, model, strategy=strategy, rows_at_once=rows_at_once)
    return (
        replace(answer, completions=[with_text(text, tokenizer, stops) for text in answer.completions])
        for answer in _answers(rows, to_request, decode)
    )


def _answers(
    rows: Iterable[R],
    to_request: Callable[[R], Request],
    decode: Callable[[Iterable[Request | InvalidRequest]], Iterator[Finished | Failed]],
) -> Iterator[Answer[R]]:
    """What became of each row, whose text is still in token ids; the error for what is no row comes after those before it."""
    at_work: dict[int, tuple[R, Request | InvalidRequest]] = {}
    no_row: InvalidRequest | None = None

    def requests() -> Iterator[Request | InvalidRequest]:
        nonlocal no_row
        for i, row in enumerate(rows):
            if not all(hasattr(row, name) for name in ("id", "prompt", "max_new_tokens", "seed")):
                no_row = InvalidRequest(f"{NO_ROW}, got {shown(row)}")
                return
            try:
                request: Request | InvalidRequest = to_request(row)
            except InvalidRequest as error:
                request = error
            at_work[i] = row, request
            yield request

    for event in decode(requests()):
        row, request = at_work.pop(event.prompt_index)
        known = request if isinstance(request, Request) else None
        if isinstance(event, Finished):
            yield Answer(row, known, event.completions)
        else:
            yield Answer(row, known, error=event.error)
    if no_row:
        raise no_row


def _request(
    row: Row, model: LanguageModel, tokenizer: TextTokenizer, allow_special: bool, limits: Limits
) -> Request:
    if row.max_new_tokens is not None:
        limits = {**limits, "max_new_tokens": row.max_new_tokens}
    (request,) = prepare(model, [prompt_ids(row.prompt, tokenizer, allow_special)], **limits)
    return replace(request, id=row.id, seed=row.seed)
