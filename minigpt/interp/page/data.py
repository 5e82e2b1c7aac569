"""The data of a page: one run of a model, or two to be compared, as JSON."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import minigpt
from minigpt.cli.terminal import terminal_text
from minigpt.interp.page.budget import kept
from minigpt.interp.page.generation import Asked, Written, prepared, write
from minigpt.interp.page.observed import observe
from minigpt.interp.page.shown import pieces, spread_characters, vocabulary
from minigpt.interp.page.steps import NO_STEPS, steps_of
from minigpt.interp.tensor_file import to_bytes
from minigpt.model import GPT2
from minigpt.sampler.registry import name_of
from minigpt.tokenizer import Tokenizer

FORMAT = "minigpt-page-1"
TITLE = 60  # characters of the text that name the page


@dataclass(frozen=True)
class Origin:
    """Where a page comes from, as far as the model itself does not know it: its name, and the command."""

    model: str = ""
    command: str = ""


def page_data(
    model: GPT2, tokenizer: Tokenizer, prompts: Sequence[str], asked: Asked, origin: Origin
) -> dict[str, Any]:
    """What a page shows of one prompt, or of two; see docs/explore.md for the fields.

    Raises:
        PromptTooLong: a prompt and its new tokens do not fit the context length.
        InvalidRequest: a prompt cannot be encoded, or the options rule out every token.
        ValueError: the model is compiled, or in training mode with dropout.
    """
    requests = [prepared(model, tokenizer, prompt, asked) for prompt in prompts]
    texts = [write(model, prompt, request, asked) for prompt, request in zip(prompts, requests, strict=True)]
    runs, named = zip(*(_run(model, tokenizer, written, asked, len(texts)) for written in texts), strict=True)
    data: dict[str, Any] = without_nan({
        "format": FORMAT,
        "title": _shortened(runs[0]["text"]),
        "provenance": _provenance(model, asked, origin),
        "config": _config(model),
        "vocabulary": vocabulary(tokenizer, set().union(*named)),
        "runs": runs,
    })  # fmt: skip
    return data


def _run(
    model: GPT2,
    tokenizer: Tokenizer,
    written: Written,
    asked: Asked,
    n_runs: int,
) -> tuple[dict[str, Any], set[int]]:
    """One run, and the tokens whose labels the page needs."""
    tokens, completion = written.tokens, written.completion
    n_new = len(completion.tokens) if completion else 0
    keep = kept(model.config, len(tokens), n_new, n_runs)
    seen = observe(model, tokens, keep.weights)
    predictions, in_lens = seen.predictions()
    steps = steps_of(written, seen, asked.strategy, keep.all_logits) if completion else NO_STEPS
    named, beams = {*tokens, *in_lens.flatten().tolist(), *steps.named}, None
    if written.beams is not None:
        beams = {"steps": written.beams.saved(0)["steps"]}
        named |= {extension.token for step in written.beams.steps[0] for extension in step}
    run = {
        "prompt": written.prompt,
        "text": tokenizer.decode(tokens),
        "tokens": tokens,
        "prompt_length": len(written.request.prompt),
        "dropped": written.request.dropped,
        "finish_reason": completion.finish_reason if completion else "",
        "read": seen.n_read,
        "pieces": pieces(tokenizer, tokens),
        "characters": spread_characters(tokenizer, tokens),
        "attention": seen.attention(),
        **predictions,
        "steps": steps.steps,
        "logits": "none" if completion is None else "all" if keep.all_logits else "largest",
        "sampling": steps.sampling,
        "beams": beams,
    }
    return run, named


def without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: None in their place."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: without_nan(inner) for key, inner in value.items()}
        case list() | tuple():
            return [without_nan(inner) for inner in value]
    return value


def _provenance(model: GPT2, asked: Asked, origin: Origin) -> dict[str, Any]:
    return {
        "model": origin.model,
        "sha256": weights_sha256(model),
        "command": origin.command,
        "strategy": "" if asked.max_new_tokens == 0 else name_of(type(asked.strategy)),
        "seed": asked.strategy.seed_in_use,
        "versions": {
            "minigpt": minigpt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def weights_sha256(model: GPT2) -> str:
    """A hash of the weights by their names, the same for the same weights from whatever file."""
    digest = hashlib.sha256()
    for name, weights in model.state_dict().items():
        digest.update(f"{name} {weights.dtype} {tuple(weights.shape)}\n".encode())
        digest.update(to_bytes(weights))
    return digest.hexdigest()


def _config(model: GPT2) -> dict[str, int]:
    config = model.config
    return {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.n_positions,
        "vocab_size": config.vocab_size,
        "cache_bytes": 2 * config.n_embd * model.position_embedding.weight.element_size(),
    }


def _shortened(text: str) -> str:
    words = terminal_text(" ".join(text.split()))  # a browser writes it where control characters are obeyed
    return words if len(words) <= TITLE else f"{words[: TITLE - 1]}…"
