"""Texts as JSON: one object for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from minigpt.cli.table import number
from minigpt.generate.settings import GenerateSettings
from minigpt.sampler.events import Completion, Request
from minigpt.tokenizer import Tokenizer

FIELDS = (
    "id", "prompt", "text", "prompt_tokens", "tokens", "token_strings", "logprobs", "finish_reason", "score", "seed",
    "prompt_index", "index", "model", "strategy", "timing", "top_logprobs", "explanation", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """One completion with its text, and where it comes from."""

    prompt: str
    request: Request
    completion: Completion
    prompt_index: int
    index: int
    seed: int | None
    timing: Mapping[str, Any]


def record(written: Written, settings: GenerateSettings, tokenizer: Tokenizer) -> dict[str, Any]:
    """The fields of one text, in their order; docs/json.md describes them."""
    completion = written.completion
    fields: dict[str, Any] = {
        "prompt": written.prompt,
        "text": completion.text,
        "prompt_tokens": list(written.request.prompt),
        "tokens": completion.tokens,
        "token_strings": [tokenizer.token_string(token) for token in completion.tokens],
        "logprobs": [number(logprob) for logprob in completion.logprobs],
        "finish_reason": completion.finish_reason,
        "score": number(completion.score),
        "seed": written.seed,
        "prompt_index": written.prompt_index,
        "index": written.index,
        "model": settings.model.name,
        "strategy": settings.strategy.name,
        "timing": written.timing,
    }
    if settings.logprobs is not None or settings.top is not None:
        steps = completion.top_logprobs or [[] for _ in completion.tokens]
        fields["top_logprobs"] = [_step(step, tokenizer) for step in steps]
    if settings.explain:
        fields["explanation"] = [asdict(trace) for trace in completion.traces]
    return fields


def with_columns(fields: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a text, then what else its row held; a column of a field's name is kept as input_NAME.

    >>> with_columns({"id": "a", "text": "Once"}, {"topic": "cats", "text": "mine"})
    {'id': 'a', 'text': 'Once', 'topic': 'cats', 'input_text': 'mine'}
    """
    kept = {f"input_{name}" if name in FIELDS else name: value for name, value in columns.items()}
    return {**fields, **kept}


def _step(step: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The most likely tokens at one step, best first."""
    return [
        {"token": token, "string": tokenizer.token_string(token), "logprob": number(logprob)}
        for token, logprob in step
    ]
