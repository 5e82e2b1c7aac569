"""The same ids and the same text as transformers, for a vocabulary of the tests and for GPT-2's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import helpers_bpe
import pytest
from helpers_bpe import MERGES, TEXT, VOCAB
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.byte_level import byte_tokenizer, character_tokenizer
from minigpt.tokenizer.files import END_OF_TEXT

GPT2 = Path(__file__).parents[3] / "shared" / "gpt2-tokenizer"
VOCABULARIES = [
    "owned",
    "shuffled",  # ids that are not in order of merges
    "hand-made",  # merges that no training yields
    "bytes",  # no merges at all
    "extended",  # with added words and special tokens, written by our `save_pretrained`
    pytest.param(
        "gpt2", marks=pytest.mark.skipif(not GPT2.is_dir(), reason=f"needs GPT-2's vocabulary in {GPT2}")
    ),
]
PARTS = [
    "the",
    "The",
    " dog",
    "'s",
    "'LL",
    "'ve",
    "n't",
    " ",
    "   ",
    "\n\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "2024",
    "½",
]
PARTS += [
    "é",
    "e\u0301",
    "\u0301",
    "東京",
    "の犬",
    "👍🏽",
    "👩\u200d🚀",
    "🇫🇷",
    "नमस्ते",
    "مرحبا",
    "\x00",
    "\x85",
    "ſ",
    "...",
    "_",
]
PARTS += [END_OF_TEXT, "<|endof", "text|>", "<pad>", "Zürich", "abcb"]
texts = st.text() | st.lists(st.sampled_from(PARTS)).map("".join) | st.text(" \n\tabc'.1é\u0301", max_size=40)


@pytest.fixture(scope="module", params=VOCABULARIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Our tokenizer and transformers', from one directory."""
    name, directory = request.param, tmp_path_factory.mktemp("tokenizer")
    if name == "gpt2":
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(GPT2 / file, directory / file)
    elif name == "hand-made":
        merges = [("a", "b"), ("b", "c"), ("a", "bc"), ("c", "b"), ("ab", "cb"), ("b", "cb"), ("a", "bcb")]
        tokens = dict.fromkeys([*BYTES, *(left + right for left, right in merges), END_OF_TEXT])
        helpers_bpe.write(directory, {token: i for i, token in enumerate(tokens)}, merges)
    elif name == "extended":
        added = {"special_tokens": {"<pad>": len(VOCAB)}, "words": {"Zürich": len(VOCAB) + 1}}
        Tokenizer(VOCAB, MERGES, **added).save_pretrained(directory)
    elif name == "bytes":
        byte_tokenizer().save_pretrained(directory)
    else:
        vocab = helpers_bpe.shuffled(VOCAB, seed=5) if name == "shuffled" else VOCAB
        helpers_bpe.write(directory, vocab, MERGES)
    return load_both(directory)


def load_both(directory: Path) -> tuple[Tokenizer, Any]:
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    return Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)


def assert_same_ids(ours: Tokenizer, theirs: Any, text: str) -> None:
    assert ours.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert ours.encode(text, allow_special=True) == theirs(text, split_special_tokens=False)["input_ids"]


@given(text=texts)
def test_same_ids_for_any_text(both: tuple[Tokenizer, Any], text: str) -> None:
    assert_same_ids(*both, text)


@given(data=st.data())
def test_same_text_for_any_ids(both: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    ours, theirs = both
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    # transformers takes an added word for a text in the byte alphabet: "Zürich" would lose its ü.
    ids = [token for token in ids if token not in ours.words.values()]
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_same_ids_for_long_pieces(both: tuple[Tokenizer, Any]) -> None:
    """Long pieces go another way through tiktoken than short ones."""
    for text in (
        "the" * 500,
        " " * 3000 + "the",
        "ab" * 700,
        "abcb" * 300,
        "\n" * 2500,
        "東京" * 300,
        TEXT * 20,
    ):
        assert_same_ids(*both, text)


@pytest.mark.parametrize("form", ["ours", "transformers"])
def test_saved_tokenizers_are_read_alike(both: tuple[Tokenizer, Any], form: str, tmp_path: Path) -> None:
    ours, theirs = both
    (ours if form == "ours" else theirs).save_pretrained(tmp_path)
    if form == "transformers":
        assert not (tmp_path / "vocab.json").exists()  # since version 5 it saves tokenizer.json alone
    again = load_both(tmp_path)
    assert again[0]._vocab.items() >= ours._vocab.items()
    assert again[0]._merges == ours._merges
    for text in (TEXT, "".join(PARTS), " ".join(PARTS)):
        assert ours.encode(text) == again[0].encode(text)
        assert ours.encode(text, allow_special=True) == again[0].encode(text, allow_special=True)
        assert_same_ids(*again, text)


CHARACTERS = TEXT + "".join(PARTS)


@pytest.fixture(scope="module", params=["ascii", "unicode"])
def both_of_characters(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tokenizer, Any]:
    """The characters, and a tokenizer of them as we and as transformers read it."""
    known = "".join(c for c in CHARACTERS if c.isascii()) if request.param == "ascii" else CHARACTERS
    directory = tmp_path_factory.mktemp("characters")
    character_tokenizer([known]).save_pretrained(directory)
    return known, *load_both(directory)


@given(data=st.data())
def test_same_ids_for_known_characters(
    both_of_characters: tuple[str, Tokenizer, Any], data: st.DataObject
) -> None:
    known, ours, theirs = both_of_characters
    parts = [part for part in PARTS if set(part) <= set(known)]
    text = data.draw(st.text(st.sampled_from(known)) | st.lists(st.sampled_from(parts)).map("".join))
    assert_same_ids(ours, theirs, text)
    assert len(ours.encode(text)) == len(text)
    assert theirs.decode(ours.encode(text), clean_up_tokenization_spaces=False) == text
    assert theirs.eos_token_id == ours.end_token == len(set(known))
    assert len(theirs) == ours.vocab_size


def test_a_vocabulary_without_an_end_token_gets_none_from_transformers(tmp_path: Path) -> None:
    Tokenizer(BYTES, []).save_pretrained(tmp_path)
    ours, theirs = load_both(tmp_path)
    assert len(theirs) == ours.vocab_size == 256
    assert theirs.eos_token is None


@pytest.mark.skipif(not GPT2.is_dir(), reason=f"needs GPT-2's vocabulary in {GPT2}")
def test_published_ids_of_gpt2() -> None:
    ours = Tokenizer.load(GPT2)
    assert ours.encode("Data visualization empowers users to") == [6601, 32704, 795, 30132, 2985, 284]
    assert ours.encode("The dog") == [464, 3290]
    assert (ours.vocab_size, ours.end_token) == (50257, 50256)
    assert json.loads((GPT2 / "vocab.json").read_text("utf-8")) == ours._vocab
