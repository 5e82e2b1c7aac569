"""The tokenizer against the definition of byte-pair encoding, and its files against themselves."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_bpe
import pytest
import regex
from helpers_bpe import GPT2_PATTERN, MERGES, OWNED, VOCAB
from hypothesis import example, given
from hypothesis import strategies as st

from minigpt.tokenizer import SPLIT, Tokenizer
from minigpt.tokenizer.bpe import BYTES, makeable
from minigpt.tokenizer.files import END_OF_TEXT

SHUFFLED = Tokenizer(helpers_bpe.shuffled(VOCAB, seed=3), MERGES)
# Pieces of text in which everything happens that the split, the merges and UTF-8 can make happen.
PARTS = [
    "the",
    "The",
    " dog",
    "'s",
    "'ll",
    "'D",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u3000",
    "7",
    "½",
    "...",
]
PARTS += [
    "é",
    "e\u0301",
    "東京",
    "の犬",
    "👍",
    "👩\u200d🚀",
    "\u0900",
    "\x00",
    "\x85",
    END_OF_TEXT,
    "<|",
    "ſ",
    "_",
]
texts = st.lists(st.sampled_from(PARTS)).map("".join)
# Ids of half characters above all; also ids that the vocabulary does not have.
tokens = st.lists(
    st.sampled_from([*OWNED.encode("é東👍a"), VOCAB[END_OF_TEXT], -1, 5000]) | st.integers(0, 400)
)
stops = st.lists(st.text("ab é東<", min_size=1, max_size=4), max_size=3)
texts_with_stops = st.text("aab é東<e", max_size=30)


@given(text=st.lists(st.sampled_from([*PARTS, "'t", "'re", "'ve", "'m", "'d", "'", "a"])).map("".join))
def test_text_is_split_as_published(text: str) -> None:
    assert regex.findall(SPLIT, text) == regex.findall(GPT2_PATTERN, text)


@pytest.mark.parametrize("tokenizer", [OWNED, SHUFFLED])
@given(text=texts)
def test_encode_is_byte_pair_encoding_by_definition(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == helpers_bpe.encode(tokenizer._vocab, MERGES, text)


@pytest.mark.parametrize("tokenizer", [OWNED, SHUFFLED])
@given(text=st.text() | texts)
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, allow_special=True)) == text
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


@st.composite
def hand_made_merges(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges that no training yields: pairs that other merges always tear apart, two ways to one token."""
    tokens, merges = ["a", "b"], []
    for _ in range(draw(st.integers(1, 10))):
        pair = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if pair not in merges:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    return merges


@example(merges=[("a", "a"), ("aa", "aa")], text="aaaa")  # as many as are complete, from the left
@example(merges=[("a", "a"), ("a", "aa")], text="aaa")
@given(merges=hand_made_merges(), text=st.text("ab", max_size=40))
def test_pairs_are_merged_not_texts(merges: list[tuple[str, str]], text: str) -> None:
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*BYTES, *(a + b for a, b in merges)]))}
    try:
        tokenizer = Tokenizer(vocab, merges)
    except ValueError as error:
        if "for which an earlier merge can never be used" not in str(error):
            raise
        return
    assert tokenizer.encode(text) == helpers_bpe.encode(vocab, merges, text)


def test_a_token_that_its_own_text_does_not_make_is_decoded_but_never_encoded() -> None:
    merges = [("a", "b"), ("b", "c"), ("a", "bc")]
    vocab = {token: i for i, token in enumerate([*BYTES, "ab", "bc", "abc"])}
    tokenizer = Tokenizer(vocab, merges)
    assert tokenizer.encode("abc") == [vocab["ab"], vocab["c"]]
    assert tokenizer.decode([vocab["abc"]]) == "abc"


def test_every_trained_token_can_be_made() -> None:
    assert makeable(MERGES) == [token for token in VOCAB if token != END_OF_TEXT]


def test_a_million_spaces_are_split_as_three_are() -> None:
    for n in (3, 1_000_000):
        ids = OWNED.encode(" " * n + "the")
        assert OWNED.decode(ids) == " " * n + "the"
        assert OWNED.token_string(ids[-1]) == " the"
    assert "1000" in SPLIT  # the stride that makes it possible


def test_half_a_surrogate_pair_in_a_setting_is_kept(tmp_path: Path) -> None:
    """JSON has an escape for it, UTF-8 no bytes."""
    Tokenizer(BYTES, [], settings={"add": "\ud800"}).save_pretrained(tmp_path / "a")
    Tokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for folder in ("a", "b"):
        assert json.loads((tmp_path / folder / "tokenizer_config.json").read_bytes())["add"] == "\ud800"


