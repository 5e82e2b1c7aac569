"""Columns of the input that the output keeps beside its own: how they are called, and of which kind they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Kinds = dict[str, str]  # column -> "bool", "int64", "double" or "string", as pyarrow calls them


def renamed(names: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """What each column is called in the output: a name that the output has itself gets "input_" before it.

    >>> renamed(["text", "genre"], taken=["id", "text"])
    {'text': 'input_text', 'genre': 'genre'}
    """
    new = {}
    for name in names:
        new[name] = name
        while new[name] in taken or (new[name] != name and new[name] in names):
            new[name] = f"input_{new[name]}"
    return new


def utf8(text: str) -> str:
    """The text as UTF-8 can have it: half a surrogate pair becomes "?"."""
    return text.encode(errors="replace").decode()


def note_kinds(kinds: Kinds, values: Mapping[str, Any]) -> None:
    """Widens the kinds of columns, so that they take these values, too; what nothing else takes is a string.

    >>> kinds = {}
    >>> note_kinds(kinds, {"year": 1812, "tags": ["witch"], "price": 2, "place": None})
    >>> note_kinds(kinds, {"year": "about 1812", "price": 2.5})
    >>> kinds
    {'year': 'string', 'tags': 'string', 'price': 'double', 'place': ''}
    """
    for name, value in values.items():
        kind, known = _kind(value), kinds.get(name, "")
        if {kind, known} == {"int64", "double"}:
            kinds[name] = "double"
        else:
            kinds[name] = kind or known if not (kind and known) or kind == known else "string"


def _kind(value: Any) -> str:
    """The kind of a JSON value; none if it is null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    return "double" if isinstance(value, float) else "string"
