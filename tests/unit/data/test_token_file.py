"""Token files: what the tokenizer makes of each document, made once, atomically."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minigpt import Tokenizer
from minigpt.data import token_file as tokens_module
from minigpt.data.documents import documents
from minigpt.data.token_file import AT_ONCE, TokenFile, default_cache, tokenise
from minigpt.data.windows import CircularTokens, Windows
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.byte_level import byte_tokenizer, character_tokenizer

TEXT = "\n<|endoftext|>\n".join(f"Document {i}: {'wörd 😀 ' * (i % 7)}end." for i in range(2 * AT_ONCE + 3))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def with_large_ids() -> Tokenizer:
    return Tokenizer(BYTES, [], special_tokens={"<|endoftext|>": 70_000})


TOKENIZERS = {
    "bundled": Tokenizer.from_pretrained,
    "bytes": byte_tokenizer,
    "characters": lambda: character_tokenizer([TEXT]),
    "no end token": lambda: Tokenizer(BYTES, []),
    "ids beyond 16 bits": with_large_ids,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_token_file_is_each_document_after_an_end_token(text: Path, cache: Path, name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    file = tokenise([text], tokenizer, cache)
    start = [] if tokenizer.end_token is None else [tokenizer.end_token]
    expected = [start + tokenizer.encode(document) for document in documents([text])]
    assert len(expected) == 2 * AT_ONCE + 3
    assert [file.ids[begin:end].tolist() for begin, end in file.spans] == expected
    assert (
        file.spans[1:, 0].tolist()
        == file.spans[:-1, 1].tolist()
        == np.cumsum([*map(len, expected)]).tolist()[:-1]
    )
    assert len(file.ids) == file.n_tokens == file.spans[-1, 1]
    assert isinstance(file.ids, np.memmap)


def test_ids_take_two_bytes_where_that_is_enough(text: Path, cache: Path) -> None:
    small = tokenise([text], byte_tokenizer(), cache)
    large = tokenise([text], with_large_ids(), cache)
    assert (small.ids.dtype, large.ids.dtype) == (np.uint16, np.uint32)
    assert max(large.ids) == 70_000
    edge = Tokenizer(BYTES, [], special_tokens={"<|endoftext|>": 65_535})
    assert tokenise([text], edge, cache).ids.dtype == np.uint16
    over = Tokenizer(BYTES, [], special_tokens={"<|endoftext|>": 65_536})
    assert tokenise([text], over, cache).ids.max() == 65_536


def test_digests_tell_documents_apart(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n<|endoftext|>\n".join(["one", "two", "one", "three"]))
    digests = tokenise([file], byte_tokenizer(), cache).digests
    other = tokenise([file], character_tokenizer(["one two three"]), cache).digests
    assert digests[0] == digests[2]
    assert len({*digests.tolist()}) == 3
    assert digests.tolist() == other.tolist()  # of the text, whatever it is cut into


def test_half_a_character_is_no_reason_to_stop(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a\\ud83d"}')
    ids = tokenise([file], byte_tokenizer(), cache).ids
    assert bytes(ids[1:].tolist()).decode() == "a\ufffd"


# ------------------------------------------------------------------------------ found again


class Unwilling(Tokenizer):
    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        raise AssertionError("this text was tokenised before")


def unwilling() -> Tokenizer:
    return Unwilling({**BYTES, "<|endoftext|>": 256}, [])


def test_an_unchanged_text_is_not_tokenised_again(text: Path, cache: Path, tmp_path: Path) -> None:
    first = tokenise([text], byte_tokenizer(), cache)
    again = tokenise([text], unwilling(), cache)
    assert (again.folder, again.ids.tolist()) == (first.folder, first.ids.tolist())
    moved = text.rename(tmp_path / "elsewhere.txt")
    assert tokenise([moved], unwilling(), cache).folder == first.folder


@pytest.mark.parametrize("change", ["text", "kind", "tokenizer", "text_field", "separator", "cache"])
def test_what_decides_the_tokens_makes_a_new_file(
    text: Path, cache: Path, tmp_path: Path, change: str
) -> None:
    paths, field, separator = [text], "text", None
    tokenise(paths, byte_tokenizer(), cache)
    if change == "text":
        text.write_text(TEXT + "!")
    elif change == "kind":
        lines = '{"text": "a", "body": "b"}'
        text.write_text(lines)
        tokenise(paths, byte_tokenizer(), cache)
        paths = [text.rename(tmp_path / "text.jsonl")]
    elif change == "tokenizer":
        tokenizer = Unwilling({**BYTES, "<|endoftext|>": 257, "ĀĀ": 256}, [("Ā", "Ā")])
        with pytest.raises(AssertionError, match="tokenised before"):
            tokenise(paths, tokenizer, cache)
        return
    elif change == "text_field":
        field = "body"
    elif change == "separator":
        separator = "."
    elif change == "cache":
        cache = tmp_path / "other"
    with pytest.raises(AssertionError, match="tokenised before"):
        tokenise(paths, unwilling(), cache, field, separator)


def test_a_tokenizer_that_was_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    for name, make in TOKENIZERS.items():
        tokenizer = make()
        tokenizer.save_pretrained(tmp_path / name)
        assert Tokenizer.load(tmp_path / name).fingerprint() == tokenizer.fingerprint()
        saved = (tmp_path / name / "tokenizer.json").read_bytes()
        assert hashlib.sha256(saved).hexdigest() == tokenizer.fingerprint()
    assert len({make().fingerprint() for make in TOKENIZERS.values()}) == len(TOKENIZERS)


def test_the_cache_is_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "minigpt" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "minigpt" / "tokens"


# ------------------------------------------------------------------------------ atomically


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("on purpose"), MemoryError])
def test_what_ends_in_the_middle_leaves_nothing(text: Path, cache: Path, error: Any) -> None:
    class Failing(Tokenizer):
        def encode(self, text: str, allow_special: bool = False) -> list[int]:
            if f"Document {AT_ONCE + 5}:" in text:
                raise error
            return super().encode(text, allow_special)

    vocab = {**BYTES, "<|endoftext|>": 256}
    with pytest.raises(error if isinstance(error, type) else type(error)):
        tokenise([text], Failing(vocab, []), cache)
    assert [*cache.iterdir()] == []
    assert len(tokenise([text], byte_tokenizer(), cache).spans) == 2 * AT_ONCE + 3


def test_what_a_killed_process_left_is_not_taken_for_a_token_file(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("minigpt.atomic.shutil", SimpleNamespace(rmtree=lambda _: None))  # nobody tidies up
        patched.setattr(tokens_module.np, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tokenise([text], byte_tokenizer(), cache)
    assert [*cache.iterdir()]
    assert len(tokenise([text], byte_tokenizer(), cache).spans) == 2 * AT_ONCE + 3


def test_two_at_a_time_do_not_hurt_each_other(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that begin together, on the same text: one finds what the other has made in the meantime."""
    encoded, made = tokens_module._encoded, []

    def slow(*args: Any) -> Iterator[Any]:
        yield from encoded(*args)
        if not made:  # every document is written, and the folder is to get its name
            made.append("by the other")
            made.append(tokenise([text], byte_tokenizer(), cache))

    monkeypatch.setattr(tokens_module, "_encoded", slow)
    file = tokenise([text], byte_tokenizer(), cache)
    assert file.folder == made[1].folder
    assert file.ids.tolist() == made[1].ids.tolist()
    assert [*cache.iterdir()] == [file.folder]


