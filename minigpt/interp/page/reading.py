"""Reading a page back: it is data, not a picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minigpt.interp.page.data import FORMAT
from minigpt.interp.page.document import BEGIN, END
from minigpt.interp.page.packed import is_packed, unpack
from minigpt.json_files import expect, parse, read_whole


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The data of a page that `minigpt explore` has written; arrays are tensors.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such page, or it is damaged; the message names the file.

    >>> import tempfile
    >>> import minigpt
    >>> from minigpt.interp.page import explore
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     explore(*minigpt.load(), "Once upon a", max_new_tokens=1).save(f"{folder}/page.html")
    ...     data = load(f"{folder}/page.html")
    >>> data["runs"][0]["text"], data["runs"][0]["attention"]["weight"].shape
    ('Once upon a time', torch.Size([8, 5, 4, 4]))
    """
    try:
        return read(read_whole(Path(path)).decode())
    except ValueError as error:  # of UTF-8, of JSON, of an array
        raise ValueError(f"{path} is no page of minigpt explore: {error}") from None


def read(html: str) -> dict[str, Any]:
    """The data of a page, as for `load`; errors do not name the file."""
    _, begin, rest = html.partition(BEGIN)
    content, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError("it holds no data")
    data = expect(dict, parse(content, "its data"), "its data")
    if data.get("format") != FORMAT:
        raise ValueError(f'its data does not say "format": "{FORMAT}"')
    unpacked: dict[str, Any] = _unpacked(data)
    return unpacked


def _unpacked(value: Any) -> Any:
    if is_packed(value):
        return unpack(value)
    if isinstance(value, dict):
        return {key: _unpacked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unpacked(inner) for inner in value]
    return value
