"""Measures of models and texts: loss and perplexity, LAMBADA, stories, in-context learning, diversity, MAUVE, watermarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt.lazy import imported_when_used

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
__getattr__ = imported_when_used(__name__, _HOMES)
