"""A step at fixed shapes gives what the model gives; the recording itself is tested in tests/gpu."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minigpt import GPT2, GPT2Config
from minigpt.inference import graphed_step
from minigpt.inference.graphed_step import GraphedStep
from minigpt.sampler import Beam, Greedy, Sample, Strategy, generate

CONFIG = GPT2Config(vocab_size=61, n_positions=16, n_embd=32, n_layer=3, n_head=4)
TOKENS = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
CLOSE = 1e-6  # masked slots are added up, too: as zeros, but in another order


def new_model(config: GPT2Config = CONFIG) -> GPT2:
    torch.manual_seed(0)
    return GPT2(config).eval()


@pytest.mark.parametrize("pad", [None, torch.tensor([0, 2])], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, reorder_and_upcast_attn=True), replace(CONFIG, tie_word_embeddings=False)],
    ids=["plain", "upcast", "untied"],
)
def test_steps_are_those_of_the_model(config: GPT2Config, pad: Tensor | None) -> None:
    model = new_model(config)
    caches = [model.new_cache(9, 2, pad) for _ in range(2)]
    caches[0].layers[0]._slots.fill_(float("nan"))  # as memory may be that nothing was written to
    for cache in caches:
        model.next_logits(TOKENS, cache)
    step = GraphedStep(model, caches[0])
    for n in range(5):
        new = torch.tensor([[n], [20 + n]])
        torch.testing.assert_close(step(new), model.next_logits(new, caches[1]), rtol=0, atol=CLOSE)
        assert caches[0].length == caches[1].length


def test_a_cache_that_is_rewound_is_read_anew() -> None:
    model = new_model()
    cache = model.new_cache(9, 2)
    model.next_logits(TOKENS, cache)
    step = GraphedStep(model, cache)
    new = torch.tensor([[3], [4]])
    first, _ = step(new), step(new)
    cache.rewind(0)
    model.next_logits(TOKENS, cache)
    assert torch.equal(step(new), first)


def test_it_refuses_a_full_cache() -> None:
    model = new_model()
    cache = model.new_cache(4, 2)
    model.next_logits(TOKENS, cache)
    with pytest.raises(ValueError, match="token 5 does not fit a cache reserved for 4"):
        GraphedStep(model, cache)(torch.tensor([[1], [2]]))


# ---------------------------------------------- what `GPT2.next_logits` does on a GPU, here with steps that are not recorded


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if a CPU was a GPU; the number of rows of each step that is not computed by `Block`s in a plain pass."""
    seen: list[int] = []
    call = GraphedStep.__call__

    def counted(self: GraphedStep, tokens: Tensor) -> Tensor:
        seen.append(len(tokens))
        return call(self, tokens)

    monkeypatch.setattr(graphed_step, "DEVICES", ("cpu",))
    monkeypatch.setattr(GraphedStep, "__call__", counted)
    return seen


PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


@pytest.mark.parametrize(
    "strategy",
    [Greedy(), Sample(seed=3), Beam(num_beams=3)],
    ids=lambda strategy: type(strategy).__name__,
)
def test_texts_are_those_of_the_modules(strategy: Strategy, steps: list[int]) -> None:
    """Rows leave, and beams fork."""
    model = new_model()

    def texts() -> list[list[list[int]]]:
        results = generate(model, PROMPTS, strategy, max_new_tokens=10, end_tokens=[3, 20])
        return [[completion.tokens for completion in completions] for completions in results]

    found = texts()
    assert len(steps) > 5
    hook = model.blocks[0].register_forward_hook(lambda *_: None)
    steps.clear()
    assert texts() == found
    assert not steps
    hook.remove()


def test_many_prompts_are_continued_as_each_alone(steps: list[int]) -> None:
    """By continuous batching, which gives a row's memory to another text."""
    model = new_model()
    prompts = [[1 + n % 50, 1 + n % 7] for n in range(70)]
    alone = [
        generate(model, [prompt], max_new_tokens=6, end_tokens=[3, 20])[0][0].tokens for prompt in prompts
    ]
    assert [
        done.tokens for (done,) in generate(model, prompts, max_new_tokens=6, end_tokens=[3, 20])
    ] == alone
    assert max(steps) > 1


