"""Tokenizers that need no training: the 256 bytes, or the characters of a text."""

from __future__ import annotations

from collections.abc import Iterable

from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

CHARACTERS = {byte: character for character, byte in BYTES.items()}


def byte_tokenizer() -> Tokenizer:
    """A token for each byte, whose id is its value, and <|endoftext|> after them, 256.

    Any text can be encoded; a character beyond ASCII takes two to four tokens.

    >>> byte_tokenizer().encode("Hé<|endoftext|>", allow_special=True)
    [72, 195, 169, 256]
    """
    return Tokenizer({**BYTES, END_OF_TEXT: 256}, merges=[])


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A token for each character that the texts contain, sorted by code point, and <|endoftext|> after them.

    A text in other characters cannot be encoded, unless bytes of known ones happen to spell them. For a
    character beyond ASCII there must be tokens that merges lead through, its bytes and their beginnings;
    they come last, and no text in known characters uses them.

    Raises:
        ValueError: the texts contain no character at all, or half a surrogate pair, which is none.

    Source: the data/shakespeare_char recipe of github.com/karpathy/nanoGPT, which has no end token.

    >>> tokenizer = character_tokenizer(["hello", "olé"])
    >>> tokenizer.encode("hole")
    [1, 3, 2, 0]
    >>> tokenizer.encode("é"), tokenizer.vocab_size      # e h l o é, the end token, and the two bytes of é
    ([4], 8)
    """
    characters = sorted(set().union(*texts))
    if not characters:
        raise ValueError("no character to make a vocabulary of: the texts are empty")
    spellings = [character.encode() for character in characters]
    beginnings = {spelling[:n] for spelling in spellings for n in range(1, len(spelling) + 1)}
    single = {bytes([byte]) for spelling in spellings for byte in spelling}
    # By length, because a merge can only join what is there. They all start at a character's first byte, so
    # none reaches into the next character.
    parts = sorted(beginnings | single, key=lambda part: (len(part), part))
    tokens = [*map(_token, spellings), END_OF_TEXT, *(_token(p) for p in parts if p not in set(spellings))]
    merges = [(_token(part[:-1]), _token(part[-1:])) for part in parts if len(part) > 1]
    return Tokenizer({token: number for number, token in enumerate(tokens)}, merges)


def _token(spelling: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in spelling)