def test_half_a_surrogate_pair_is_no_character() -> None:
    assert OWNED.encode("a\ud800b") == OWNED.encode("a\ufffdb")


def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "socket", None)
    assert Tokenizer.load(helpers_bpe.write(tmp_path, VOCAB, MERGES)).encode("the") == OWNED.encode("the")


# ------------------------------------------------------------------------------ special tokens, words, ids


def test_special_tokens_are_plain_text_unless_allowed() -> None:
    text = f"the{END_OF_TEXT} dog"
    plain, special = OWNED.encode(text), OWNED.encode(text, allow_special=True)
    assert VOCAB[END_OF_TEXT] not in plain
    assert special == [*OWNED.encode("the"), VOCAB[END_OF_TEXT], *OWNED.encode(" dog")]
    assert OWNED.decode(plain) == OWNED.decode(special) == text


def test_of_two_special_tokens_the_longer_is_found() -> None:
    tokenizer = Tokenizer(VOCAB, MERGES, special_tokens={"<a>": 1000, "<a>b": 1001})
    assert tokenizer.encode("<a>b<a>c", allow_special=True)[:2] == [1001, 1000]
    assert tokenizer.special_tokens == {END_OF_TEXT: VOCAB[END_OF_TEXT], "<a>": 1000, "<a>b": 1001}


def test_a_token_without_text_is_never_found() -> None:
    assert Tokenizer(VOCAB | {"": 1000}, MERGES).encode("the", allow_special=True) == OWNED.encode("the")


def test_added_words_are_found_in_any_text() -> None:
    tokenizer = Tokenizer(VOCAB, MERGES, words={"Zürich": 1000})
    assert tokenizer.encode("in Zürich") == [*OWNED.encode("in "), 1000]
    assert tokenizer.decode([1000]) == "Zürich"
    assert "Zürich" not in tokenizer.special_tokens


def test_the_vocabulary_in_numbers() -> None:
    assert OWNED.vocab_size == len(VOCAB)
    assert Tokenizer(VOCAB, MERGES, special_tokens={"<gap>": 1000}).vocab_size == 1001
    assert OWNED.end_token == VOCAB[END_OF_TEXT]
    assert Tokenizer(BYTES, []).end_token is None
    two = {END_OF_TEXT: 300, "</s>": 301}
    for eos, end in ((None, 300), ("</s>", 301), ({"content": "</s>"}, 301), ("<none>", None)):
        assert Tokenizer(BYTES, [], special_tokens=two, settings={"eos_token": eos}).end_token == end
    assert (
        repr(OWNED)
        == f"Tokenizer(vocab_size={len(VOCAB)}, special_tokens={{'<|endoftext|>': {len(VOCAB) - 1}}})"
    )


def test_what_is_no_character_is_shown_as_such() -> None:
    assert OWNED.decode([5000, -1, *OWNED.encode("é")]) == "\ufffd\ufffdé"
    assert Tokenizer(BYTES, []).token_string(0xC3) == "\ufffd"
    assert OWNED.token_string(VOCAB[END_OF_TEXT]) == END_OF_TEXT


# ------------------------------------------------------------------------------ streams and stops


@given(ids=tokens)
def test_a_stream_is_decode_in_parts(ids: list[int]) -> None:
    stream, shown = OWNED.stream(), ""
    for token in ids:
        shown += stream.feed(token)
        assert OWNED.decode(ids).startswith(shown)
    assert shown + stream.finish() == OWNED.decode(ids)


@given(text=texts)
def test_a_stream_never_shows_half_a_character(text: str) -> None:
    stream = OWNED.stream()
    assert "\ufffd" not in "".join(stream.feed(token) for token in OWNED.encode(text))


@given(text=texts_with_stops, stop=stops)
def test_completed_is_a_search_in_the_bytes(text: str, stop: list[str]) -> None:
    ids, stopped = OWNED.encode(text), OWNED.stop_strings(*stop).completed
    for n in range(len(ids) + 1):
        before, now = OWNED.decode_bytes(ids[: n - 1]), OWNED.decode_bytes(ids[:n])
        ends = [i + len(s) for s in map(str.encode, stop) for i in range(len(now)) if now[i:].startswith(s)]
        assert stopped(ids[:n]) == any(end > len(before) for end in ends if n)


