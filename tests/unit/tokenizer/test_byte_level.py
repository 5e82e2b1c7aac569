"""Tokenizers of bytes and of characters against definitions of one line, and what they cannot encode."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import call, tiny
from hypothesis import given
from hypothesis import strategies as st

from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.byte_level import byte_tokenizer, character_tokenizer
from minigpt.tokenizer.files import END_OF_TEXT

# Characters of one to four bytes; é and É begin with the same byte, 👍 and 👩 with the same three.
MIXED = "no é É 東京 👍👩 \n\t\x00 e\u0301 <|endoftext|>"
ASCII = "First Citizen:\nBefore we proceed any further, hear me speak."

characters = st.text(st.characters(codec="utf-8") | st.sampled_from(MIXED), min_size=1)


def spelled_by(text: str) -> set[int]:
    return set(text.encode())


@given(text=st.text())
def test_a_byte_is_its_own_id(text: str) -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.encode(text) == [*text.encode()]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_end_token_follows_the_bytes() -> None:
    tokenizer = byte_tokenizer()
    assert (tokenizer.vocab_size, tokenizer.end_token) == (257, 256)
    assert tokenizer.encode(f"a{END_OF_TEXT}b", allow_special=True) == [97, 256, 98]


@given(text=characters, data=st.data())
def test_a_character_is_one_token_in_order_of_code_points(text: str, data: st.DataObject) -> None:
    tokenizer, alphabet = character_tokenizer([text]), sorted(set(text))
    another = data.draw(st.text(st.sampled_from(alphabet)))
    for known in (text, another):
        tokens = tokenizer.encode(known)
        assert tokens == [alphabet.index(character) for character in known]
        assert tokenizer.decode(tokens) == known
        assert [tokenizer.token_string(token) for token in tokens] == list(known)
    assert tokenizer.end_token == len(alphabet)
    assert tokenizer.encode(text[0] + END_OF_TEXT, allow_special=True)[1:] == [len(alphabet)]


@given(text=st.text(st.characters(max_codepoint=127), min_size=1))
def test_ascii_takes_its_characters_and_the_end_token_only(text: str) -> None:
    assert character_tokenizer([text]).vocab_size == len(set(text)) + 1


def test_beyond_ascii_come_the_bytes_and_beginnings_that_merges_need() -> None:
    tokenizer = character_tokenizer(["aé東京"])
    made = [tokenizer.decode_bytes([token]) for token in range(5, tokenizer.vocab_size)]
    assert made == [
        b"\x9d",
        b"\xa9",
        b"\xac",
        b"\xb1",
        b"\xba",
        b"\xc3",
        b"\xe4",
        b"\xe6",
        b"\xe4\xba",
        b"\xe6\x9d",
    ]


def test_all_texts_count_and_may_come_one_by_one() -> None:
    parts, whole = character_tokenizer(part for part in MIXED.split()), character_tokenizer(MIXED.split())
    assert parts.encode("京e👍") == whole.encode("京e👍")
    assert repr(parts) == repr(whole) == repr(character_tokenizer(["".join(MIXED.split())]))


@given(alphabet=characters, text=st.text())
def test_what_cannot_be_encoded_is_named_and_never_dropped(alphabet: str, text: str) -> None:
    tokenizer, known = character_tokenizer([alphabet]), spelled_by(alphabet)
    unknown = [character for character in text if not spelled_by(character) <= known]
    if not unknown:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    with pytest.raises(ValueError, match="this tokenizer has no token for") as caught:
        tokenizer.encode(text)
    assert f" {unknown[0]!r} (" in str(caught.value)


def test_the_message_says_how_many_there_are_and_what_to_do() -> None:
    tokenizer = character_tokenizer([ASCII])
    n = len(set(ASCII))
    message = (
        rf"^this tokenizer has no token for 'é' \(a vocabulary of {n} characters or bytes\): leave it out, or use"
        " a tokenizer that has all 256 bytes$"
    )
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("we é ü")
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(f"we{END_OF_TEXT}é", allow_special=True)


def test_a_special_token_that_is_not_allowed_is_text_that_must_be_spelled() -> None:
    tokenizer = character_tokenizer(["end"])
    assert tokenizer.encode(END_OF_TEXT, allow_special=True) == [3]
    with pytest.raises(ValueError, match="no token for '<'"):
        tokenizer.encode(END_OF_TEXT)


def test_half_a_surrogate_pair_is_the_character_that_stands_for_none() -> None:
    with pytest.raises(ValueError, match="no token for '\ufffd'"):
        character_tokenizer(["ab"]).encode("a\ud800b")
    assert character_tokenizer(["ab\ufffd"]).encode("a\ud800b") == [0, 2, 1]


def test_a_word_that_was_added_needs_no_spelling() -> None:
    tokenizer = Tokenizer({"a": 0, "b": 1}, [], words={"é": 2})
    assert tokenizer.encode("aéb") == [0, 2, 1]
    with pytest.raises(ValueError, match=r"no token for 'ü' \(a vocabulary of 2 "):
        tokenizer.encode("éü")


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_characters_are_no_vocabulary(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="no character to make a vocabulary of: the texts are empty"):
        character_tokenizer(texts)


def test_half_a_surrogate_pair_is_no_character_of_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        character_tokenizer(["a\ud800"])


# ------------------------------------------------------------------------------ files


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), *(character_tokenizer([t]) for t in (ASCII, MIXED))])
@pytest.mark.parametrize("without", [(), ("vocab.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_load_inverts_save(tmp_path: Path, tokenizer: Tokenizer, without: tuple[str, ...]) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    for name in without:
        (tmp_path / "saved" / name).unlink()
    loaded = Tokenizer.load(tmp_path / "saved")
    everything = range(tokenizer.vocab_size)
    assert loaded.vocab_size == tokenizer.vocab_size
    assert loaded.special_tokens == tokenizer.special_tokens == {END_OF_TEXT: tokenizer.end_token}
    assert [*map(loaded.token_string, everything)] == [*map(tokenizer.token_string, everything)]
    for text in ("", "Eee", "e\nne"):
        known = "".join(c for c in text if spelled_by(c) <= set(tokenizer.decode_bytes(everything)))
        assert loaded.encode(known) == tokenizer.encode(known)
    loaded.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "saved").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_lost_byte_is_reported_when_the_files_are_read_or_when_text_needs_it() -> None:
    vocab = {token: number for token, number in BYTES.items() if token != "h"}
    with pytest.raises(ValueError, match="no token for 'h'"):
        Tokenizer(vocab, []).encode("the")
    with pytest.raises(
        ValueError, match="merge 1, 't' with 'h', needs both to be bytes of the vocabulary or"
    ):
        Tokenizer({**vocab, "th": 256}, [("t", "h")])
    with pytest.raises(
        ValueError, match="merge 1, 'h' with 'e', needs both to be bytes of the vocabulary or"
    ):
        Tokenizer({**vocab, "he": 256}, [("h", "e")])


@pytest.mark.parametrize("vocab", [{}, {"[CLS]": 0, "##ing": 1, END_OF_TEXT: 2}])
def test_a_vocabulary_without_any_byte_is_refused(vocab: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match="the vocabulary has none of the 256 bytes: it is empty, or not byte-level"
    ):
        Tokenizer(vocab, [])


# ------------------------------------------------------------------------------ the command line


@pytest.fixture
def of_characters(tmp_path: Path) -> Path:
    tokenizer = character_tokenizer(["abc é"])
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.end_token)
    tiny(vocab_size=tokenizer.vocab_size, **ends).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_of_characters_writes(of_characters: Path) -> None:
    asked = ("--model", of_characters, "--max-new-tokens", 3, "--quiet", "--echo")
    assert call(*asked, "abé").text.startswith("abé")
    assert call(*asked).code == 0  # from its end token on


def test_a_prompt_that_cannot_be_encoded_is_one_line(of_characters: Path) -> None:
    result = call("--model", of_characters, "-p", "abc", "-p", "ab東c")
    assert result.code == 2
    assert "this tokenizer has no token for '東' (a vocabulary of " in result.mistake


def test_a_stop_text_that_cannot_be_encoded_never_comes(of_characters: Path) -> None:
    asked = ("--model", of_characters, "abc", "--max-new-tokens", 3, "--quiet")
    assert call(*asked, "--stop", "東").text == call(*asked).text