def test_a_text_that_changes_while_it_is_read_is_refused(
    text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the new text's tokens would be taken for those of the old one, whose fingerprint they had."""
    encoded = tokens_module._encoded

    def appended(*args: Any) -> Iterator[Any]:
        yield from encoded(*args)
        text.write_text(TEXT + "!")

    with monkeypatch.context() as patched:
        patched.setattr(tokens_module, "_encoded", appended)
        with pytest.raises(ValueError, match=r"text.txt changed while it was read: start again once it is"):
            tokenise([text], byte_tokenizer(), cache)
    assert [*cache.iterdir()] == []


def test_a_cache_that_cannot_be_written_is_named(text: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"file/cache cannot be written to \(Not a directory\): .* --token-cache"
    ):
        tokenise([text], byte_tokenizer(), tmp_path / "file" / "cache")


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other(content: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in ("tokens.bin", "documents.npy", "facts.json") for damage in (shorten, empty)]
    + [("tokens.bin", lambda file: file.write_bytes(file.read_bytes()[:-1]))]
    + [("facts.json", other(text)) for text in ("[]", "{}", '{"dtype": "uint99"}', '{"dtype": 3}')]
    + [("documents.npy", lambda file: np.save(file, np.arange(3)))]
    + [(name, lambda file: file.unlink()) for name in ("tokens.bin", "documents.npy", "facts.json")],
)
def test_a_damaged_token_file_is_refused_and_made_again(
    text: Path, cache: Path, name: str, damage: Any
) -> None:
    file = tokenise([text], byte_tokenizer(), cache)
    expected = file.ids.tolist()
    damage(file.folder / name)
    message = rf"{re.escape(str(file.folder))} is damaged \(.+\): delete it, and it is made again"
    with pytest.raises(ValueError, match=message):
        tokenise([text], byte_tokenizer(), cache)
    for left in file.folder.iterdir():
        left.unlink()
    file.folder.rmdir()
    assert tokenise([text], byte_tokenizer(), cache).ids.tolist() == expected


