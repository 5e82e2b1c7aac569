"""The models of a run: their modes while it lasts, and whether two of them can be used together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fakes import FakeModel, scrambled, tiny_gpt2

from minigpt import GPT2
from minigpt.errors import InvalidRequest
from minigpt.sampler import (
    Beam,
    ContrastiveDecoding,
    Greedy,
    PromptTooLong,
    Sample,
    Speculative,
    Strategy,
    generate,
    stream,
)

DROPPING: dict[str, Any] = {"resid_pdrop": 0.5, "embd_pdrop": 0.5}
MODEL, OTHER = tiny_gpt2(**DROPPING), tiny_gpt2(seed=1, **DROPPING)
STRATEGIES: list[Strategy] = [
    Greedy(),
    Sample(seed=1),
    Beam(num_beams=2),
    Speculative(draft=OTHER),
    ContrastiveDecoding(amateur=OTHER),
]
EACH = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)


@pytest.fixture(autouse=True)
def _in_evaluation() -> None:
    MODEL.eval()
    OTHER.eval()


def modes(*models: GPT2) -> set[bool]:
    return {module.training for model in models for module in model.modules()}


@EACH
@pytest.mark.parametrize("switch", [GPT2.train, GPT2.eval])
def test_a_mode_set_between_two_tokens_stays_and_changes_nothing(
    strategy: Strategy, switch: Callable[[GPT2], GPT2]
) -> None:
    expected = list(stream(MODEL, [1, 2], strategy, max_new_tokens=12))
    for start in (GPT2.train, GPT2.eval):
        for model in (MODEL, OTHER):
            start(model)
        tokens = []
        for token in stream(MODEL, [1, 2], strategy, max_new_tokens=12):
            tokens.append(token)
            if len(tokens) == 4:
                for model in (MODEL, OTHER):
                    switch(model)
            if len(tokens) > 4:
                assert modes(MODEL, OTHER) == {switch is GPT2.train}
        assert tokens == expected


@EACH
def test_one_module_alone_may_be_switched(strategy: Strategy) -> None:
    expected = list(stream(MODEL, [1, 2], strategy, max_new_tokens=6))
    tokens = []
    for token in stream(MODEL, [1, 2], strategy, max_new_tokens=6):
        tokens.append(token)
        MODEL.blocks[0].train()
        assert MODEL.blocks[0].training
        assert not MODEL.blocks[1].training
    assert tokens == expected


@EACH
def test_a_stream_that_is_left_leaves_no_mode_behind(strategy: Strategy) -> None:
    MODEL.train()
    OTHER.train()
    tokens = stream(MODEL, [1, 2], strategy, max_new_tokens=12)
    next(tokens)
    assert modes(MODEL, OTHER) == {True}
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


# Two models


def refused(strategy: Strategy, prompt: Sequence[int] = (1,), n: int = 5) -> str:
    with pytest.raises(InvalidRequest) as caught:
        generate(MODEL, [prompt], strategy, max_new_tokens=n)
    return str(caught.value)


def test_models_of_different_vocabularies_are_refused() -> None:
    for strategy, option in (
        (Speculative(draft=tiny_gpt2(vocab_size=99)), "draft"),
        (ContrastiveDecoding(amateur=tiny_gpt2(vocab_size=22)), "amateur"),
    ):
        size = getattr(strategy, option).config.vocab_size
        assert refused(strategy) == (
            f"the {option} (--{option}) model has {size} tokens, the model 23: they must share one vocabulary;"
            " take one with the same tokenizer"
        )


def test_an_amateur_must_read_the_whole_text_and_a_draft_need_not() -> None:
    short = tiny_gpt2(n_positions=8)
    message = (
        r"^the prompt has 6 tokens and needs 9 positions with 4 new ones \(the last is not read\), "
        r"the amateur \(--amateur\) model's context length is 8: "
    )
    with pytest.raises(PromptTooLong, match=message):
        generate(MODEL, [[1] * 6], ContrastiveDecoding(amateur=short), max_new_tokens=4)
    assert generate(MODEL, [[1] * 5], ContrastiveDecoding(amateur=short), max_new_tokens=4)
    assert generate(MODEL, [[1] * 9], Speculative(draft=short), max_new_tokens=4)


def padded(model: GPT2, vocab_size: int) -> GPT2:
    """The same model with more or fewer rows in its vocabulary; new rows are the likeliest everywhere."""
    other = tiny_gpt2(vocab_size=vocab_size, tie_word_embeddings=False)
    state = model.state_dict()
    rows = min(vocab_size, model.config.vocab_size)
    weight = state["token_embedding.weight"]
    state["token_embedding.weight"] = torch.cat([weight[:rows], torch.zeros(vocab_size - rows, 16)])
    head = torch.cat([weight[:rows], 50 * weight[:1].expand(vocab_size - rows, -1)])
    other.load_state_dict({**state, "head.weight": head})
    return other.eval()


@pytest.mark.parametrize("size", [21, 24, 64])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3}], ids=["greedy", "sampled"])
def test_a_draft_with_other_padding_changes_no_token(size: int, options: dict[str, Any]) -> None:
    """Also where the text has tokens that the draft lacks: in prompts, and as it goes on."""
    prompts = [[1, 2, 3], [22, 1], [4, 5]]
    plain: Strategy = Sample(seed=3) if options else Greedy()
    expected = generate(MODEL, prompts, plain, max_new_tokens=20)
    found = generate(
        MODEL,
        prompts,
        Speculative(draft=padded(MODEL, size), draft_schedule="constant", **options),
        max_new_tokens=20,
    )
    assert [text.tokens for (text,) in found] == [text.tokens for (text,) in expected]
    assert any(token > 20 for (text,) in expected for token in text.tokens)


def test_a_draft_with_more_padding_guesses_right() -> None:
    passes = []
    hook = MODEL.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    generate(
        MODEL,
        [[1, 2, 3]],
        Speculative(draft=padded(MODEL, 24), num_draft_tokens=3, draft_schedule="constant"),
        max_new_tokens=17,
    )
    hook.remove()
    assert len(passes) == 1 + 16 / 4, "the added rows are the likeliest, but never guessed"


# Guesses under constraints


class Constraint:
    """A constraint that ends: after an end token, or a number of tokens, it leaves nothing at all."""

    def __init__(self, prompt_length: int, length: int, end: int) -> None:
        self.prompt_length, self.length, self.end = prompt_length, length, end

    def __call__(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        new = tokens[0, self.prompt_length :].tolist()
        out = torch.full_like(logits, float("-inf"))
        if self.end in new:
            return out
        allowed = [self.end] if len(new) >= self.length else [7, 8, 9]
        out[:, allowed] = logits[:, allowed]
        return out


@pytest.mark.parametrize("guesses", [1, 2, 5, 9])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 6])
def test_drafts_never_fail_under_a_constraint(guesses: int, length: int) -> None:
    """A draft has gone past its end where nothing is allowed, while the text goes on with another token."""
    rule = scrambled(10)
    model = FakeModel(rule)
    draft = FakeModel(lambda text: [x + 3 * (token == 2) for token, x in enumerate(rule(text))])
    constraint = Constraint(2, length, end=2)
    options: dict[str, Any] = {"processors": (constraint,)}
    limits: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": [2]}
    for sampling in ({}, {"seed": 1, "do_sample": True, "temperature": 2.0}):
        own = {name: value for name, value in sampling.items() if name != "do_sample"}
        plain: Strategy = Sample(**own, **options) if sampling else Greedy(**options)
        expected = generate(model, [[1, 3], [4, 5]], plain, **limits)
        drafted = Speculative(
            draft=draft, num_draft_tokens=guesses, draft_schedule="constant", **options, **sampling
        )
        found = generate(model, [[1, 3], [4, 5]], drafted, **limits)
        assert [text.tokens for (text,) in found] == [text.tokens for (text,) in expected]
        assert {len(text.tokens) for (text,) in found} == {length + 1}
