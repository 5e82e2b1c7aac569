"""The best text of each prompt, and that what else is in a batch changes nothing: for several strategies' own tests."""

from __future__ import annotations

from typing import Any

import pytest

from minigpt.sampler import Completion, Strategy, generate, stream


def texts(model: Any, prompts: list[list[int]], strategy: Strategy, **limits: Any) -> list[list[int]]:
    """The new tokens of each prompt's best text."""
    return [group[0].tokens for group in generate(model, prompts, strategy, **limits)]


def in_a_batch_as_alone(
    model: Any, prompts: list[list[int]], strategy: Strategy, **limits: Any
) -> list[Completion]:
    """Each prompt's best text, which is the same in a batch, in the batch turned round, alone and as a stream."""
    batch = [group[0] for group in generate(model, prompts, strategy, **limits)]
    backwards = [group[0] for group in generate(model, prompts[::-1], strategy, **limits)]
    for prompt, text, again in zip(prompts, batch, backwards[::-1], strict=True):
        ((alone,),) = generate(model, [prompt], strategy, **limits)
        assert text.tokens == again.tokens == alone.tokens
        assert text.finish_reason == again.finish_reason == alone.finish_reason
        assert text.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert list(stream(model, prompt, strategy, **limits)) == alone.tokens
    return batch
