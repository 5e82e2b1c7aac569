"""A strategy at work on requests: what `generate`, `stream` and the command line are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from minigpt.errors import InvalidRequest
from minigpt.sampler.engine.evaluation_mode import in_evaluation_mode
from minigpt.sampler.engine.second_model import check_second_model
from minigpt.sampler.engine.sliding_window import Sliding
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.processors.grammar_mask import grammar_of
from minigpt.sampler.strategy import Strategy


def run(model: LanguageModel, requests: Sequence[Request], strategy: Strategy) -> Iterator[Event]:
    """Everything that happens, as it happens."""
    requests = [check_and_complete(model, request, strategy) for request in requests]
    if not requests:
        return iter(())
    models = [model, *(second.model for second in strategy.models())]
    return in_evaluation_mode(models, strategy.decode(model, requests))


def check_and_complete(model: LanguageModel, request: Request, strategy: Strategy) -> Request:
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
    if request.taken_back:
        raise InvalidRequest(
            "heal (--heal) and a grammar cannot be combined: the grammar holds for the new text, which would begin"
            " within the prompt; leave one of them out"
        )
    return replace(request, stop=lambda new: grammar.complete(new) or (stop is not None and stop(new)))


def with_sliding_window(model: LanguageModel, overflow: str, stride: int | None = None) -> LanguageModel:
    """The model that reads the texts: with overflow "slide" one that has no end to its window.

    Raises:
        InvalidRequest: the stride is out of range, or given where nothing slides.
    """
    if overflow == "slide":
        return Sliding(model, stride)
    if stride is not None:
        raise InvalidRequest(
            f"stride={stride} (--stride) has no effect with overflow={overflow}: it is for slide"
        )
    return model
