"""Continuous batching: what is read, when, and in which rows; that texts stay the same is in test_many.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from fakes import tiny_gpt2

from minigpt import InvalidRequest
from minigpt.sampler import Greedy, Sample, generate
from minigpt.sampler.batches import continuously, decode_many, in_batches
from minigpt.sampler.engine import scheduler
from minigpt.sampler.engine.reader import SharedPrefix
from minigpt.sampler.engine.scheduler import in_one_pass
from minigpt.sampler.events import Failed, Finished, Request
from minigpt.sampler.requests import prepare

MODEL = tiny_gpt2(n_positions=64)
BEGIN = [(5 * i + 1) % 23 for i in range(20)]  # what prompts have in common


class Watched:
    """A model that notes the shape of everything that it reads."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, ...]] = []
        self.config, self.device, self.new_cache = MODEL.config, MODEL.device, MODEL.new_cache

    def next_logits(self, tokens: Any, cache: Any) -> Any:
        self.reads.append(tuple(tokens.shape))
        return MODEL.next_logits(tokens, cache)


def requests(prompts: Iterable[list[int]], max_new_tokens: int = 4) -> list[Request]:
    return prepare(MODEL, list(prompts), max_new_tokens=max_new_tokens, end_tokens=[])


def written(events: Iterable[Finished | Failed]) -> dict[int, list[int]]:
    return {e.prompt_index: e.completions[0].tokens for e in events if isinstance(e, Finished)}


def expected(asked: list[Request]) -> dict[int, list[int]]:
    groups = [generate(MODEL, [r.prompt], max_new_tokens=r.max_new_tokens, end_tokens=[])[0] for r in asked]
    return {i: best.tokens for i, (best,) in enumerate(groups)}


def test_rows_stay_full_as_long_as_there_are_prompts() -> None:
    model = Watched()
    asked = [requests([[i, i + 1]], n)[0] for i, n in enumerate([9, 2, 7, 1, 5, 6, 3, 8])]
    assert written(continuously(model, asked, Greedy(), 3)) == expected(asked)  # type: ignore[arg-type]
    steps = [rows for rows, n in model.reads if n == 1]
    assert steps == sorted(steps, reverse=True)  # fewer rows only when no prompt is left
    assert sum(steps) == sum(r.max_new_tokens - 1 for r in asked)  # nothing is read for nobody
    assert sum(rows for rows, n in model.reads if n == 2) == 8


def test_a_common_beginning_is_read_once() -> None:
    model = Watched()
    asked = requests([*BEGIN, i, i + 1] for i in range(6))
    assert written(continuously(model, asked, Greedy(), 6)) == expected(asked)  # type: ignore[arg-type]
    assert model.reads[:2] == [(1, 22), (5, 2)]


def test_a_beginning_is_found_in_the_text_that_is_replaced_and_in_what_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minigpt.sampler.batches.READ_AHEAD", 1)  # in their order
    model = Watched()
    (first,) = requests([BEGIN], 9)
    wrote = expected([first])[0]
    longer = requests([[*BEGIN, *wrote, 3]], 1)[0]
    asked = [first, *requests([[1, 2]], 40), longer, *requests([[*BEGIN, 4]], 1)]
    assert written(continuously(model, asked, Greedy(), 2)) == expected(asked)  # type: ignore[arg-type]
    assert [read for read in model.reads if read[1] > 1] == [(2, 20), (1, 2)]  # the last token was not read


def test_several_texts_of_a_prompt_read_it_once() -> None:
    model, how = Watched(), Sample(seed=1, num_return_sequences=4)
    asked = requests([BEGIN, BEGIN[::-1]], 5)
    found = {e.prompt_index: e for e in continuously(model, asked, how, 8)}  # type: ignore[arg-type]
    for i, request in enumerate(asked):
        (alone,) = generate(MODEL, [request.prompt], how, max_new_tokens=5, end_tokens=[])
        assert [text.tokens for text in found[i].completions] == [text.tokens for text in alone]  # type: ignore[union-attr]
    assert model.reads == [(2, 20), (6, 1), *[(8, 1)] * 4]


def test_sharing_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests(([*BEGIN[: i % 20], i % 23, 7] for i in range(30)), 6)
    shared = written(continuously(MODEL, asked, Greedy(), 7))
    monkeypatch.setattr(scheduler, "SHARED", 10**6)
    model = Watched()
    assert written(continuously(model, asked, Greedy(), 7)) == shared == expected(asked)  # type: ignore[arg-type]
    assert sum(rows for rows, n in model.reads) >= 30


def test_longer_texts_may_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.sampler.batches.READ_AHEAD", 4)
    asked = [requests([[i] * n], 5)[0] for i, n in enumerate([2, 3, 2, 1, 2, 55, 3, 60, 1, 9])]
    assert written(continuously(MODEL, asked, Greedy(), 2)) == expected(asked)


def test_the_room_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "SLACK", 1)
    asked = [requests([[i % 23, i % 7]], 1 + 5 * i % 17)[0] for i in range(40)]
    assert written(continuously(MODEL, asked, Greedy(), 3)) == expected(asked)


@pytest.mark.parametrize("decode", [continuously, in_batches])
def test_whatever_a_processor_raises_concerns_one_prompt(decode: Any) -> None:
    def refuse(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        if tokens[0, 0] == 9 and tokens.size(1) == 3:
            raise InvalidRequest("not this one")
        return logits

    asked = requests([[i, 5] for i in range(12)])
    events = list(decode(MODEL, asked, Greedy(processors=(refuse,)), 4))
    assert [str(e.error) for e in events if isinstance(e, Failed)] == ["not this one"]
    assert sorted(e.prompt_index for e in events) == list(range(12))
    assert written(events) == {i: tokens for i, tokens in expected(asked).items() if i != 9}


def test_rows_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = requests([[i] * n for i, n in enumerate([2, 9, *[3] * 10])])  # of the longest 12 tokens are read
    a_row = (12 + scheduler.SLACK) * MODEL.new_cache(1).nbytes
    for memory, rows in ((3 * a_row + 1, 3), (1, 1), (10**9, 12)):
        monkeypatch.setattr(scheduler, "CPU_MEMORY", memory)
        model = Watched()
        written(decode_many(model, asked, Greedy()))  # type: ignore[arg-type]
        assert max(n for n, _ in model.reads) == rows


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [([5, 90, 70, 40], [1, 2]), ([3, 3, 3], [0, 1, 2]), ([40, 90, 60], [1, 2]), ([4000, 4000], [0])],
)
def test_prompts_of_one_pass_are_of_like_length(lengths: list[int], chosen: list[int]) -> None:
    prompts = [(i,) * n for i, n in enumerate(lengths)]
    assert in_one_pass(prompts, [SharedPrefix()] * len(prompts)) == chosen


def test_generate_decodes_long_lists_so() -> None:
    prompts = [[i % 23, i % 7] for i in range(50)]
    model = Watched()
    groups = generate(model, prompts, max_new_tokens=3, end_tokens=[])  # type: ignore[arg-type]
    assert {i: group[0].tokens for i, group in enumerate(groups)} == expected(requests(prompts, 3))
    assert max(rows for rows, _ in model.reads) == scheduler.CPU_ROWS
    with pytest.raises(InvalidRequest, match="no token is left to choose after 2 prompt tokens"):
        generate(MODEL, prompts, Greedy(processors=(lambda logits, tokens: logits - float("inf"),)))
