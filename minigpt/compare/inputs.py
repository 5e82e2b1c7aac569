"""The prompts of a comparison: read, encoded, and checked against the context length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minigpt.cli import BAD_FLAGS, TOO_LONG, Failure
from minigpt.compare.settings import CompareSettings
from minigpt.data.documents import documents
from minigpt.data.prompts import Given, Prompt, from_file, passages
from minigpt.sampler.events import misfit
from minigpt.tokenizer import Tokenizer


def read(settings: CompareSettings) -> list[Given]:
    """Each prompt with its reference continuation, if it has one; with --held-out, whole documents.

    Raises:
        Failure: a file cannot be read, or is not as described.
    """
    try:
        if settings.held_out is not None:
            return [(text, None) for text in documents([Path(settings.held_out)])]
        if settings.prompts is not None:
            return from_file(Path(settings.prompts))
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    return [(settings.text or "", None)]


def encoded(settings: CompareSettings, given: Sequence[Given], tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts as token ids; references are cut to as many tokens as a method may generate.

    Raises:
        Failure: the vocabulary lacks a character, or the held-out text is too short.
    """
    most = settings.max_new_tokens
    try:
        if settings.n_prompts is not None and settings.prompt_tokens is not None:
            texts = [tokenizer.encode(text) for text, _ in given]
            return passages(texts, settings.n_prompts, settings.prompt_tokens, most, settings.seed)
        return [
            Prompt(
                tuple(tokenizer.encode(text)),
                None if human is None else tuple(tokenizer.encode(human)[:most]),
            )
            for text, human in given
        ]
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error


def check_fit(prompts: Sequence[Prompt], max_new_tokens: int, context_length: int) -> None:
    """Refuses prompts that exceed the context length with their new tokens, before any method runs.

    Raises:
        Failure: there is one; the message says which.
    """
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt.tokens) + max_new_tokens - 1 > context_length:
            why = misfit(f"prompt {number}", len(prompt.tokens), max_new_tokens, context_length)
            raise Failure(TOO_LONG, f"{why}: shorten it, or lower --max-new-tokens")
