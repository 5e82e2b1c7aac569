"""Rows of prompts: what a file means, and what is wrong with a row."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from minigpt.data import lines
from minigpt.data.prompt_rows import PromptRow, RejectedRow, read_rows, row_of


def rows(tmp_path: Path, content: bytes, name: str = "some.jsonl") -> list[PromptRow | RejectedRow]:
    file = tmp_path / name
    file.write_bytes(content)
    return list(read_rows(file))


def test_a_text_file_has_a_prompt_on_each_line(tmp_path: Path) -> None:
    expected = [PromptRow("a.TXT:1", " One. "), PromptRow("a.TXT:2", "Tw\xf6\r.", index=1)]
    for content in (b" One. \nTw\xc3\xb6\r.", b"\xef\xbb\xbf One. \r\nTw\xc3\xb6\r.\r\n"):
        assert rows(tmp_path, content, "a.TXT") == expected


def test_an_empty_line_of_a_text_file_is_an_empty_prompt(tmp_path: Path) -> None:
    assert rows(tmp_path, b"a\n\nb\n", "a.txt") == [
        PromptRow("a.txt:1", "a"),
        RejectedRow("a.txt:2", "its prompt is empty", 1),
        PromptRow("a.txt:3", "b", index=2),
    ]


def test_objects_keep_what_they_hold(tmp_path: Path) -> None:
    content = b"""\xef\xbb\xbf{"prompt": "One", "id": "x", "max_new_tokens": 3, "seed": 0, "topic": [1, "t"]}\r\n
{"prompt": "{not an object}", "id": 12, "seed": null}
"""
    assert rows(tmp_path, content, "b.JSONL") == [
        PromptRow("x", "One", 3, 0, {"topic": [1, "t"]}),
        PromptRow("12", "{not an object}", index=1),
    ]


def test_the_name_in_ids_may_be_another(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One\n")
    assert list(read_rows(tmp_path / "a.txt", name="sub/a.txt")) == [PromptRow("sub/a.txt:1", "One")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{}", "it lacks the field prompt"),
        (b'{"prompt": null}', "it lacks the field prompt"),
        (b'{"prompt": ""}', "its prompt is empty"),
        (b'{"prompt": 7}', "the row: prompt must be a text, got 7"),
        (b'["prompt"]', r"the line must hold an object, got \['prompt'\]"),
        (b"{", "the line is not JSON: Expecting property name"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "a", "seed": NaN}', "NaN is not a JSON number"),
        (b'{"prompt": "caf\xe9"}', r"it is not UTF-8 \(byte 15 of the line\)"),
        (b'{"prompt": "a", "id": ""}', "its id is empty, or has a line break or half a surrogate pair: ''"),
        (b'{"prompt": "a", "id": "a\\nb"}', "its id is empty, or has a line break"),
        (b'{"prompt": "a", "id": "\\ud800"}', "half a surrogate pair"),
        (b'{"prompt": "a", "id": true}', "the row: id must be a text, got True"),
        (b'{"prompt": "a", "max_new_tokens": 0}', "max_new_tokens must be at least 1, got 0"),
        (b'{"prompt": "a", "max_new_tokens": "9"}', "max_new_tokens must be a whole number, got '9'"),
        (b'{"prompt": "a", "seed": -1}', "seed must be at least 0, got -1"),
        (b'{"prompt": "a", "seed": 1.5}', "seed must be a whole number, got 1.5"),
    ],
)
def test_a_bad_row_is_rejected_alone(tmp_path: Path, line: bytes, reason: str) -> None:
    first, bad, last = rows(tmp_path, b'{"prompt": "a"}\n' + line + b'\n{"prompt": "b"}')
    assert (first, last) == (PromptRow("some.jsonl:1", "a"), PromptRow("some.jsonl:3", "b", index=2))
    assert isinstance(bad, RejectedRow)
    assert bad.id == "some.jsonl:2"
    assert re.search(reason, bad.reason)


def test_a_rejected_row_keeps_its_id() -> None:
    assert row_of({"id": "x", "prompt": ""}, "a:1") == RejectedRow("x", "its prompt is empty")


def test_a_line_without_end_is_rejected_and_not_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 10)
    content = b"0123456789\n" + b"x" * 35 + b"\n" + b"x" * 11 + b"\nend"
    too_long = "the line is longer than 10 bytes"
    assert rows(tmp_path, content, "a.txt") == [
        RejectedRow("a.txt:1", too_long),  # its end counts
        RejectedRow("a.txt:2", too_long, 1),
        RejectedRow("a.txt:3", too_long, 2),
        PromptRow("a.txt:4", "end", index=3),
    ]


def test_rows_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with file.open("wb") as sparse:
        sparse.write(b"One\nTwo\n")
        sparse.truncate(1 << 40)
    assert [row.id for row in islice(read_rows(file), 2)] == ["a.txt:1", "a.txt:2"]


def test_a_device_is_refused() -> None:
    with pytest.raises(OSError, match="it is a device, which may never end"):
        next(read_rows(Path("/dev/zero")))
