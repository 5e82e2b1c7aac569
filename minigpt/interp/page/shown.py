"""Text that a page shows: a label for each token, and the characters that are spread over several tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minigpt.interp.labels import token_labels
from minigpt.tokenizer import Tokenizer

NOTHING = "⟨⟩"  # a token that spells no text at all


def pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    """A label for each token, none of them empty."""
    return [label or NOTHING for label in token_labels(tokenizer, tokens)]


def vocabulary(tokenizer: Tokenizer, tokens: Iterable[int]) -> dict[str, str]:
    """The labels of some tokens, by their ids as text, which JSON needs."""
    ids = sorted(set(tokens))
    return {str(token): label for token, label in zip(ids, pieces(tokenizer, ids), strict=True)}


def spread_characters(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[tuple[int, int, str]]:
    """Characters that no single token holds: the first and the last token of each, and the character.

    >>> from minigpt.tokenizer.byte_level import byte_tokenizer
    >>> spread_characters(byte_tokenizer(), [*"né!".encode()])
    [(1, 2, 'é')]
    """
    spellings = [tokenizer.decode_bytes([token]) for token in tokens]
    owner = [i for i, spelling in enumerate(spellings) for _ in spelling]  # the token of each byte
    spread, at = [], 0
    for character in b"".join(spellings).decode(errors="surrogateescape"):  # a stray byte is one character
        end = at + len(character.encode(errors="surrogateescape"))
        if owner[at] != owner[end - 1]:
            spread.append((owner[at], owner[end - 1], character))
        at = end
    return spread
