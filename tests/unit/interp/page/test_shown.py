"""Labels are never empty nor obeyed, and whole characters stand beside the tokens that share them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import minigpt
from minigpt import Tokenizer
from minigpt.interp.page.shown import pieces, spread_characters, vocabulary
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.byte_level import byte_tokenizer

LETTERS = byte_tokenizer()


def test_what_cannot_be_seen_is_spelled() -> None:
    assert pieces(LETTERS, [*b" \n\x1b", 0xF0]) == ["·", "⏎", "⟨U+001B⟩", "⟨F0⟩"]
    bundled = Tokenizer.from_pretrained()
    assert all(pieces(bundled, range(bundled.vocab_size)))


def test_a_token_without_text_has_a_label() -> None:
    silent = Tokenizer({**BYTES, "": 256}, [], special_tokens={"": 256})
    assert pieces(silent, [256]) == ["⟨⟩"]


def test_labels_by_id() -> None:
    assert vocabulary(LETTERS, [98, 97, 98]) == {"97": "a", "98": "b"}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_every_character_beyond_ascii_is_found_in_its_bytes(text: str) -> None:
    tokens = LETTERS.encode(text)
    found = spread_characters(LETTERS, tokens)
    assert [character for _, _, character in found] == [c for c in text if ord(c) > 127]
    for first, last, character in found:
        assert LETTERS.decode(tokens[first : last + 1]) == character


def test_bytes_that_are_no_text_are_no_character() -> None:
    assert spread_characters(LETTERS, [0xF0, 0x9F, 97, *"é".encode()]) == [(3, 4, "é")]
    assert spread_characters(LETTERS, [0xFF, 0xC3]) == []


def test_characters_that_one_token_holds_are_left_out() -> None:
    tokenizer = minigpt.Tokenizer.from_pretrained()
    assert spread_characters(tokenizer, tokenizer.encode("Once upon a time")) == []
