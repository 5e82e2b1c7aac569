"""Values of options from the texts of their flags, where that takes more than `int` or `float`."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

from minigpt.sampler.regex.pattern import parse

if TYPE_CHECKING:
    from minigpt.sampler.options import Loaded
    from minigpt.sampler.regex.mask import Regex


def bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    return int(token), float(bias)


def spellings(words: list[str], loaded: Loaded) -> tuple[tuple[int, ...], ...]:
    # GPT-2 writes a word with its space before it, except where a text or a line begins.
    spelled = (spelling(start + word, loaded.tokenizer) for word in words for start in ("", " "))
    return tuple(tokens for tokens in spelled if tokens)


def spelling(text: str, tokenizer: Any) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text))
    except ValueError:  # what the vocabulary cannot spell is never written
        return ()


def not_empty(text: str) -> str:
    if not text:
        raise ValueError("an empty text is in every token")
    return text


def holding(texts: list[str], loaded: Loaded) -> tuple[int, ...]:
    """The tokens in which one of the texts occurs, for GPT-2 has many that hold a line's end or a quote.

    Of a text that takes several tokens, the last.
    """
    tokenizer = loaded.tokenizer
    shown = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    inside = {token for token, string in enumerate(shown) if any(text in string for text in texts)}
    last = {token for text in texts for token in spelling(text, tokenizer)[-1:]}
    return tuple(sorted(inside | last))


def start_and_factor(text: str) -> tuple[int, float]:
    start, _, factor = text.partition(",")
    return int(start), float(factor)


def pattern(text: str) -> str:
    try:
        parse(text)  # says what is wrong before a model is loaded
    except ValueError as error:
        raise ArgumentTypeError(error) from error
    return text


def regex(text: str, loaded: Loaded) -> Regex:
    from minigpt.sampler.regex.mask import Regex  # here, for torch is slow to import

    return Regex(text, loaded.tokenizer.token_bytes())
