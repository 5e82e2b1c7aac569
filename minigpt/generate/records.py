"""Texts as JSON: one object for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from minigpt.cli.table import number
from minigpt.generate.session import Result, Session
from minigpt.generate.settings import GenerateSettings
from minigpt.sampler.registry import name_of
from minigpt.sampler.text import text_of
from minigpt.tokenizer import Tokenizer


def record(
    session: Session, result: Result, settings: GenerateSettings, tokenizer: Tokenizer, prompt: str
) -> dict[str, Any]:
    """The fields of one text, in their order; docs/json.md describes them."""
    completion = result.completion
    fields: dict[str, Any] = {
        "prompt": prompt,
        "text": text_of(completion, tokenizer, tokenizer.stop_strings(*settings.stop)),
        "prompt_tokens": list(session.requests[result.prompt_index].prompt),
        "tokens": completion.tokens,
        "token_strings": [tokenizer.token_string(token) for token in completion.tokens],
        "logprobs": [number(logprob) for logprob in completion.logprobs],
        "finish_reason": completion.finish_reason,
        "score": number(completion.score),
        "seed": session.seed,
        "prompt_index": result.prompt_index,
        "index": result.index,
        "model": settings.model.name,
        "strategy": name_of(type(session.strategy)),
        "timing": session.clock.timing(session.requests, session.lengths()),
    }
    if settings.logprobs is not None or settings.top is not None:
        steps = completion.top_logprobs or [[] for _ in completion.tokens]
        fields["top_logprobs"] = [_step(step, tokenizer) for step in steps]
    if settings.explain:
        fields["explanation"] = [asdict(trace) for trace in completion.traces]
    return fields


def _step(step: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The most likely tokens at one step, best first."""
    return [
        {"token": token, "string": tokenizer.token_string(token), "logprob": number(logprob)}
        for token, logprob in step
    ]
