"""Types of option values that take more than `int` or `float`, and how they are made of the texts of flags."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from minigpt.options import FLOAT32, KINDS, Kind
from minigpt.sampler.events import LanguageModel

_is_whole, _is_number = KINDS[int].has, KINDS[float].has


class Loaded(Protocol):
    """What an option may ask for when its text alone does not say it."""

    @property
    def tokenizer(self) -> Any: ...
    def other_model(self, name_or_dir: str) -> LanguageModel:
        """A second model, which must share the first one's vocabulary."""


def are_ids(value: Any) -> bool:
    """Whether this is a collection of token ids.

    >>> are_ids([1, 2]), are_ids("king"), are_ids([-1])
    (True, False, False)
    """
    listed = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    return listed and all(_is_whole(token) and token >= 0 for token in value)


def _are_sequences(value: Any) -> bool:
    listed = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
    return listed and all(are_ids(ids) and len(ids) > 0 for ids in value)


def _are_biases(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and are_ids(value.keys())
        and all(
            _is_number(bias) and (abs(bias) <= FLOAT32[1] or bias == -math.inf) for bias in value.values()
        )
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    return int(token), float(bias)


def _is_start_and_factor(value: Any) -> bool:
    """Whether this is such a pair; exponents of 1 or below would not boost, NaN compares false."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    start, factor = value
    return _is_whole(start) and start >= 0 and _is_number(factor) and 1 < factor < math.inf


def _start_and_factor(text: str) -> tuple[int, float]:
    start, _, factor = text.partition(",")
    return int(start), float(factor)


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("every token contains an empty text")
    return text


def _is_model(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("config", "next_logits", "new_cache"))


TOKEN_IDS = Kind("token ids (tokenizer.encode makes them of a text)", are_ids, _not_empty)
TOKEN_SEQUENCES = Kind(
    "sequences of at least one token id each (tokenizer.encode makes them of a text)", _are_sequences
)
BIASES = Kind("a dict of finite biases, or -inf, by token id", _are_biases, _bias, "ID=BIAS")
START_AND_FACTOR = Kind(
    "a pair of a whole number of at least 0 and a finite factor above 1",
    _is_start_and_factor,
    _start_and_factor,
    "START,FACTOR",
)
MODEL = Kind("a loaded model (minigpt.load loads one)", _is_model, str, "NAME_OR_DIR")


def spellings(words: list[str], loaded: Loaded) -> tuple[tuple[int, ...], ...]:
    """Each word's tokens with a space before it and without; of a mark or a newline, every token with it."""
    # GPT-2 writes a word with its space before it, except where a text or a line begins.
    spelled = (spelling(start + word, loaded.tokenizer) for word in words for start in ("", " "))
    # Among its tokens are two newlines in one, and a quote after a period. Of a word, "location" holds "cat".
    marks = [word for word in words if not any(map(str.isalnum, word))]
    inside = tokens_with(marks, loaded.tokenizer) if marks else set()
    return tuple(dict.fromkeys([*filter(None, spelled), *((token,) for token in sorted(inside))]))


def spelling(text: str, tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a text; none where the vocabulary cannot spell it."""
    try:
        return tuple(tokenizer.encode(text))
    except ValueError:
        return ()


def containing(texts: list[str], loaded: Loaded) -> tuple[int, ...]:
    """The tokens that contain one of the texts, for GPT-2 has many with a newline or a quote in them.

    Of a text that takes several tokens, the last.
    """
    last = {token for text in texts for token in spelling(text, loaded.tokenizer)[-1:]}
    return tuple(sorted(tokens_with(texts, loaded.tokenizer) | last))


def tokens_with(texts: list[str], tokenizer: Any) -> set[int]:
    """The tokens that contain one of the texts."""
    shown = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    return {token for token, string in enumerate(shown) if any(text in string for text in texts)}
