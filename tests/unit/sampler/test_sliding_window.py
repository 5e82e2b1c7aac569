"""A sliding window against the same rule by hand: crop the text, read it anew, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from fakes import FakeModel, counting, scrambled, tiny_gpt2
from torch import Tensor

from minigpt import GPT2
from minigpt.sampler import Beam, BeamSample, Greedy, Sample, Strategy, generate, stream
from minigpt.sampler.api import run
from minigpt.sampler.engine.sliding_window import Cost, Sliding
from minigpt.sampler.events import Completion
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.contrastive import Contrastive
from minigpt.sampler.strategies.diverse_beam import DiverseBeam
from minigpt.sampler.strategies.dola import DoLa
from minigpt.sampler.strategies.prompt_lookup import PromptLookup
from minigpt.sampler.strategies.speculative import Speculative

WINDOW = 8
STRIDES = [1, 3, 4, 8]
GPT = tiny_gpt2(n_positions=WINDOW)
LONG = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1]  # longer than the window
PROMPTS = [[1, 2, 3], [4], LONG, [0, 0, 3, 0, 2, 2, 2], [4]]
STRATEGIES: list[Strategy] = [
    Greedy(),
    Greedy(repetition_penalty=1.8, no_repeat_ngram_size=2),
    Sample(seed=1, num_return_sequences=2, top_p=0.9),
    Beam(num_beams=3, num_return_sequences=3),
    BeamSample(num_beams=3, seed=1, temperature=1.3),
]
EACH = pytest.mark.parametrize("strategy", STRATEGIES, ids=range(len(STRATEGIES)))


def seen(text: Sequence[int], stride: int, window: int = WINDOW) -> list[int]:
    """What the model sees of a text, from the rule's words: the first start, in strides, that makes it fit."""
    start = next(start for start in range(0, len(text), stride) if len(text) - start <= window)
    return list(text[start:])


class Cropped(FakeModel):
    """The oracle: remembers the text alone and has the model read what it sees of it, row by row, every time."""

    def __init__(self, model: GPT2, stride: int) -> None:
        def rule(text: tuple[int, ...]) -> list[float]:
            if not text:  # padding
                return [0.0] * model.config.vocab_size
            with torch.inference_mode():
                logits: list[float] = model(torch.tensor([seen(text, stride)]))[0, -1].tolist()
            return logits

        super().__init__(scrambled(model.config.vocab_size), n_positions=10_000)
        self.rule = rule


def by_hand(prompts: list[list[int]], strategy: Strategy, stride: int, n: int) -> list[list[Completion]]:
    return generate(Cropped(GPT, stride), prompts, strategy, max_new_tokens=n)


def same(batch: list[list[Completion]], other: list[list[Completion]]) -> None:
    assert [[t.tokens for t in group] for group in batch] == [[t.tokens for t in group] for group in other]
    for group, twin in zip(batch, other, strict=True):
        for text, its in zip(group, twin, strict=True):
            assert text.logprobs == pytest.approx(its.logprobs, abs=1e-4)


@EACH
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_texts_are_those_of_the_rule_by_hand(strategy: Strategy, stride: int) -> None:
    """Unequal prompts side by side, some longer than the window, and texts twice as long as it."""
    limits: dict[str, Any] = {"max_new_tokens": 2 * WINDOW, "overflow": "slide", "stride": stride}
    same(generate(GPT, PROMPTS, strategy, **limits), by_hand(PROMPTS, strategy, stride, 2 * WINDOW))


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize(
    "strategy",
    [
        PromptLookup(num_draft_tokens=5),
        Speculative(draft=tiny_gpt2(seed=1, n_positions=99), num_draft_tokens=5),
        Speculative(draft=GPT, num_draft_tokens=5),
    ],
    ids=["lookup", "wrong drafts", "right drafts"],
)
def test_drafts_change_nothing(strategy: Strategy, stride: int) -> None:
    """Of texts side by side differently many guesses hold, so their ends have to be brought together again."""
    limits: dict[str, Any] = {"max_new_tokens": 30, "overflow": "slide", "stride": stride}
    same(generate(GPT, PROMPTS, strategy, **limits), generate(GPT, PROMPTS, **limits))


@pytest.mark.parametrize("strategy", [Contrastive(), DoLa()], ids=["contrastive", "dola"])
def test_strategies_that_look_at_hidden_states(strategy: Strategy) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 20, "overflow": "slide", "stride": 3}
    batch = generate(GPT, PROMPTS, strategy, **limits)
    same(batch, [generate(GPT, [prompt], strategy, **limits)[0] for prompt in PROMPTS])
    assert len({text.tokens[-1] for (text,) in batch}) > 1


