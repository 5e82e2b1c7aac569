"""What a completion is asked for: prompts and limits, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from operator import index
from typing import Any, Literal, TypedDict, cast

from minigpt.errors import InvalidRequest
from minigpt.json_files import shown
from minigpt.options import KINDS, check_count
from minigpt.right_names import refuse_unknown
from minigpt.sampler.events import OVERFLOWS, LanguageModel, PromptTooLong, Request, misfit
from minigpt.sampler.registry import names
from minigpt.sampler.right_names import right_name
from minigpt.sampler.strategies.greedy import Greedy
from minigpt.sampler.strategy import Strategy

Stop = Callable[[Sequence[int]], bool]  # of the new tokens so far: is the completion finished?
USUAL_LENGTH = 50  # new tokens, where the context has room for them


class Lengths(TypedDict, total=False):
    """When completions end, whatever their text; see `prepare`."""

    max_new_tokens: int | None
    end_tokens: Iterable[int] | None
    overflow: Literal["error", "truncate", "stop", "slide"]
    top_logprobs: int


class Limits(Lengths, total=False):
    """When completions end; see `prepare`."""

    stop: Stop | None


def prepare(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | None = None,
    end_tokens: Iterable[int] | None = None,
    stop: Stop | None = None,
    overflow: Literal["error", "truncate", "stop", "slide"] = "error",
    top_logprobs: int = 0,
    trace: bool = False,
) -> list[Request]:
    """Checks prompts and limits before anything is computed.

    Args:
        model: what will read them.
        prompts: token ids, a list for each prompt.
        max_new_tokens: the most tokens a completion may have, at least 1; unless given 50, or what fits the
            context length if that is less.
        end_tokens: ids that end a completion; those of the model's config unless given, [] for none.
        stop: says of the new tokens so far whether the completion is finished; see
            `Tokenizer.stop_strings`.
        overflow: what to do where prompt and new tokens exceed the context length: "error", "truncate" (drop
            the oldest prompt tokens), "stop" (end there, with finish_reason "overflow"), or "slide" (let the
            model, made by `with_sliding_window`, see the latest tokens only).
        top_logprobs: how many of the likeliest tokens to report at every step.
        trace: whether each token brings along how it came to be chosen; see `minigpt.sampler.token_trace`.

    Raises:
        PromptTooLong: prompt and new tokens do not fit the model's context length.
        InvalidRequest: an argument cannot be used; the message says what would.
    """
    if max_new_tokens is not None:
        _check_whole("max_new_tokens", max_new_tokens, least=1)
    _check_whole("top_logprobs", top_logprobs, least=0)
    if overflow not in OVERFLOWS:
        raise InvalidRequest(f"overflow={overflow!r} is not known; there are {', '.join(OVERFLOWS)}")
    if stop is not None and not callable(stop):
        raise InvalidRequest(
            f"stop={shown(stop)} must be a function of the new tokens: tokenizer.stop_strings(...).completed;"
            " minigpt.complete takes a list of strings"
        )
    ends = _end_tokens(end_tokens, model)
    requests = []
    texts = _prompts(prompts, model.config.vocab_size)
    for number, ids in enumerate(texts):
        n = _usual_length(ids, model, overflow) if max_new_tokens is None else max_new_tokens
        named = "the prompt" if len(texts) == 1 else f"prompt {number}"  # counted from 0, as in results
        fitting, limit, reason = _fit(named, ids, n, model.config.n_positions, overflow)
        dropped = len(ids) - len(fitting)
        requests.append(
            Request(
                fitting, limit, limit_reason=reason, end_tokens=ends, stop=stop, top_logprobs=top_logprobs,
                dropped=dropped, trace=trace,
            )
        )  # fmt: skip
    return requests


def checked_strategy(
    function: str,
    model: LanguageModel,
    strategy: Strategy | None,
    limits: Collection[str],
    others: Sequence[str] = ("stride",),
) -> Strategy:
    """The strategy of a call, greedy if there is none, once model, strategy and the names of the limits are right.

    Args:
        function: which was called.
        model, strategy, limits: what it was given.
        others: its arguments beside those.

    Raises:
        InvalidRequest: one of them is not; the message says how to write the call.
    """
    check_model(function, model)
    known = [*sorted(Limits.__annotations__), "strategy", *others]
    unknown = [name for name in limits if name not in known]
    refuse_unknown(function, unknown, known, {name: right_name(name, known) for name in unknown})
    _check_strategy(strategy)
    return strategy or Greedy()


def check_model(function: str, model: object) -> None:
    """Refuses what cannot be a model, such as the pair that `minigpt.load` returns."""
    if isinstance(model, tuple):
        raise InvalidRequest(
            f"{function}() takes a model, got a tuple: write model, tokenizer = minigpt.load(...)"
        )
    if not hasattr(model, "next_logits"):
        raise InvalidRequest(
            f"{function}() takes a model first, got {shown(model)}; minigpt.load() returns one and its tokenizer"
        )


def _check_strategy(strategy: object) -> None:
    """Refuses a strategy's name or class where a strategy is needed."""
    if strategy is None or isinstance(strategy, Strategy):
        return
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        raise InvalidRequest(f"strategy is the class {strategy.__name__}: write {strategy.__name__}()")
    if isinstance(strategy, str):
        known = strategy.replace("_", "-") in names()
        example = "".join(part.capitalize() for part in strategy.replace("_", "-").split("-"))
        hint = f"minigpt.sampler.{example}()" if known else "a strategy such as minigpt.sampler.Greedy()"
        raise InvalidRequest(f"strategy={strategy!r} is a name: pass {hint}")
    raise InvalidRequest(
        f"strategy must be a strategy such as Greedy() or Sample(top_p=0.9), got {shown(strategy)}"
    )


