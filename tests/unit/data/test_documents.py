"""From files to documents: what a border is, what is left as it is, and where a mistake is found."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.documents import documents, fingerprint, text_files
from minigpt.tokenizer.files import END_OF_TEXT


def read(*paths: Path, **how: str) -> list[str]:
    return list(documents(paths, **how))


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One.", ["One."]),
        ("One.\n", ["One."]),
        ("One.\n<|endoftext|>\nTwo.", ["One.", "Two."]),
        ("\n\nOne.\n\n<|endoftext|>\n\nTwo.\n\n", ["One.", "Two."]),
        ("<|endoftext|>\nOne.\n<|endoftext|>\n<|endoftext|>\n \t\n<|endoftext|>", ["One."]),
        ("One.\r\n<|endoftext|>\r\nTwo.\r\nThree.\r\n", ["One.", "Two.\nThree."]),
        (
            "\ufeffOne.\r\n<|endoftext|>\r\n\ufeffTwo.",
            ["One.", "\ufeffTwo."],
        ),  # a mark comes first, or is a character
        ("One.\n<|endoftext|>  \nTwo.", ["One.", "Two."]),
        ("  One,\n\n  two.  \n", ["  One,\n\n  two.  "]),  # spaces are the text's own
        ("One\rstill\x0bone\x0cand\u2028one", ["One\rstill\x0bone\x0cand\u2028one"]),
        ("ö\n<|endoftext|>\n😀\ufeff", ["ö", "😀\ufeff"]),
    ],
)
def test_a_text_file_holds_documents_between_lines_of_the_end_token(
    tmp_path: Path, text: Any, found: Any
) -> None:
    assert read(write(tmp_path / "a.txt", text)) == found


def test_an_end_token_inside_a_line_is_text_and_a_warning_counts_them(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.txt", "One.<|endoftext|>\nTwo."),
        write(tmp_path / "b.txt", "<|endoftext|>\nB."),
    ]
    files.append(write(tmp_path / "c.jsonl", '{"text": "<|endoftext|>C<|endoftext|>"}'))
    with pytest.warns(
        UserWarning, match=r"<\|endoftext\|> occurs 3 times inside documents, where it is plain"
    ):
        assert read(*files) == ["One.<|endoftext|>\nTwo.", "B.", "<|endoftext|>C<|endoftext|>"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r ")).filter(
    lambda text: (
        text.strip()
        and text == text.strip("\r\n")
        and "\r\n" not in text
        and text[0] != "\ufeff"
        and END_OF_TEXT not in text
    )
)


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_any_documents_are_read_back(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert read(write(Path(folder, "a.txt"), f"\n{END_OF_TEXT}\n".join(texts))) == texts
        lines = "\n".join(json.dumps({"text": text}) for text in texts)
        assert read(write(Path(folder, "a.jsonl"), lines)) == texts


@pytest.mark.parametrize(
    ("text", "separator", "found"),
    [
        ("One.<|endoftext|>Two.<|endoftext|>", END_OF_TEXT, ["One.", "Two."]),
        ("One.\n<|endoftext|>\nTwo.", END_OF_TEXT, ["One.", "Two."]),  # a line of its own is one, too
        ("One.\n\nStill one.\n\n\nTwo.", "\n\n\n", ["One.\n\nStill one.", "Two."]),
        ("aab and aab", "aab", [" and "]),
        ("xaaay", "aa", ["x", "ay"]),  # the first one counts
        ("== One\r\nTwo\r\n==", "\n==", ["== One\nTwo"]),
    ],
)
def test_another_separator_may_stand_anywhere(
    tmp_path: Path, text: str, separator: str, found: list[str]
) -> None:
    assert read(write(tmp_path / "a.txt", text), separator=separator) == found


@given(
    st.lists(TEXTS, min_size=2, max_size=5), st.sampled_from(["--", "\n\n", "-\n-\n", "<|endoftext|>", "a"])
)
def test_any_separator_does(texts: list[str], separator: str) -> None:
    """As `str.split` has it, on the whole text."""
    whole = separator.join(texts)
    documents = [part.strip("\r\n") for part in whole.split(separator) if part.strip()]
    with tempfile.TemporaryDirectory() as folder:
        if documents:
            assert read(write(Path(folder, "a.txt"), whole), separator=separator) == documents


def test_a_line_may_hold_any_number_of_documents(tmp_path: Path) -> None:
    """As web texts come, with no line end between them; to copy what is left for each would take minutes."""
    n = 400_000
    file = write(tmp_path / "a.txt", "Once upon a time there was a king.<|endoftext|>" * n)
    assert sum(1 for _ in documents([file], separator=END_OF_TEXT)) == n


def test_a_separator_that_does_not_occur_is_reported(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "One.\n\nTwo.")
    message = r"a.txt is one document: the separator '\\\\n\\\\n' does not occur in it; for a newline write \$'\\n' in bash"
    with pytest.warns(UserWarning, match=message):
        assert read(file, separator=r"\n\n") == ["One.\n\nTwo."]
    with pytest.raises(
        ValueError, match=r"the separator of documents \(--separator\) needs at least one character"
    ):
        read(file, separator="")


def test_jsonl_holds_a_document_a_line_in_a_field_of_its_own(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl", '{"n": 1, "body": "One\\nline."}\n\n{"body": "  "}\n{"body": "Two.\\n"}\n'
    )
    assert read(file, text_field="body") == ["One\nline.", "Two."]


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_a_file_from_windows_is_the_same_text(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unix = f"\n{END_OF_TEXT}\n".join(text.replace("\r", "") + "." for text in texts)
        windows = "\ufeff" + unix.replace("\n", "\r\n")
        assert read(write(Path(folder, "a.txt"), windows)) == read(write(Path(folder, "b.txt"), unix))


def test_a_suffix_means_the_same_in_upper_case(tmp_path: Path) -> None:
    upper = write(tmp_path / "B.JSONL", '{"text": "B"}')
    assert read(upper) == ["B"]
    assert fingerprint([upper]) == fingerprint([write(tmp_path / "deep" / "b.jsonl", '{"text": "B"}')])
    write(tmp_path / "A.TXT", "A")
    assert [file.name for file in text_files(tmp_path)] == ["A.TXT", "B.JSONL", "b.jsonl"]


def test_a_folder_is_all_its_texts_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "B")
    write(tmp_path / "a" / "z.jsonl", '{"text": "Z"}')
    write(tmp_path / "a" / "deep" / "y.txt", "Y")
    write(tmp_path / "picture.png", b"\xff")
    write(tmp_path / "other" / "c", "C")
    (tmp_path / "folder.txt").mkdir()
    assert [str(file.relative_to(tmp_path)) for file in text_files(tmp_path)] == [
        "a/deep/y.txt",
        "a/z.jsonl",
        "b.txt",
    ]
    assert read(tmp_path) == ["Y", "Z", "B"]
    assert read(tmp_path / "b.txt", tmp_path / "a", tmp_path / "other" / "c") == ["B", "Y", "Z", "C"]


MISTAKES = {
    "none.txt": (None, "none.txt does not exist: name a text file, a .jsonl file, or a folder of them"),
    "empty.txt": ("", "empty.txt holds no text: leave it out, or put text into it"),
    "blank.txt": (" \n\n<|endoftext|>\n\t\n", "blank.txt holds no text"),
    "empty.jsonl": ("\n\n", "empty.jsonl holds no text"),
    "latin.txt": ("Caf\xe9".encode("latin-1"), "latin.txt is not UTF-8 (byte 3): convert it, as by `iconv"),
    "later.txt": (b"x\n" * 1000 + b"y\xff", "later.txt is not UTF-8 (byte 2,001)"),
    "utf16.txt": ("Text".encode("utf-16"), "utf16.txt is not UTF-8 (byte 0)"),
    "bytes.jsonl": (b'{"text": "\xff"}', "bytes.jsonl is not UTF-8 (byte 10)"),
    "broken.jsonl": ('{"text": "a"}\n{"text": ', "broken.jsonl, line 2 is not JSON: Expecting value"),
    "field.jsonl": ('\n{"body": "a", "id": 3}', "field.jsonl, line 2: no text in field 'text' (there is: body, id)"),
    "number.jsonl": ('{"text": 3}', "number.jsonl, line 1: no text in field 'text' (there is: text); give --text-field"),
    "list.jsonl": ('["a"]', "list.jsonl, line 1: no text in field 'text' (there is: list)"),
    "folder": ({}, "folder is a folder without .txt or .jsonl files: name one with text"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_with_their_place(tmp_path: Path, name: str) -> None:
    content, message = MISTAKES[name]
    if content == {}:
        (tmp_path / name).mkdir()
    elif content is not None:
        write(tmp_path / name, content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / message))):
        read(tmp_path / name)


def test_one_empty_file_among_others_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "A")
    write(tmp_path / "b.txt", "\n")
    with pytest.raises(ValueError, match=r"b\.txt holds no text"):
        read(tmp_path)


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.txt", "A")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    for use in (read, lambda path: fingerprint([path])):
        with pytest.raises(ValueError, match=r"a\.txt cannot be read: Permission denied"):
            use(file)


# ------------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_is_of_contents_and_order_not_of_names(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "A"), write(tmp_path / "b.txt", "B")
    same = write(tmp_path / "far" / "away.txt", "A")
    assert fingerprint([a]) == fingerprint([same])
    assert fingerprint([a, b]) == fingerprint([same, b]) != fingerprint([b, a])
    assert fingerprint([a, b]) == fingerprint([write(tmp_path / "ab" / "1.txt", "A").parent, b])
    assert len({fingerprint(paths) for paths in ([a], [b], [a, b], [a, a], [b, a])}) == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_has_no_fingerprint_for_its_text_would_be_gone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        ValueError, match=r"pipe is a pipe, which can be read only once; .* write it into a file"
    ):
        fingerprint([tmp_path / "pipe"])


def test_one_text_in_two_files_is_not_the_same_as_in_one(tmp_path: Path) -> None:
    """For they are read otherwise: a file's end is a border."""
    whole = write(tmp_path / "whole.txt", "AB")
    parts = [write(tmp_path / "a.txt", "A"), write(tmp_path / "b.txt", "B")]
    assert fingerprint([whole]) != fingerprint(parts)


def test_the_same_bytes_read_as_jsonl_are_another_text(tmp_path: Path) -> None:
    content = '{"text": "A"}'
    text, lines = write(tmp_path / "a.txt", content), write(tmp_path / "a.jsonl", content)
    assert read(text) != read(lines)
    assert fingerprint([text]) != fingerprint([lines])
    assert fingerprint([text, text]) != fingerprint([text, lines])
