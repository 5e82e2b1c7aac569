"""Prompts by the million: the rows of a file, read one at a time; what is wrong with a row concerns that row alone."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minigpt.data.lines import lines_of, object_of, text_of
from minigpt.data.text import is_jsonl
from minigpt.json_files import expect

FIELDS = ("id", "prompt", "max_new_tokens", "seed")  # what a row means by itself; all else is kept as it is

T = TypeVar("T")


@dataclass(frozen=True)
class PromptRow:
    """One prompt of many.

    `id` names it in the results, and takes the place of the prompt's token ids in the seed. The others are None
    where the flags decide. `columns` is what else the row holds, `index` its place among its file's rows, from 0.
    """

    id: str
    prompt: str
    max_new_tokens: int | None = None
    seed: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    index: int = 0


@dataclass(frozen=True)
class RejectedRow:
    """A row that holds no prompt, and why."""

    id: str
    reason: str
    index: int = 0


def read_rows(path: Path, name: str | None = None) -> Iterator[PromptRow | RejectedRow]:
    r"""The rows of a .jsonl file, one object a line, or of a text file, one prompt a line; one at a time.

    An object has the field "prompt", and may have "id", "max_new_tokens" and "seed". A row without an id has the
    file's name, a colon and its line number for one. Blank lines of a .jsonl file are no rows; those of a text
    file are empty prompts, and rejected.

    Args:
        path: the file; the case of its suffix does not matter.
        name: what stands for the file in ids; its own name unless given.

    Raises:
        OSError: it cannot be read, or is a device, which may never end.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "some.jsonl")
    ...     _ = file.write_text('{"prompt": "Once", "id": "a"}\n{"prompt": "The king", "seed": 7}\n{}\n')
    ...     for row in read_rows(file):
    ...         print(row.id, repr(row.prompt) if isinstance(row, PromptRow) else row.reason)
    a 'Once'
    some.jsonl:2 'The king'
    some.jsonl:3 it lacks the field prompt
    """
    objects, index = is_jsonl(path), 0
    for number, line in enumerate(_lines(path), start=1):
        default_id = f"{path.name if name is None else name}:{number}"
        try:
            text = text_of(line, first=number == 1)
            if objects and not text.strip():
                continue
            yield row_of(object_of(text) if objects else {"prompt": text}, default_id, index)
        except ValueError as error:
            yield RejectedRow(default_id, str(error), index)
        index += 1


def row_of(values: Mapping[str, Any], default_id: str, index: int = 0) -> PromptRow | RejectedRow:
    """The row that some fields stand for; a field that is None counts as missing.

    >>> row_of({"prompt": "Once", "max_new_tokens": 0}, "a.jsonl:1")
    RejectedRow(id='a.jsonl:1', reason='max_new_tokens must be at least 1, got 0', index=0)
    """
    row_id = default_id
    try:
        row_id = _id(values.get("id"), default_id)
        if values.get("prompt") is None:
            raise ValueError("it lacks the field prompt")
        prompt = expect(str, values["prompt"], "the row", "prompt")
        if not prompt:
            raise ValueError("its prompt is empty")
        length, seed = _at_least(1, values, "max_new_tokens"), _at_least(0, values, "seed")
    except ValueError as error:
        return RejectedRow(row_id, str(error), index)
    columns = {name: value for name, value in values.items() if name not in FIELDS}
    return PromptRow(row_id, prompt, length, seed, columns, index)


def _id(value: Any, default_id: str) -> str:
    """The id that a row has; a whole number is written out."""
    if value is None:
        return default_id
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = expect(str, value, "the row", "id")
    if len(text.splitlines()) != 1 or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"its id is empty, or has a line break or half a surrogate pair: {text!r:.60}")
    return text


def _at_least(least: int, values: Mapping[str, Any], name: str) -> int | None:
    if values.get(name) is None:
        return None
    number = expect(int, values[name], "the row", name)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _lines(path: Path) -> Iterator[bytes]:
    if stat.S_ISCHR(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a device, which may never end", str(path))
    with path.open("rb") as file:
        yield from (line for line, _ in lines_of(file))