@pytest.mark.parametrize("ends", [[2, 13, 17], [3, 4, 5, 6, 7]])
def test_texts_that_end_early_leave_the_others_alone(ends: list[int]) -> None:
    """Rows leave the batch at different times, the one that began first among them."""
    for seed, stride in product(range(2), [1, 4]):
        strategy = Sample(seed=seed, temperature=3.0)
        limits: dict[str, Any] = {"max_new_tokens": 20, "end_tokens": ends}
        batch = generate(GPT, PROMPTS, strategy, overflow="slide", stride=stride, **limits)
        same(batch, generate(Cropped(GPT, stride), PROMPTS, strategy, **limits))


@pytest.mark.parametrize("stride", STRIDES)
def test_logits_are_those_of_the_cropped_text_at_every_length(stride: int) -> None:
    tokens = torch.randint(23, (1, 40), generator=torch.Generator().manual_seed(0))
    sliding = Sliding(GPT, stride)
    cache = sliding.new_cache(40)
    for n in range(1, 41):
        with torch.inference_mode():
            logits = sliding.next_logits(tokens[:, n - 1 : n], cache)
        crop = (
            tokens[:, :n][:, -WINDOW:]
            if stride == 1
            else torch.tensor([seen(tokens[0, :n].tolist(), stride)])
        )
        torch.testing.assert_close(logits, GPT(crop)[:, -1].detach(), atol=1e-5, rtol=1e-4)


