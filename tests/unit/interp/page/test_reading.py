"""`load` reads what was written, and says of anything else what it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import bytes_alone, tiny

from minigpt.interp.page import explore, load
from minigpt.interp.page.document import BEGIN, END

PAGE = explore(tiny(n_layer=2, n_head=2).eval(), bytes_alone(), "a cat", max_new_tokens=2)


def written(folder: Path, content: str | bytes) -> Path:
    file = folder / "page.html"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def changed(**fields: Any) -> str:
    return f"{BEGIN}{json.dumps({**PAGE.data, **fields})}{END}"


def test_arrays_are_tensors(tmp_path: Path) -> None:
    data = load(written(tmp_path, PAGE.html))
    (run,) = data["runs"]
    assert run["attention"]["index"].dtype == torch.int64
    assert run["lens"]["probability"].dtype == torch.float32
    assert {name: value for name, value in data.items() if name != "runs"} == {
        name: value for name, value in PAGE.data.items() if name != "runs"
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it holds no data"),
        ("<html></html>", "it holds no data"),
        (PAGE.html[: PAGE.html.index(BEGIN) + 100], "it holds no data"),
        (b"\xff", "codec can't decode byte"),
        (f"{BEGIN}[]{END}", r"its data must hold an object, got \[\]"),
        (f"{BEGIN}{{{END}", "its data is not JSON"),
        (BEGIN + "[" * 100_000 + END, "nested too deeply"),
        (changed(format="minigpt-page-0"), 'its data does not say "format": "minigpt-page-1"'),
        (changed(runs=[{"dtype": "uint8", "shape": [1], "data": "!"}]), "an array is damaged"),
    ],
    ids=range(9),
)
def test_what_is_no_page(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(ValueError, match=f"page.html is no page of minigpt explore: .*{message}"):
        load(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.html")