def _check_whole(name: str, value: Any, least: int) -> None:
    if not KINDS[int].has(value) or value < least:
        raise InvalidRequest(f"{name} must be a whole number of at least {least}, got {value!r}")
    check_count(name, value, least)


def _end_tokens(end_tokens: object, model: LanguageModel) -> frozenset[int]:
    if end_tokens is None:
        return model.config.end_tokens
    size = model.config.vocab_size
    if isinstance(end_tokens, str) or not isinstance(end_tokens, Iterable):
        raise InvalidRequest(f"end_tokens must be a list of ids, got {end_tokens!r}: write [{end_tokens!r}]")
    ids = list(end_tokens)
    if wrong := [token for token in ids if not _is_id(token, size)]:
        raise InvalidRequest(f"end_tokens must be ids from 0 to {size - 1}, got {wrong[:5]}")
    return frozenset(map(index, ids))


def _is_id(token: Any, vocab_size: int) -> bool:
    return hasattr(token, "__index__") and 0 <= token < vocab_size


def _prompts(prompts: object, vocab_size: int) -> list[tuple[int, ...]]:
    """The prompts as ids, each checked."""
    if isinstance(prompts, str):
        raise InvalidRequest(_is_text(prompts))
    if not isinstance(prompts, Iterable) or getattr(prompts, "ndim", 2) == 0:
        raise InvalidRequest(f"prompts is a list of lists of ids, got {shown(prompts)}")
    return [_ids(prompt, vocab_size) for prompt in prompts]


def _ids(prompt: object, vocab_size: int) -> tuple[int, ...]:
    if isinstance(prompt, str):
        raise InvalidRequest(_is_text(prompt))
    if isinstance(prompt, int) or getattr(prompt, "ndim", 1) == 0:
        raise InvalidRequest("prompts is a list of prompts, each a list of ids: write [tokens], not tokens")
    try:
        ids = tuple(index(token) for token in cast(Iterable[Any], prompt))
    except TypeError:
        raise InvalidRequest(f"a prompt is a list of token ids, got {shown(prompt)}") from None
    if not ids:
        raise InvalidRequest(
            "an empty prompt has nothing to continue: give at least one token, such as the end-of-text token"
        )
    if unknown := [token for token in ids if not 0 <= token < vocab_size]:
        raise InvalidRequest(
            f"the model knows ids from 0 to {vocab_size - 1}, the prompt holds {unknown[:5]}"
        )
    return ids


def _is_text(prompt: str) -> str:
    return (
        f"prompts are token ids, got the text {shown(prompt)}: use minigpt.complete(model, tokenizer, prompt),"
        " or tokenizer.encode(prompt)"
    )


def _usual_length(ids: tuple[int, ...], model: LanguageModel, overflow: str) -> int:
    """50 new tokens, or as many as the context has room for; at least one is asked for."""
    room = model.config.n_positions if overflow == "truncate" else model.config.n_positions - len(ids) + 1
    return USUAL_LENGTH if overflow == "slide" else max(1, min(USUAL_LENGTH, room))


def _fit(
    named: str, ids: tuple[int, ...], max_new_tokens: int, window: int, overflow: str
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
    fewer = ", ask for fewer new tokens" if len(ids) <= window else ""
    raise PromptTooLong(
        f"{misfit(named, len(ids), max_new_tokens, window)}: shorten the prompt{fewer}{''.join(helpful)}"
    )
