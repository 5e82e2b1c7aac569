"""From prompts to texts: `generate` and `stream`, and the steps that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import index
from typing import Literal, TypedDict, Unpack

from minigpt.sampler.engine.decode_loop import without_training
from minigpt.sampler.engine.sliding_window import Sliding
from minigpt.sampler.events import (
    OVERFLOWS,
    Completion,
    Event,
    Finished,
    LanguageModel,
    PromptTooLong,
    Request,
    TokenGenerated,
)
from minigpt.sampler.strategies.greedy import Greedy
from minigpt.sampler.strategy import Strategy

Stop = Callable[[Sequence[int]], bool]  # of the new tokens so far: is the text complete?


class Limits(TypedDict, total=False):
    """When texts end; see `prepare`."""

    max_new_tokens: int
    end_tokens: Sequence[int] | None
    stop: Stop | None
    overflow: Literal["error", "truncate", "stop", "slide"]
    top_logprobs: int


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy | None = None,
    *,
    stride: int | None = None,
    **limits: Unpack[Limits],
) -> list[list[Completion]]:
    """Continues every prompt; one list of completions per prompt, best first.

    A prompt's texts do not depend on what else is in the batch.

    Args:
        prompts: token ids; lengths may differ.
        strategy: greedy unless given.
        stride: by how many tokens at once the window moves with overflow "slide"; see `Sliding`.
        limits: max_new_tokens, end_tokens, stop, overflow, top_logprobs: when texts end; see `prepare`.

    Raises:
        PromptTooLong: prompt and new tokens do not fit the model's window.
        ValueError: a prompt is empty or holds ids that the model does not know, or the options rule out
            every token.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> ((best,),) = generate(model, [tokenizer.encode("Once upon a time")], max_new_tokens=3)
    >>> len(best.tokens), best.finish_reason
    (3, 'length')
    """
    model = windowed(model, limits.get("overflow", "error"), stride)
    requests = prepare(model, prompts, **limits)
    finished = [event for event in run(model, requests, strategy or Greedy()) if isinstance(event, Finished)]
    return [event.completions for event in sorted(finished, key=lambda event: event.prompt_index)]


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    strategy: Strategy | None = None,
    *,
    stride: int | None = None,
    **limits: Unpack[Limits],
) -> Iterator[int]:
    """The tokens that continue one prompt, each as soon as it is settled; arguments as for `generate`."""
    strategy = strategy or Greedy()
    if getattr(strategy, "num_return_sequences", 1) != 1:
        raise ValueError("a stream is of one text: num_return_sequences must be 1")
    model = windowed(model, limits.get("overflow", "error"), stride)
    events = run(model, prepare(model, [prompt], **limits), strategy)
    return (event.token for event in events if isinstance(event, TokenGenerated))


def run(model: LanguageModel, requests: Sequence[Request], strategy: Strategy) -> Iterator[Event]:
    """Everything that happens, as it happens: what `generate` and `stream` are made of."""
    requests = [_matching(request, strategy) for request in requests]
    least = strategy.min_new_tokens
    most = min((r.max_new_tokens for r in requests if r.limit_reason == "length"), default=least)
    if least > most:
        raise ValueError(f"min_new_tokens={least} exceeds max_new_tokens={most}")
    return without_training(model, strategy.decode(model, requests)) if requests else iter(())


def _matching(request: Request, strategy: Strategy) -> Request:
    """The request, ending also where the text matches `regex` and nothing can follow."""
    regex, stop = strategy.regex, request.stop
    if regex is None:
        return request
    return replace(request, stop=lambda new: regex.complete(new) or (stop is not None and stop(new)))


def windowed(model: LanguageModel, overflow: str, stride: int | None = None) -> LanguageModel:
    """The model that reads the texts: with overflow "slide" one that has no end to its window.

    Raises:
        ValueError: the stride is out of range, or given where nothing slides.
    """
    if overflow == "slide":
        return Sliding(model, stride)
    if stride is not None:
        raise ValueError(
            f"stride={stride} (--stride) has no meaning with overflow={overflow}: it is for slide"
        )
    return model


def prepare(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 50,
    end_tokens: Sequence[int] | None = None,
    stop: Stop | None = None,
    overflow: Literal["error", "truncate", "stop", "slide"] = "error",
    top_logprobs: int = 0,
) -> list[Request]:
    """Checks prompts and limits before anything is computed.

    Args:
        max_new_tokens: the most tokens a text may have, at least 1.
        end_tokens: ids that end a text; those of the model's config unless given.
        stop: says of the new tokens so far whether the text is complete; see `Tokenizer.stop_at`.
        overflow: what to do with a text that would not fit the window: "error", "truncate" (drop the
            oldest prompt tokens), "stop" (end at its edge, with finish_reason "overflow"), or "slide" (let
            the model, made by `windowed`, see the end of the text only).
        top_logprobs: how many of the likeliest tokens to report at every step.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if overflow not in OVERFLOWS:
        raise ValueError(f"overflow={overflow!r} is not known; there are {', '.join(OVERFLOWS)}")
    if top_logprobs < 0:
        raise ValueError(f"top_logprobs must be at least 0, got {top_logprobs}")
    ends = model.config.end_tokens if end_tokens is None else frozenset(end_tokens)
    requests = []
    for prompt in prompts:
        if isinstance(prompt, str):
            raise ValueError(f"prompts are token ids, got the text {prompt!r:.60}: encode it first")
        if isinstance(prompt, int) or getattr(prompt, "ndim", 1) == 0:
            raise ValueError("prompts is a list of prompts, each a list of ids: write [tokens], not tokens")
        ids = tuple(index(token) for token in prompt)
        _check_ids(ids, model.config.vocab_size)
        fitting, limit, reason = _fit(ids, max_new_tokens, model.config.n_positions, overflow)
        dropped = len(ids) - len(fitting)
        requests.append(Request(fitting, limit, reason, ends, stop, top_logprobs, dropped))
    return requests


def _check_ids(ids: tuple[int, ...], vocab_size: int) -> None:
    if not ids:
        raise ValueError(
            "an empty prompt has nothing to continue: give at least one token, such as the end token"
        )
    unknown = [token for token in ids if not 0 <= token < vocab_size]
    if unknown:
        raise ValueError(f"the model knows ids from 0 to {vocab_size - 1}, the prompt holds {unknown[:5]}")


def _fit(
    ids: tuple[int, ...], max_new_tokens: int, window: int, overflow: str
) -> tuple[tuple[int, ...], int, str]:
    """Prompt, limit and the limit's name, such that all fit the window; the last new token is never read."""
    too_many = len(ids) + max_new_tokens - 1 - window
    if too_many <= 0 or overflow == "slide":
        return ids, max_new_tokens, "length"
    if overflow == "truncate" and max_new_tokens <= window:
        return ids[too_many:], max_new_tokens, "length"
    if overflow == "stop" and len(ids) <= window:
        return ids, window - len(ids) + 1, "overflow"
    ways = {"truncate": max_new_tokens <= window, "stop": len(ids) <= window, "slide": True}
    helpful = [f", or overflow={way} (--overflow {way})" for way, helps in ways.items() if helps]
    raise PromptTooLong(
        f"{len(ids)} prompt tokens + {max_new_tokens} new ones - 1 exceed the model's window of {window}:"
        f" shorten the prompt, ask for fewer new tokens{''.join(helpful)}"
    )