def test_a_token_file_is_opened_without_its_text(text: Path, cache: Path) -> None:
    file = tokenise([text], byte_tokenizer(), cache)
    text.unlink()
    assert TokenFile.open(file.folder).ids.tolist() == file.ids.tolist()


def test_more_tokens_than_31_bits_count(tmp_path: Path) -> None:
    """A sparse file: on the disk, only what is written here."""
    n = 2**31 + 2**21
    documents, marks = [n // 2, n - n // 2], {0: 7, n // 2: 8, 2**31 - 1: 9, 2**31: 10, n - 1: 11}
    with (tmp_path / "tokens.bin").open("wb") as file:
        file.truncate(2 * n)
        for at, token in marks.items():
            file.seek(2 * at)
            file.write(np.uint16(token).tobytes())
    index = np.zeros(2, dtype=[("end", np.int64), ("digest", np.uint64)])
    index["end"] = np.cumsum(documents, dtype=np.int64)
    np.save(tmp_path / "documents.npy", index)
    (tmp_path / "facts.json").write_text('{"text_sha256": "", "dtype": "uint16"}')

    tokens = TokenFile.open(tmp_path)
    assert tokens.n_tokens == n
    joined = CircularTokens(tokens.ids, tokens.spans)
    for at, token in marks.items():
        before, it, after = joined.read(at - 1, 3).tolist()
        assert it == token
        assert [before, after] == [marks.get((at + d) % n, 0) for d in (-1, 1)]

    length = 2**20
    windows = Windows(tokens, length, seed=0)
    chance = np.random.default_rng([0, 0])  # as documented: documents, where the first window begins, windows
    spans = chance.permutation(tokens.spans)
    first, order = int(chance.integers(n)), chance.permutation(n // length)
    starts = np.cumsum([0, spans[0, 1] - spans[0, 0]])
    for at, token in marks.items():
        which = int(np.flatnonzero((spans[:, 0] <= at) & (at < spans[:, 1]))[0])
        place = (int(starts[which] + at - spans[which, 0]) - first) % n
        (number,) = np.flatnonzero(order == place // length)
        (row,) = windows.rows(range(number, number + 1))
        assert row[place % length] == token
