"""JSON from a disk or a network: it is what is expected, or an error says which file, field and value is not."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

KINDS: dict[type, str] = {
    dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip


def parse(content: str | bytes, source: object) -> Any:
    """The value that some JSON text stands for; `source` is what errors call it.

    Raises:
        ValueError: it is not UTF-8 or not JSON, is nested too deeply, or holds NaN or Infinity, which JSON has not.

    >>> parse('{"n_layer": 12}', "config.json")
    {'n_layer': 12}
    >>> parse("[" * 100_000, "config.json")
    Traceback (most recent call last):
    ValueError: config.json is not JSON that can be read: its brackets are nested too deeply
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        return json.loads(text, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 (byte {error.start:,})") from None
    except RecursionError:
        raise ValueError(
            f"{source} is not JSON that can be read: its brackets are nested too deeply"
        ) from None
    except ValueError as error:  # of the grammar, or a number of thousands of digits
        reason = str(error).partition(";")[0]
        raise ValueError(f"{source} is not JSON: {reason}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The fields of a file that holds one JSON object.

    Raises:
        OSError: it cannot be read.
        ValueError: as for `parse`, or it holds something else than an object.
    """
    return expect(dict, parse(read_whole(path), path), path)


def read_whole(path: Path) -> bytes:
    """All of a file.

    Raises:
        OSError: it cannot be read, or is a device, which may never end.

    >>> read_whole(Path("/dev/zero"))
    Traceback (most recent call last):
    OSError: [Errno 22] it is a device, which may never end: '/dev/zero'
    """
    if stat.S_ISCHR(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a device, which may never end", str(path))
    return path.read_bytes()


def expect(kind: type[T], value: Any, source: object, field: str = "") -> T:
    """The value itself, if it is of the kind that is expected; whole numbers will do where a number may be any.

    Raises:
        ValueError: it is of another; the message has the source, the field, what was expected, and the value.

    >>> expect(list, [1, 2], "run.json", "data")
    [1, 2]
    >>> expect(int, True, "run.json", "train.steps")
    Traceback (most recent call last):
    ValueError: run.json: train.steps must be a whole number, got True
    """
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        name = f": {field} must be" if field else " must hold"
        raise ValueError(f"{source}{name} {KINDS[kind]}, got {shown(value)}")
    of_that_kind: T = value
    return of_that_kind


def field(kind: type[T], values: Mapping[str, Any], name: str, source: object) -> T:
    """A field that must be there, of the kind that is expected.

    Raises:
        ValueError: it is missing, or of another kind.

    >>> field(str, {"content": "<pad>"}, "content", "added_tokens.json")
    '<pad>'
    >>> field(int, {}, "id", "added_tokens.json")
    Traceback (most recent call last):
    ValueError: added_tokens.json lacks the field id, a whole number
    """
    if name not in values:
        raise ValueError(f"{source} lacks the field {name}, {KINDS[kind]}")
    return expect(kind, values[name], source, name)


def shown(value: object) -> str:
    """A value as an error shows it: in one line, cut off if it is long, and never so deep that it cannot be shown.

    >>> shown("x" * 100)
    "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..."
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested, or a number of thousands of digits
        text = f"an object of class {type(value).__name__} too large to show"
    text = re.sub(r"\s*\n\s*", " ", text)  # of tensors, models and data frames
    return text if len(text) <= 62 else f"{text[:59]}..."


def counted(n: int, things: str) -> str:
    """A number of things as messages show it; `things` is a plural that ends in an s of its own.

    >>> counted(1, "layers"), counted(12, "heads"), counted(50_257, "tokens")
    ('1 layer', '12 heads', '50,257 tokens')
    """
    return f"{n:,} {things.removesuffix('s') if n == 1 else things}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
