"""A stream gives what `generate` gives, only sooner, and leaves everything as it found it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from fakes import FakeModel, counting, scrambled, tiny_gpt2

from minigpt.sampler import Beam, BeamSample, Greedy, Sample, Strategy, generate, stream
from minigpt.sampler.api import run
from minigpt.sampler.events import Finished, PrefillDone, TokenGenerated
from minigpt.sampler.requests import prepare

STRATEGIES: list[Strategy] = [
    Greedy(),
    Greedy(repetition_penalty=1.5, min_new_tokens=3),
    Sample(seed=1, temperature=1.5),
    Beam(num_beams=1),
    Beam(num_beams=3),
    Beam(num_beams=5, length_penalty=2.0, early_stopping="never"),
    Beam(num_beams=4, length_penalty=-1.0, early_stopping=True, no_repeat_ngram_size=2),
    BeamSample(num_beams=3, seed=1),
    BeamSample(num_beams=1, seed=1),
]
EACH = pytest.mark.parametrize("strategy", STRATEGIES, ids=range(len(STRATEGIES)))
ONE_OF_EACH = pytest.mark.parametrize(
    "strategy",
    [Greedy(), Sample(seed=1), Beam(num_beams=3), BeamSample(num_beams=3, seed=1)],
    ids=lambda s: type(s).__name__,
)


@EACH
def test_a_stream_gives_the_best_text(strategy: Strategy) -> None:
    for seed, ends in product(range(3), [[], [0, 1], [2, 3, 4, 5]]):
        model = FakeModel(scrambled(9, seed))
        ((best, *_),) = generate(model, [[1, 2]], strategy, max_new_tokens=8, end_tokens=ends)
        assert list(stream(model, [1, 2], strategy, max_new_tokens=8, end_tokens=ends)) == best.tokens


@EACH
def test_emitted_tokens_are_a_prefix_of_the_final_text_at_every_moment(strategy: Strategy) -> None:
    """For several prompts at once, with their logprobs; each prompt's texts come when they are finished."""
    model = FakeModel(scrambled(9), end_tokens=[2, 3])
    emitted: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    finished = {}
    for event in run(model, prepare(model, [[1], [4, 5, 6], [7, 7]], max_new_tokens=8), strategy):
        if isinstance(event, PrefillDone):
            assert not any(emitted.values())
            assert len(model.reads) == 1
        elif isinstance(event, TokenGenerated):
            assert event.index == 0
            assert event.prompt_index not in finished
            emitted[event.prompt_index].append((event.token, event.logprob))
        elif isinstance(event, Finished):
            finished[event.prompt_index] = event.completions[0]
    for i, best in finished.items():
        assert emitted[i] == list(zip(best.tokens, best.logprobs, strict=True))
    assert set(finished) == {0, 1, 2}


def test_greedy_tokens_come_one_pass_each() -> None:
    model = FakeModel(counting(10))
    tokens = stream(model, [0], max_new_tokens=4)
    assert [(next(tokens), len(model.reads)) for _ in range(4)] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert list(tokens) == []


def test_several_samples_are_told_apart() -> None:
    model, strategy = FakeModel(scrambled(9)), Sample(seed=1, num_return_sequences=3)
    _, *emitted, finished = run(model, prepare(model, [[1]], max_new_tokens=4), strategy)
    texts = [[event.token for event in emitted if event.index == j] for j in range(3)]
    assert sorted(texts) == sorted(text.tokens for text in finished.completions)
    assert [event.index for event in emitted] == [0, 1, 2] * 4


def test_beams_emit_what_they_agree_on_before_the_end() -> None:
    model = FakeModel(counting(10))
    tokens = stream(model, [0], Beam(num_beams=2), max_new_tokens=20)
    assert next(tokens) == 1
    assert len(model.reads) < 20
    assert list(tokens) == [(2 + i) % 10 for i in range(19)]


# Modes


def modes(model: torch.nn.Module) -> list[bool]:
    grads = [torch.is_grad_enabled(), torch.is_inference_mode_enabled()]
    return grads + [module.training for module in model.modules()]


@ONE_OF_EACH
@pytest.mark.parametrize("grad", [True, False])
def test_modes_are_left_alone_between_tokens_and_after(strategy: Strategy, grad: bool) -> None:
    model = tiny_gpt2(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).train()
    model.blocks[0].eval()  # by hand, and so it stays
    inside = []
    model.final_norm.register_forward_hook(
        lambda module, *_: inside.append((module.training, torch.is_grad_enabled()))
    )
    with torch.set_grad_enabled(grad):
        before = modes(model)
        tokens = stream(model, [1, 2], strategy, max_new_tokens=6)
        assert modes(model) == before
        for _ in tokens:
            assert modes(model) == before
        assert modes(model) == before

        tokens = stream(model, [1, 2], strategy, max_new_tokens=6)
        next(tokens)
        tokens.close()  # early
        assert modes(model) == before
    assert set(inside) == {(False, False)}


@ONE_OF_EACH
def test_no_strategy_needs_the_model_to_switch_gradients_off(strategy: Strategy) -> None:
    weight = torch.ones(9, requires_grad=True)
    model = FakeModel(scrambled(9))
    model.unembed = lambda x: x * weight
    processed = []

    def look(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        processed.append(logits.requires_grad)
        return logits

    generate(model, [[1]], type(strategy)(processors=(look,)), max_new_tokens=3)
    assert set(processed) == {False}


@ONE_OF_EACH
def test_modes_are_restored_after_an_error(strategy: Strategy) -> None:
    model = tiny_gpt2().train()

    def fail(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a processor's own")

    before = modes(model)
    with pytest.raises(RuntimeError, match="a processor's own"):
        generate(model, [[1]], type(strategy)(processors=(fail,)), max_new_tokens=2)
    assert modes(model) == before


@ONE_OF_EACH
def test_a_model_in_training_writes_the_same_text(strategy: Strategy) -> None:
    """Dropout is off while it writes, and on again afterwards."""
    model = tiny_gpt2(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
    expected = generate(model, [[1, 2], [3]], strategy, max_new_tokens=6)
    assert generate(model.train(), [[1, 2], [3]], strategy, max_new_tokens=6) == expected
    assert all(module.training for module in model.modules())


@ONE_OF_EACH
def test_no_graph_is_built_and_training_goes_on_afterwards(strategy: Strategy) -> None:
    model = tiny_gpt2().train()
    graphs = []
    for module in model.modules():
        module.register_forward_hook(lambda _, __, out: graphs.append(getattr(out, "grad_fn", None)))
    generate(model, [[1, 2]], strategy, max_new_tokens=3)
    assert graphs
    assert set(graphs) == {None}
    model(torch.tensor([[1, 2]])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