@given(text=texts_with_stops, stop=stops)
def test_a_stream_shows_what_comes_before_the_stop(text: str, stop: list[str]) -> None:
    stopped, stream, ids, shown = OWNED.stop_strings(*stop).completed, OWNED.stream(*stop), [], ""
    for token in OWNED.encode(text):
        ids.append(token)
        shown += stream.feed(token)
        if stopped(ids):
            assert stream.feed(token) == ""  # nothing follows
            break
    assert shown + stream.finish() == OWNED.stop_strings(*stop).cut(OWNED.decode(ids))


@given(text=texts_with_stops, stop=stops, skip=st.integers(0, 9))
def test_what_is_skipped_is_as_if_it_were_not_there(text: str, stop: list[str], skip: int) -> None:
    ids, found = OWNED.encode(text), OWNED.stop_strings(*stop).completed
    stream, shown = OWNED.stream(skip=skip), ""
    for n in range(1, len(ids) + 1):
        shown += stream.feed(ids[n - 1])
        before, now = (OWNED.decode_bytes(ids[:m])[skip:] for m in (n - 1, n))
        ends = [i + len(s) for s in map(str.encode, stop) for i in range(len(now)) if now[i:].startswith(s)]
        assert found(ids[:n], skip) == any(end > len(before) for end in ends)
    assert shown + stream.finish() == OWNED.decode_bytes(ids)[skip:].decode(errors="replace")


def test_a_stop_text_is_found_across_tokens_and_after_a_false_start() -> None:
    tokenizer = Tokenizer(BYTES, [])
    stopped = tokenizer.stop_strings("never", "aab", "é").completed
    assert [stopped(list(b"aaab"[: n + 1])) for n in range(4)] == [False, False, False, True]
    assert not stopped(list(b"aaabc"))  # that was said already
    assert stopped(list("xé".encode()))
    assert not tokenizer.stop_strings().completed(list(b"abc"))


def test_a_stream_holds_back_no_more_than_it_must() -> None:
    stream = Tokenizer(BYTES, []).stream("aab", "b!")
    assert [stream.feed(token) for token in b"xaaab?"] == ["x", "", "", "a", "", ""]
    stream = Tokenizer(BYTES, []).stream("aab")
    assert [stream.feed(token) for token in b"aac"] == ["", "", "aac"]


def test_text_is_cut_before_the_earliest_stop() -> None:
    assert OWNED.stop_strings("three", "two").cut("one two three") == "one "
    assert OWNED.stop_strings("four").cut("one two three") == "one two three"
    assert OWNED.stop_strings().cut("one two three") == "one two three"


