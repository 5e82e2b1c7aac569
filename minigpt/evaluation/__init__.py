"""Measures of models and texts: loss and perplexity, LAMBADA, stories, in-context learning, diversity, MAUVE, watermarks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt.evaluation.lambada import last_word_example, last_words
    from minigpt.evaluation.logprobs import document_logprobs, predict, token_logprobs
    from minigpt.evaluation.perplexity import Document, Score, bare_document, document

_HOMES = {
    "Document": "perplexity", "Score": "perplexity", "bare_document": "perplexity", "document": "perplexity",
    "document_logprobs": "logprobs", "last_word_example": "lambada", "last_words": "lambada",
    "predict": "logprobs",
    "token_logprobs": "logprobs",
}  # fmt: skip
__all__ = [
    "Document",
    "Score",
    "bare_document",
    "document",
    "document_logprobs",
    "last_word_example",
    "last_words",
    "predict",
    "token_logprobs",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `--help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
