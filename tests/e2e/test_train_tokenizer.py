"""The command that trains a tokenizer: the ids that the library gives, the same files every time, no traceback."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from command import run
from helpers_bpe import TEXT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from minigpt import train_tokenizer
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

DOCUMENTS = [
    TEXT.replace(END_OF_TEXT, "the end").strip("\n"),
    "Once upon a time there was the dog.\n" * 3 + "é",
]
NAMES = ["merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
SIZE = 300


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "tales.txt"
    file.write_text(f"\n{END_OF_TEXT}\n".join(DOCUMENTS), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def learned() -> ByteLevelBPETokenizer:
    """What the library itself makes of the documents."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(DOCUMENTS, vocab_size=SIZE, special_tokens=[END_OF_TEXT], show_progress=False)
    return learner


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "new" / "tok"
    assert train_tokenizer.main([str(text), "--vocab-size", str(SIZE), "--out", str(out), "--quiet"]) == 0
    return out


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process: its exit code, and its lines on stderr without their beginning."""

    def call(*flags: object) -> tuple[int, list[str]]:
        code = train_tokenizer.main([str(flag) for flag in flags])
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert all(line.startswith("minigpt.train_tokenizer: ") for line in lines)
        return code, [line.removeprefix("minigpt.train_tokenizer: ") for line in lines]

    return call


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ------------------------------------------------------------------------------ what is learned


def test_the_vocabulary_is_the_librarys(
    trained: Path, learned: ByteLevelBPETokenizer, tmp_path: Path
) -> None:
    learned.save_model(str(tmp_path))
    assert json.loads((trained / "vocab.json").read_text("utf-8")) == learned.get_vocab()
    assert (trained / "merges.txt").read_text("utf-8") == (tmp_path / "merges.txt").read_text("utf-8")


def test_the_end_token_comes_first_then_the_bytes_then_the_merges(trained: Path) -> None:
    tokenizer = Tokenizer.load(trained)
    vocab = json.loads((trained / "vocab.json").read_text("utf-8"))
    in_order = sorted(vocab, key=vocab.__getitem__)
    assert tokenizer.vocab_size == len(vocab) == SIZE
    assert (tokenizer.end_token, in_order[0]) == (0, END_OF_TEXT)
    assert set(in_order[1:257]) == set(BYTES)
    merges = (trained / "merges.txt").read_text("utf-8").splitlines()[1:]
    assert in_order[257:] == [merge.replace(" ", "") for merge in merges]


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.lists(st.sampled_from(TEXT.split(" "))).map(" ".join))
def test_encoding_is_the_librarys(trained: Path, learned: ByteLevelBPETokenizer, text: str) -> None:
    tokenizer = Tokenizer.load(trained)
    plain = text.replace(END_OF_TEXT, "")  # which the library takes for the token in any text
    assert tokenizer.encode(plain) == learned.encode(plain).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transformers_reads_the_same(trained: Path) -> None:
    ours, theirs = Tokenizer.load(trained), AutoTokenizer.from_pretrained(trained)
    for document in DOCUMENTS:
        assert theirs(document)["input_ids"] == ours.encode(document)
    marked = END_OF_TEXT.join(DOCUMENTS)
    assert theirs(marked)["input_ids"] == ours.encode(marked, allow_special=True)
    assert (theirs.eos_token_id, len(theirs)) == (0, SIZE)


def test_the_same_text_gives_the_same_files(text: Path, trained: Path, tmp_path: Path) -> None:
    again = run(
        text, "--vocab-size", SIZE, "--out", tmp_path / "tok", python=("-m", "minigpt.train_tokenizer")
    )
    assert (again.code, again.out) == (0, "")
    assert files(tmp_path / "tok") == files(trained)
    assert sorted(files(trained)) == NAMES


def test_the_form_of_the_text_does_not_matter(trained: Path, tmp_path: Path, call: Any) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "1.jsonl").write_text(json.dumps({"story": DOCUMENTS[0]}) + "\n")
    (folder / "2.txt").write_text(DOCUMENTS[1])
    assert call(folder, "--text-field", "story", "--vocab-size", SIZE, "--out", tmp_path / "tok")[0] == 0
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "tok" / name).read_bytes() == (trained / name).read_bytes()


def test_the_files_say_what_they_were_trained_on(text: Path, trained: Path) -> None:
    settings = json.loads((trained / "tokenizer_config.json").read_text("utf-8"))
    assert settings["trained_on"] == {"sha256": hashlib.sha256(text.read_bytes()).hexdigest()}


def test_a_pair_must_be_as_frequent_as_asked(tmp_path: Path, call: Any) -> None:
    (tmp_path / "text.txt").write_text("ab ab cd")
    made = {}
    for least in (1, 2, 3, 10**30):
        out = tmp_path / str(least)
        asked = (tmp_path / "text.txt", "--vocab-size", 500, "--out", out, "--min-frequency", least)
        assert call(*asked, "--quiet") == (0, [])
        made[least] = (out / "merges.txt").read_text("utf-8").splitlines()[1:]
    assert made[2] == ["a b"]
    assert made[1][0] == "a b"
    assert sorted(made[1][1:]) == ["c d", "Ġ ab", "Ġ cd"]
    assert made[3] == made[10**30] == []


# ------------------------------------------------------------------------------ what is said


def test_the_closing_line(text: Path, trained: Path, tmp_path: Path, call: Any) -> None:
    tokenizer = Tokenizer.load(trained)
    n_tokens = sum(len(tokenizer.encode(document)) for document in DOCUMENTS)
    rate = sum(len(document.encode()) for document in DOCUMENTS) / n_tokens
    code, lines = call(text, "--vocab_size", SIZE, "--out", tmp_path / "tok")
    assert code == 0
    assert lines == [
        f"{SIZE} tokens, {rate:.2f} bytes per token at the text's beginning, saved in {tmp_path / 'tok'}"
    ]


def test_bytes_per_token_are_measured_on_the_beginning(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(f"xyzé\n{END_OF_TEXT}\nthe the the")
    monkeypatch.setattr(train_tokenizer, "SAMPLE", 4)
    asked = ("--vocab-size", 258, "--out", tmp_path / "tok")
    assert call(tmp_path / "text.txt", *asked)[1][-1].startswith("258 tokens, 1.00 bytes per token")


def test_a_text_too_small_for_so_many_tokens(tmp_path: Path, call: Any) -> None:
    (tmp_path / "text.txt").write_text("ab ab cd")
    code, (small, closing) = call(tmp_path / "text.txt", "--vocab-size", 500, "--out", tmp_path / "tok")
    assert code == 0
    assert small.startswith("only 258 tokens, not 500: no further pair occurs 2 times; give more text")
    assert closing.startswith("258 tokens")
    assert Tokenizer.load(tmp_path / "tok").vocab_size == 258


def test_quiet_says_nothing(text: Path, tmp_path: Path, call: Any) -> None:
    assert call(text, "--vocab-size", 5000, "--out", tmp_path / "tok", "--quiet") == (0, [])


@pytest.mark.parametrize(
    ("terminal", "flags", "shown"), [(True, [], True), (False, [], False), (True, ["--quiet"], False)]
)
def test_progress_is_for_terminals(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, flags: list[str], shown: bool
) -> None:
    asked: list[bool] = []
    real = ByteLevelBPETokenizer.train_from_iterator

    def watched(self: Any, *args: Any, show_progress: bool, **how: Any) -> None:
        asked.append(show_progress)
        real(self, *args, show_progress=False, **how)

    monkeypatch.setattr(ByteLevelBPETokenizer, "train_from_iterator", watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    train_tokenizer.main([str(text), "--vocab-size", "300", "--out", str(tmp_path / "tok"), *flags])
    assert asked == [shown]


def test_help_teaches_and_does_not_wait_for_libraries() -> None:
    code = (
        "import sys\n"
        "from minigpt.train_tokenizer import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'tokenizers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    result = run(python=("-c", code))
    assert result.code == 0
    for words in (
        "--vocab-size N",
        "--out DIR",
        "--min-frequency",
        "--text-field",
        "--quiet",
        "<|endoftext|>",
    ):
        assert words in result.out


def test_the_examples_of_the_help_are_flags_that_exist() -> None:
    commands = [line for line in train_tokenizer.EXAMPLES.splitlines() if "minigpt train-tokenizer" in line]
    assert len(commands) == 3
    for line in commands:
        flags = shlex.split(line.split("      ")[0])[2:]
        args = train_tokenizer.parser().parse(flags)
        assert (len(args.text), args.out) == (1, "tok")


# ------------------------------------------------------------------------------ mistakes

MISTAKES = {
    "{text}": ["required: --vocab-size, --out", "see --help"],
    "--vocab-size 300 --out {new}": ["required: FILE_OR_DIR", "see --help"],
    "{text} --vocab-size 256 --out {new}": ["--vocab-size", "257", "the 256 bytes", "got 256"],
    "{text} --vocab-size 1000001 --out {new}": ["--vocab-size", "to 1000000", "got 1000001"],
    "{text} --vocab-size x --out {new}": ["--vocab-size", "'x'", "see --help"],
    "{text} --vocab-size 300 --min-frequency 0 --out {new}": ["--min-frequency", "at least 1", "got 0"],
    "{text} --vocab-size 300 --out ''": ["--out needs the name of a folder, got ''"],
    "{text} --vocab-size 300 --out {text}": ["--out", "is no folder that can be written into"],
    "{text} --vocab-size 300 --out {text}/tok": ["--out", "{text} is no folder that can be written into"],
    "{tmp} --vocab-size 300 --out {tmp}/new/tok": ["lies in {tmp}", "merges.txt", "a folder elsewhere"],
    "{tmp}/none.txt --vocab-size 300 --out {new}": ["{tmp}/none.txt does not exist", "name a text file"],
    "{tmp}/latin1.txt --vocab-size 300 --out {new}": ["latin1.txt is not UTF-8", "byte 3"],
    "{tmp}/empty.txt --vocab-size 300 --out {new}": ["empty.txt holds no text"],
    "{text} {tmp}/empty.txt --vocab-size 300 --out {new}": ["empty.txt holds no text"],
    "{tmp}/a.jsonl --vocab-size 300 --out {new}": [
        "line 1",
        "field 'text'",
        "there is: story",
        "--text-field",
    ],
    "{tmp}/a.jsonl --text-field story --vocab-size 300 --out {new}": ["surrogates not allowed"],
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    text: Path, tmp_path: Path, call: Any, flags: str
) -> None:
    (tmp_path / "latin1.txt").write_bytes("Caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_bytes(b"\n")
    (tmp_path / "a.jsonl").write_text('{"story": "half a pair: \\ud800"}')
    places = {"text": text, "tmp": tmp_path, "new": tmp_path.parent / f"{tmp_path.name}-new"}
    before = sorted(tmp_path.rglob("*"))
    code, (line,) = call(*(flag.format(**places) for flag in shlex.split(flags)))
    assert code == 2
    assert not [words for words in MISTAKES[flags] if words.format(**places) not in line], line
    assert sorted(tmp_path.rglob("*")) == before
    assert not places["new"].exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_is_never_overwritten(text: Path, tmp_path: Path, call: Any, name: str) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "config.json").write_text("{}")
    code, (line,) = call(text, "--vocab-size", SIZE, "--out", tmp_path)
    assert code == 2
    assert line == f"--out {tmp_path} holds a tokenizer already ({name}): name another folder"
    assert files(tmp_path) == {name: b"mine", "config.json": b"{}"}


def test_a_folder_with_other_files_will_do(text: Path, tmp_path: Path, call: Any, trained: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert call(text, "--vocab-size", SIZE, "--out", tmp_path, "--quiet") == (0, [])
    assert files(tmp_path) == {**files(trained), "config.json": b"{}"}


def test_without_the_library(text: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, lines = call(text, "--vocab-size", SIZE, "--out", tmp_path / "tok")
    assert (code, lines) == (2, ["training needs the package tokenizers: pip install 'minigpt[train]'"])


# ------------------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_while_the_text_is_read_leaves_nothing_behind(
    text: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(*_: object) -> Iterator[str]:
        for n in count():
            if n == 100:
                os.kill(os.getpid(), signal.SIGINT)  # to the main thread: this one is the library's
            yield "Once upon a time there was a dog."

    monkeypatch.setattr(train_tokenizer, "documents", endless)
    assert call(text, "--vocab-size", SIZE, "--out", tmp_path / "tok") == (130, [])
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_before_anything_is_read(tmp_path: Path, call: Any) -> None:
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    code, (line,) = call(pipe, "--vocab-size", SIZE, "--out", tmp_path / "tok")
    assert code == 2
    assert (
        line
        == f"{pipe} is a pipe, which can be read only once; its text is needed twice: write it into a file"
    )


def test_ctrl_c_while_the_files_are_written_leaves_none(
    text: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_text

    def interrupted(self: Path, *args: Any, **how: Any) -> int:
        written = real(self, *args, **how)
        signal.raise_signal(signal.SIGINT)
        return written

    monkeypatch.setattr(Path, "write_text", interrupted)
    assert call(text, "--vocab-size", SIZE, "--out", tmp_path / "tok") == (130, [])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