@pytest.mark.parametrize("use", [OWNED.stop_strings, OWNED.stream])
def test_an_empty_stop_string_is_refused(use: Any) -> None:
    with pytest.raises(ValueError, match=r"a stop string must not be empty, got \['a', ''\]"):
        use("a", "")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: OWNED.encode(["one", "two"]), r"encode takes one text, got \['one', 'two'\]"),
        (lambda: OWNED.encode(5), "encode takes one text, got 5"),
        (lambda: OWNED.decode("one"), "decode takes the ids of one text, got 'one'"),
        (lambda: OWNED.decode(5), "decode takes the ids of one text, got 5"),
        (
            lambda: OWNED.decode([[97], [98]]),
            r"decode takes the ids of one text, got \[\[97\], \[98\]\]: decode several",
        ),
        (lambda: OWNED.stop_strings("a", 5), "a stop string must be a text, got 5"),
    ],
)
def test_what_is_no_text_and_no_ids_is_refused(use: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        use()


# ------------------------------------------------------------------------------ files


def same(first: Tokenizer, second: Tokenizer) -> bool:
    return all(
        getattr(first, name) == getattr(second, name)
        for name in ("_vocab", "_merges", "special_tokens", "words")
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    rich = Tokenizer(
        helpers_bpe.shuffled(VOCAB, seed=3),
        MERGES,
        special_tokens={"<pad>": 1000},
        words={"Zürich": 1001},
        settings={"model_max_length": 64, "pad_token": "<pad>"},
    )
    rich.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("without", [(), ("vocab.json", "merges.txt"), ("merges.txt",), ("tokenizer.json",)])
def test_load_inverts_save(saved: Path, without: tuple[str, ...]) -> None:
    for name in without:
        (saved / name).unlink()
    tokenizer = Tokenizer.load(saved)
    assert tokenizer._vocab == helpers_bpe.shuffled(VOCAB, seed=3)
    assert tokenizer._merges == MERGES
    assert tokenizer.special_tokens == {END_OF_TEXT: tokenizer._vocab[END_OF_TEXT], "<pad>": 1000}
    assert tokenizer.words == {"Zürich": 1001}
    again = saved.parent / "again"
    tokenizer.save_pretrained(again)
    for file in saved.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_save_inverts_load(tmp_path: Path) -> None:
    source = helpers_bpe.write(tmp_path / "source", VOCAB, MERGES)
    Tokenizer.load(source).save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/vocab.json").read_text("utf-8")) == VOCAB
    assert (tmp_path / "saved/merges.txt").read_bytes() == (source / "merges.txt").read_bytes()
    names = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert sorted(os.listdir(tmp_path / "saved")) == names


def test_settings_survive(saved: Path) -> None:
    Tokenizer.load(saved).save_pretrained(saved)
    settings = json.loads((saved / "tokenizer_config.json").read_text("utf-8"))
    assert settings["model_max_length"] == 64
    assert settings["eos_token"] == END_OF_TEXT


def test_a_write_that_fails_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(self: Path, *args: Any, **how: Any) -> None:
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", disk_full)
    with pytest.raises(OSError, match="disk full"):
        OWNED.save_pretrained(saved)
    assert Tokenizer.load(saved)._vocab == helpers_bpe.shuffled(VOCAB, seed=3)


def test_both_ways_to_write_merges_in_tokenizer_json(saved: Path) -> None:
    whole = json.loads((saved / "tokenizer.json").read_text("utf-8"))
    assert whole["model"]["merges"][0] == " ".join(MERGES[0])
    whole["model"]["merges"] = MERGES
    (saved / "tokenizer.json").write_text(json.dumps(whole))
    (saved / "vocab.json").unlink()
    assert Tokenizer.load(saved)._merges == MERGES


@pytest.mark.parametrize(("old", "new"), [("#version: 0.2\n", ""), ("\n", "\r\n")])
def test_merges_without_a_version_or_from_windows(tmp_path: Path, old: str, new: str) -> None:
    path = helpers_bpe.write(tmp_path, VOCAB, MERGES) / "merges.txt"
    path.write_bytes(path.read_text("utf-8").replace(old, new).encode())
    assert Tokenizer.load(tmp_path)._merges == MERGES


def test_added_tokens_of_old_directories(tmp_path: Path) -> None:
    helpers_bpe.write(tmp_path, VOCAB, MERGES)
    (tmp_path / "added_tokens.json").write_text(
        '{"<old>": 1000, "word": 1001, "newword": 1003, "<mask>": 1004}'
    )
    (tmp_path / "special_tokens_map.json").write_text('{"mask_token": "<mask>"}')
    decoder = {"1001": {"content": "word", "special": False}, "1002": {"content": "<new>", "special": True}}
    config = {"added_tokens_decoder": decoder, "pad_token": {"content": "<old>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == {
        END_OF_TEXT: VOCAB[END_OF_TEXT],
        "<old>": 1000,
        "<new>": 1002,
        "<mask>": 1004,
    }
    assert tokenizer.words == {"word": 1001, "newword": 1003}  # no setting gives it a purpose
    assert tokenizer.encode("a newword") == [*tokenizer.encode("a "), 1003]


def test_from_pretrained_takes_a_directory(saved: Path) -> None:
    assert same(Tokenizer.from_pretrained(saved), Tokenizer.load(saved))


# ------------------------------------------------------------------------------ messages


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"has neither vocab\.json and merges\.txt nor tokenizer\.json"
    ):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b"{", r"vocab\.json is not JSON: Expecting property name"),
        ("vocab.json", b"[1]", r"vocab\.json must hold an object, got \[1\]"),
        ("vocab.json", b'{"\xff": 1}', r"vocab\.json is not UTF-8 \(byte 2\)"),
        ("vocab.json", b"{}", r"vocab\.json: the vocabulary has none of the 256 bytes: it is empty"),
        ("merges.txt", b"a b c\n", r"merges\.txt: merge 1 is 'a b c', not two tokens with a space between"),
        ("merges.txt", b"a b\n\nb c\n", r"merges\.txt: merge 2 is '', not two tokens"),
        ("merges.txt", b"\xff b\n", r"merges\.txt is not UTF-8: .*0xff"),
        ("merges.txt", b"z q\n", r"vocab\.json: merge 1 makes 'zq', which the vocabulary lacks"),
        (
            "merges.txt",
            b"th e\nt h\n",
            r"vocab\.json: merge 1, 'th' with 'e', needs both to be bytes of the vocabulary or made by",
        ),
        (
            "tokenizer_config.json",
            b'{"add_prefix_space": true}',
            r"add_prefix_space is True; .* where it is False",
        ),
        (
            "tokenizer_config.json",
            b'{"add_bos_token": true}',
            r"tokenizer_config\.json: add_bos_token is True; minigpt",
        ),
        ("added_tokens.json", b'{"<x>": 3}', r"vocab\.json: '\$' and '<x>' have the same id, 3"),
        ("added_tokens.json", b'{"<x>": -3}', r"the id of '<x>' is -3, not a whole number of at least 0"),
        ("added_tokens.json", b'{"<x>": "3"}', r"added_tokens\.json: '<x>' must be a whole number, got '3'"),
        (
            "added_tokens.json",
            b'{"<x>": 1000000000000}',
            r"the id of '<x>' is 1,000,000,000,000; ids are below 10,",
        ),
        ("added_tokens.json", b'{"b": 900}', r"added token 'b' has id 900, but \d+ in the vocabulary"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    helpers_bpe.write(tmp_path, VOCAB, MERGES)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model", {"type": "WordPiece"}, r"model\.type is 'WordPiece'; minigpt reads .* where it is 'BPE'"),
        ("model", {"dropout": 0.1}, r"model\.dropout is 0\.1;"),
        ("model", {"end_of_word_suffix": "</w>"}, r"model\.end_of_word_suffix is '</w>';"),
        ("model", {"continuing_subword_prefix": "##"}, r"model\.continuing_subword_prefix is '##';"),
        ("model", {"ignore_merges": True}, r"model\.ignore_merges is True;"),
        ("model", {"vocab": [["a", 0]]}, r"model\.vocab must be an object, got \[\['a', 0\]\]"),
        ("model", {"merges": None}, r"model\.merges must be a list, got None"),
        ("model", {"merges": [["a"]]}, r"tokenizer\.json: merge 1 is \['a'\], not two tokens"),
        ("model", {"merges": [7]}, r"tokenizer\.json: merge 1 is 7, not two tokens"),
        ("normalizer", {"type": "NFC"}, r"normalizer\.type is 'NFC'; .* where it is None"),
        (
            "pre_tokenizer",
            {"type": "Metaspace"},
            r"pre_tokenizer\.type is 'Metaspace'; .* where it is 'ByteLevel'",
        ),
        (
            "pre_tokenizer",
            {"add_prefix_space": True},
            r"pre_tokenizer\.add_prefix_space is True; .* is False",
        ),
        ("pre_tokenizer", {"use_regex": False}, r"pre_tokenizer\.use_regex is False; .* where it is True"),
        ("post_processor", {"type": "BertProcessing"}, r"post_processor\.type is 'BertProcessing';"),
        ("post_processor", {"special_tokens": {"<s>": {}}}, r"post_processor\.special_tokens is \{'<s>'"),
    ],
)
def test_a_tokenizer_json_of_another_kind(
    saved: Path, part: str, change: dict[str, Any], message: str
) -> None:
    (saved / "vocab.json").unlink()
    whole = json.loads((saved / "tokenizer.json").read_text("utf-8"))
    whole[part] = (whole[part] or {}) | change
    (saved / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"saved.tokenizer\.json: ") as caught:
        Tokenizer.load(saved)
    assert caught.match(message)


def test_an_added_token_that_takes_in_its_neighbours(saved: Path) -> None:
    whole = json.loads((saved / "tokenizer.json").read_text("utf-8"))
    whole["added_tokens"][-1]["lstrip"] = True
    (saved / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(
        ValueError,
        match=r"saved.tokenizer.json: added_tokens: added token 'Zürich' has lstrip=True; only False is supported",
    ):
        Tokenizer.load(saved)


def test_merges_that_can_only_be_used_out_of_order() -> None:
    merges = [("b", "b"), ("b", "bb"), ("bb", "b")]
    vocab = {token: i for i, token in enumerate([*BYTES, "bb", "bbb"])}
    with pytest.raises(ValueError, match="merge 3 makes 'bbb', for which an earlier merge can never be used"):
        Tokenizer(vocab, merges)


def test_ids_may_be_tensors_and_numpy_numbers():
    import numpy as np
    import torch

    tokenizer = Tokenizer(BYTES, [])
    assert (
        tokenizer.decode(torch.tensor(list(b"king"))) == tokenizer.decode(np.array(list(b"king"))) == "king"
    )
