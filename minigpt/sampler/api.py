"""From prompts to completions, in token ids: `generate` and `stream`, and the steps that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

from minigpt.errors import InvalidRequest
from minigpt.sampler.batches import decode_many
from minigpt.sampler.events import Completion, Event, Failed, Finished, LanguageModel, Request, TokenGenerated
from minigpt.sampler.requests import Limits, checked_strategy, prepare
from minigpt.sampler.running import run, with_sliding_window
from minigpt.sampler.strategy import Strategy

__all__ = ["generate", "run", "stream", "with_sliding_window"]

ONE_BATCH = 32  # prompts; longer lists are decoded by continuous batching


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy | None = None,
    *,
    stride: int | None = None,
    **limits: Unpack[Limits],
) -> list[list[Completion]]:
    """Continues every prompt, ids in and ids out; for text see `minigpt.complete`.

    A prompt's completions do not depend on what else is in the batch. Long lists are decoded by continuous
    batching, so that memory does not grow with their length; see also `minigpt.sampler.complete_many`.

    Args:
        model: a `minigpt.GPT2`, or anything that is a `LanguageModel`.
        prompts: token ids, a list for each prompt; lengths may differ.
        strategy: greedy decoding unless given; see `minigpt.sampler` for all of them.
        stride: by how many tokens at once the window moves with overflow "slide"; see `Sliding`.
        limits: max_new_tokens, end_tokens, stop, overflow, top_logprobs: when completions end; see
            `minigpt.sampler.requests.prepare`.

    Returns:
        One list of completions per prompt, best first.

    Raises:
        PromptTooLong: prompt and new tokens do not fit the model's context length.
        InvalidRequest: an argument cannot be used, or the options rule out every token.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> ((best,),) = generate(model, [tokenizer.encode("Once upon a time")], max_new_tokens=3)
    >>> len(best.tokens), best.finish_reason
    (3, 'length')
    """
    strategy = checked_strategy("generate", model, strategy, limits)
    model = with_sliding_window(model, limits.get("overflow", "error"), stride)
    return decode_requests(model, prepare(model, prompts, **limits), strategy)


def decode_requests(
    model: LanguageModel, requests: Sequence[Request], strategy: Strategy
) -> list[list[Completion]]:
    """The completions of every request, best first; errors as for `generate`."""
    events: Iterator[Event | Failed] = (
        decode_many(model, requests, strategy)
        if len(requests) > ONE_BATCH
        else run(model, requests, strategy)
    )
    by_prompt = {}
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            by_prompt[event.prompt_index] = event.completions
    return [by_prompt[i] for i in range(len(requests))]


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    strategy: Strategy | None = None,
    *,
    stride: int | None = None,
    **limits: Unpack[Limits],
) -> Iterator[int]:
    """The ids that continue one prompt, each as soon as it is final; arguments and errors as for `generate`."""
    strategy = checked_strategy("stream", model, strategy, limits)
    if strategy.n_texts != 1:
        raise InvalidRequest(
            "stream continues a prompt in one way: num_return_sequences must be 1"
            f" ({type(strategy).__name__} has {strategy.n_texts}); use generate"
        )
    model = with_sliding_window(model, limits.get("overflow", "error"), stride)
    events = run(model, prepare(model, [prompt], **limits), strategy)
    return (event.token for event in events if isinstance(event, TokenGenerated))
