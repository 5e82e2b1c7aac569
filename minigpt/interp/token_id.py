"""The check of a single token's id, for every analysis of one token's logit."""

from __future__ import annotations

from operator import index
from typing import Any

from minigpt.errors import InvalidRequest, NoSuchIndex
from minigpt.json_files import shown


def token_id(name: str, value: Any, vocab_size: int | None = None) -> int:
    """An argument that must be a token's id, as a plain number.

    Args:
        name: the argument's.
        value: what was given for it.
        vocab_size: how many tokens there are, if that is known.

    Raises:
        NoSuchIndex: there is no such token.
        InvalidRequest: it is a text, or something else that is no whole number.

    >>> token_id("target", 7, vocab_size=12)
    7
    >>> token_id("target", " who")
    Traceback (most recent call last):
    minigpt.errors.InvalidRequest: target is a token id, got the text ' who': encode it first
    """
    if isinstance(value, str):
        raise InvalidRequest(f"{name} is a token id, got the text {shown(value)}: encode it first")
    try:
        token = index(value)
    except TypeError:  # a fraction, a list, or a tensor of several
        raise InvalidRequest(f"{name} is a token id, got {shown(value)}: give one whole number") from None
    if token < 0 or (vocab_size is not None and token >= vocab_size):
        there = (
            "ids are counted from 0"
            if vocab_size is None
            else f"the model knows ids from 0 to {vocab_size - 1}"
        )
        raise NoSuchIndex(f"there is no token {token}: {there}")
    return token
