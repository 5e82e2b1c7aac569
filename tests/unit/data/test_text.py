"""One text, however the file that holds it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt.data.prompts import from_file
from minigpt.data.text import decode_text, read_lines, read_text

WRITTEN = {
    "unix": b"One.\nTw\xc3\xb6.\n",
    "windows": b"One.\r\nTw\xc3\xb6.\r\n",
    "marked": b"\xef\xbb\xbfOne.\nTw\xc3\xb6.\n",
    "notepad": b"\xef\xbb\xbfOne.\r\nTw\xc3\xb6.\r\n",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_text_is_the_same_however_it_was_written(tmp_path: Path, how: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(WRITTEN[how])
    assert read_text(file) == decode_text(WRITTEN[how], "stdin") == "One.\nTwö.\n"
    assert list(read_lines(file)) == ["One.\n", "Twö.\n"]
    assert from_file(file) == [("One.", None), ("Twö.", None)]


def test_other_characters_are_the_texts_own() -> None:
    text = "a\rb\x0bc\u2028d\ufeffe\r\r\nf"
    assert decode_text(text.encode(), "a.txt") == "a\rb\x0bc\u2028d\ufeffe\r\nf"


def test_what_is_no_text_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stdin is not UTF-8 \(byte 3\): convert it, as by `iconv"):
        decode_text(b"Caf\xe9", "stdin")
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfx\r\n" * 1000 + b"\xff")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 \(byte 6,000\)"):
        list(read_lines(file))
    for read in (read_text, lambda path: list(read_lines(path))):
        with pytest.raises(ValueError, match="cannot be read: No such file or directory; name a text file"):
            read(tmp_path / "none.txt")


def test_prompts_of_a_jsonl_file_in_upper_case(tmp_path: Path) -> None:
    file = tmp_path / "P.JSONL"
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "Once"}\r\n')
    assert from_file(file) == [("Once", None)]
