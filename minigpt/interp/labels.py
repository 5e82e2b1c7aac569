"""Tokens as short, distinct labels: spaces, line breaks and incomplete characters are visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from minigpt.tokenizer import Tokenizer

SEEN = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def token_labels(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    r"""A label for each token; one that is part of a character shows its bytes.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> token_labels(tokenizer, tokenizer.encode("The king\n"))
    ['The', '·king', '⏎']
    """
    return [_label(tokenizer, token) for token in tokens]


def _label(tokenizer: Tokenizer, token: int) -> str:
    data = tokenizer.decode_bytes([token])
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02X}⟩" for byte in data)
    return "".join(
        SEEN.get(character, character) if _is_visible(character) else _code(character) for character in text
    )


def _is_visible(character: str) -> bool:
    """Control and formatting characters (such as those that turn the direction of writing) are not."""
    return character in SEEN or unicodedata.category(character)[0] not in "CZ"


def _code(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
