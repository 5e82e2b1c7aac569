"""From prompts to completions, in token ids: `generate` and `stream`, and the steps that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Unpack

from minigpt.errors import InvalidRequest
from minigpt.sampler.engine.inference import check_second_model, in_inference
from minigpt.sampler.engine.sliding_window import Sliding
from minigpt.sampler.events import (
    Completion,
    Event,
    Finished,
    LanguageModel,
    Request,
    TokenGenerated,
)
from minigpt.sampler.processors.grammar_mask import grammar_of
from minigpt.sampler.requests import Limits, check_model, check_strategy, prepare, refuse_unknown_limits
from minigpt.sampler.strategies.greedy import Greedy
from minigpt.sampler.strategy import Strategy


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy | None = None,
    *,
    stride: int | None = None,
    **limits: Unpack[Limits],
) -> list[list[Completion]]:
    """Continues every prompt, ids in and ids out; for text see `minigpt.complete`.

    A prompt's completions do not depend on what else is in the batch.

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
    strategy = _checked("generate", model, strategy, limits)
    model = windowed(model, limits.get("overflow", "error"), stride)
    requests = prepare(model, prompts, **limits)
    finished = [event for event in run(model, requests, strategy) if isinstance(event, Finished)]
    return [event.completions for event in sorted(finished, key=lambda event: event.prompt_index)]


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    strategy: Strategy | None = None,
    *,
    stride: int | None = None,
    **limits: Unpack[Limits],
) -> Iterator[int]:
    """The ids that continue one prompt, each as soon as it is final; arguments and errors as for `generate`."""
    strategy = _checked("stream", model, strategy, limits)
    if getattr(strategy, "num_return_sequences", 1) != 1:
        raise InvalidRequest(
            "stream continues a prompt in one way: num_return_sequences must be 1"
            f" ({type(strategy).__name__} has {getattr(strategy, 'num_return_sequences', 1)}); use generate"
        )
    model = windowed(model, limits.get("overflow", "error"), stride)
    events = run(model, prepare(model, [prompt], **limits), strategy)
    return (event.token for event in events if isinstance(event, TokenGenerated))


def _checked(function: str, model: LanguageModel, strategy: Strategy | None, limits: Limits) -> Strategy:
    """The strategy, greedy if there is none, once model, strategy and the names of the limits are right."""
    check_model(function, model)
    refuse_unknown_limits(function, limits)
    check_strategy(strategy)
    return strategy or Greedy()


def run(model: LanguageModel, requests: Sequence[Request], strategy: Strategy) -> Iterator[Event]:
    """Everything that happens, as it happens: what `generate` and `stream` are made of."""
    requests = [ready(model, request, strategy) for request in requests]
    if not requests:
        return iter(())
    models = [model, *(second.model for second in strategy.models())]
    return in_inference(models, strategy.decode(model, requests))


def ready(model: LanguageModel, request: Request, strategy: Strategy) -> Request:
    """The request, ending also where the text matches the strategy's grammar and nothing can follow.

    Raises:
        InvalidRequest: the strategy cannot do it.
    """
    least, most = strategy.min_new_tokens, request.max_new_tokens
    if least > most and request.limit_reason == "length":
        raise InvalidRequest(f"min_new_tokens={least} exceeds max_new_tokens={most}")
    for second in strategy.models():
        check_second_model(model, second, [request])
    grammar, stop = grammar_of(strategy), request.stop
    if grammar is None:
        return request
    return replace(request, stop=lambda new: grammar.complete(new) or (stop is not None and stop(new)))


def windowed(model: LanguageModel, overflow: str, stride: int | None = None) -> LanguageModel:
    """The model that reads the texts: with overflow "slide" one that has no end to its window.

    Raises:
        InvalidRequest: the stride is out of range, or given where nothing slides.
    """
    if overflow == "slide":
        return Sliding(model, stride)
    if stride is not None:
        raise InvalidRequest(
            f"stride={stride} (--stride) has no meaning with overflow={overflow}: it is for slide"
        )
    return model