def whole(tokens: Tensor, pads: list[int], stride: int) -> Tensor:
    """The hidden_states at every column, each computed by itself: (B, T, D), 0 at padding."""
    out = torch.zeros(*tokens.shape, GPT.config.n_embd)
    for row, pad in enumerate(pads):
        for end in range(pad + 1, tokens.size(1) + 1):
            crop = torch.tensor([seen(tokens[row, pad:end].tolist(), stride)])
            out[row, end - 1] = GPT.hidden_states(crop, GPT.new_cache(WINDOW))[0, -1]
    return out


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("sizes", [[30], [1, 29], [7, 1, 4, 9, 9], [8, 8, 8, 6]])
def test_a_trunk_over_several_tokens_is_split_where_the_window_moves(stride: int, sizes: list[int]) -> None:
    """With padding, and read in pieces of all sizes; the residuals are the same at their last layer."""
    tokens, pads = torch.randint(23, (3, 30), generator=torch.Generator().manual_seed(1)), [0, 5, 13]
    with torch.inference_mode():
        wanted = whole(tokens, pads, stride)
        sliding = Sliding(GPT, stride)
        caches = [sliding.new_cache(30, rows=3, pad=torch.tensor(pads)) for _ in range(2)]
        got = torch.cat([sliding.hidden_states(piece, caches[0]) for piece in tokens.split(sizes, 1)], 1)
        streams = torch.cat([sliding.lens_states(piece, caches[1]) for piece in tokens.split(sizes, 1)], 2)
    for row, pad in enumerate(pads):
        torch.testing.assert_close(got[row, pad:], wanted[row, pad:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(streams[-1, row, pad:], wanted[row, pad:], atol=1e-4, rtol=1e-4)
    assert len(streams) == GPT.config.n_layer + 1


@pytest.mark.parametrize("stride", STRIDES)
def test_rewinding_and_selecting_leave_no_trace(stride: int) -> None:
    """Drafts that are rejected, across moves of the window in both directions."""
    chance = torch.Generator().manual_seed(2)
    sliding, pads = Sliding(GPT, stride), [0, 3]
    cache, tokens = sliding.new_cache(60, rows=2, pad=torch.tensor(pads)), torch.empty(2, 0, dtype=torch.long)
    with torch.inference_mode():
        for _ in range(15):
            new = torch.randint(23, (2, int(torch.randint(1, 9, (), generator=chance))), generator=chance)
            got = sliding.hidden_states(new, cache)
            tokens = torch.cat([tokens, new], 1)
            wanted = whole(tokens, pads, stride)[:, -new.size(1) :]
            for row, pad in enumerate(pads):
                from_ = max(0, pad - (tokens.size(1) - new.size(1)))
                torch.testing.assert_close(got[row, from_:], wanted[row, from_:], atol=1e-4, rtol=1e-4)
            length = max(0, tokens.size(1) - int(torch.randint(0, 14, (), generator=chance)))
            cache.rewind(length)
            rows = [[0, 1], [1, 0], [0, 0]][int(torch.randint(0, 3, (), generator=chance))]
            cache.select(rows)
            tokens, pads = tokens[rows, :length], [pads[row] for row in rows]
            if length > 30:
                cache.rewind(2)
                tokens = tokens[:, :2]
            assert cache.length == tokens.size(1)


def test_a_cache_cannot_be_rewound_to_what_it_never_held() -> None:
    cache = Sliding(GPT).new_cache(9)
    with pytest.raises(ValueError, match=r"^cannot rewind to 1: the cache holds 0 tokens$"):
        cache.rewind(1)


def test_within_the_window_nothing_slides() -> None:
    sliding = Sliding(GPT, 3)
    requests = prepare(sliding, [[1, 2, 3], [4]], max_new_tokens=WINDOW - 2)
    assert generate(GPT, [[1, 2, 3], [4]], max_new_tokens=WINDOW - 2) == [
        event.completions for event in run(sliding, requests, Greedy()) if hasattr(event, "completions")
    ]
    assert sliding.cost == Cost(0, 0)


def test_the_cost_is_what_is_read_again() -> None:
    """Window 8, stride 4, 1 + 20 tokens: it moves at 9, 13 and 17 of the 20 tokens read, each time past 4."""
    model = FakeModel(counting(10), n_positions=WINDOW)
    sliding = Sliding(model)
    list(run(sliding, prepare(sliding, [[1]], max_new_tokens=20), Greedy()))
    assert sliding.cost == Cost(slides=3, tokens_again=3 * 4)
    assert sum(width for _, width in model.reads) == 20 + 3 * 4


def test_a_long_prompt_is_read_at_its_end_only() -> None:
    model = FakeModel(counting(10), n_positions=WINDOW)
    assert list(stream(model, [0] * 999 + [1], max_new_tokens=3, overflow="slide", stride=4)) == [2, 3, 4]
    assert model.reads == [(1, WINDOW), (1, 5), (1, 1)]


@pytest.mark.parametrize("stride", [0, -1, WINDOW + 1])
def test_a_stride_must_be_within_the_window(stride: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^stride must be a whole number from 1 to the model's context length of 8, got {stride}$",
    ):
        generate(GPT, [[1]], overflow="slide", stride=stride)


def test_a_stride_without_sliding_is_a_mistake() -> None:
    with pytest.raises(
        ValueError, match=r"^stride=2 \(--stride\) has no effect with overflow=error: it is for slide"
    ):
        generate(GPT, [[1]], stride=2, max_new_tokens=1)


def test_the_default_stride_is_half_the_window() -> None:
    assert [Sliding(FakeModel(counting(3), n_positions=n)).stride for n in (1, 2, 7, 8)] == [1, 1, 3, 4]


def test_dropout_is_off_while_a_model_slides() -> None:
    model = tiny_gpt2(n_positions=WINDOW, embd_pdrop=0.5)
    wanted = generate(model, [[1]], max_new_tokens=20, overflow="slide")
    assert generate(model.train(), [[1]], max_new_tokens=20, overflow="slide") == wanted
    assert model.training


@pytest.mark.parametrize("strategy", [Contrastive(), DoLa(), PromptLookup(), Beam(num_beams=2)], ids=str)
def test_a_row_that_begins_behind_a_window_that_has_slid(strategy: Strategy) -> None:
    """Of prompts so unequal that the longest is read in pieces, the shortest is filling in the first ones."""
    prompts = [[i % 23 for i in range(3, 30)], [5], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], [7, 7]]
    limits: dict[str, Any] = {"max_new_tokens": 9, "overflow": "slide"}
    batch = generate(GPT, prompts, strategy, **limits)
    for prompt, group in zip(prompts, batch, strict=True):
        (alone,) = generate(GPT, [prompt], strategy, **limits)
        assert [text.tokens for text in group] == [text.tokens for text in alone]


@pytest.mark.parametrize("stride", [1, 4])
def test_groups_of_beams_read_no_more_than_as_many_beams(stride: int) -> None:
    costs = []
    for strategy in (Beam(num_beams=4), DiverseBeam(num_beams=4, num_beam_groups=4, num_return_sequences=2)):
        model = Sliding(GPT, stride)
        list(run(model, prepare(model, PROMPTS, max_new_tokens=15, overflow="slide"), strategy))
        costs.append(model.cost)
    assert costs[0] == costs[1]