def test_a_row_may_begin_with_padding_alone(steps: list[int]) -> None:
    ours, theirs = new_model(), new_model()
    theirs.blocks[0].register_forward_hook(lambda *_: None)
    pad = torch.tensor([0, 2])
    caches = [model.new_cache(9, 2, pad) for model in (ours, theirs)]
    for n in range(4):
        new = torch.tensor([[n], [n + 5]])
        first, second = (
            model.next_logits(new, cache) for model, cache in zip((ours, theirs), caches, strict=True)
        )
        rows = slice(None) if n >= 2 else slice(1)  # the other is padding, and its logits mean nothing
        torch.testing.assert_close(first[rows], second[rows], rtol=0, atol=CLOSE)
    assert steps == [2] * 4


def test_a_copy_of_a_cache_goes_on_by_itself(steps: list[int]) -> None:
    model = new_model()
    cache = model.new_cache(9)
    for token in (1, 2, 3):
        model.next_logits(torch.tensor([[token]]), cache)
    copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
    for token in (4, 5):
        expected = model.next_logits(torch.tensor([[token]]), cache)
        for other in copies:
            assert torch.equal(model.next_logits(torch.tensor([[token]]), other), expected)


def test_a_cache_that_is_let_go_keeps_nothing(steps: list[int]) -> None:
    """At once: on a GPU, the next model may need the memory."""
    model = new_model()
    cache = model.new_cache(9)
    model.next_logits(torch.tensor([[1]]), cache)
    left = [weakref.ref(kept) for kept in (model, cache, cache.slots)]
    gc.disable()
    try:
        del model, cache
        assert [kept() for kept in left] == [None] * 3
    finally:
        gc.enable()


@torch.no_grad()
def test_padding_that_changes_is_seen(steps: list[int]) -> None:
    """As after drafts, of which one row keeps fewer: its tokens move within the memory that there is."""
    ours, theirs = new_model(), new_model()
    theirs.blocks[0].register_forward_hook(lambda *_: None)
    results = []
    for model in (ours, theirs):
        cache = model.new_cache(9, 2)
        model.next_logits(TOKENS, cache)
        logits = [model.next_logits(torch.tensor([[3], [4]]), cache)]
        for pads, length in (([0, 2], 5), ([1, 0], 3)):
            cache.align(pads, length)
            logits.append(model.next_logits(torch.tensor([[3], [4]]), cache))
        results.append(torch.stack(logits))
    assert steps == [2] * 3
    torch.testing.assert_close(*results, rtol=0, atol=CLOSE)


class OfAStranger(torch.nn.GELU):
    """A class that may do anything when it is called, as far as we know."""

    __module__ = "somebody.else"


def of_a_stranger(x: Tensor) -> Tensor:
    """A function that may do anything when it is called, as far as we know."""
    return x


of_a_stranger.__module__ = "somebody.else"


@pytest.mark.parametrize("how", ["hook", "pre-hook", "method", "class", "function", "training"])
@torch.no_grad()
def test_whoever_wants_to_see_each_call_does(how: str, steps: list[int]) -> None:
    model = new_model()
    cache = model.new_cache(9)
    model.next_logits(torch.tensor([[1, 2]]), cache)
    model.next_logits(torch.tensor([[3]]), cache)
    assert steps == [1]
    mlp = model.blocks[1].mlp
    if how == "hook":
        mlp.register_forward_hook(lambda *_: None)
    elif how == "pre-hook":
        mlp.register_forward_pre_hook(lambda *_: None)
    elif how == "method":
        mlp.forward = type(mlp).forward.__get__(mlp)
    elif how == "training":
        mlp.train()
    else:
        mlp.activation = OfAStranger().eval() if how == "class" else of_a_stranger
        cache = model.new_cache(9)  # what is put into a model between two steps of a cache is not seen
    model.next_logits(torch.tensor([[3]]), cache)
    assert steps == [1]


def test_where_what_is_computed_is_changed_or_counted_the_modules_are_called(steps: list[int]) -> None:
    model = new_model()
    cache = model.new_cache(9)
    with torch.autocast("cpu", torch.bfloat16):
        model.next_logits(torch.tensor([[1]]), cache)
    with FlopCounterMode(display=False) as counter:
        model.next_logits(torch.tensor([[1]]), cache)
    assert counter.get_total_flops() > 0
    assert not steps
    model.next_logits(torch.tensor([[1]]), cache)
    assert steps == [1]
