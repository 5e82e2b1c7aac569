"""The error for what a caller can get wrong; any other exception is a bug of ours."""

from __future__ import annotations


class InvalidRequest(ValueError):
    """A prompt, an option or a combination of them that cannot be used; the message says what would."""


class NoSuchIndex(InvalidRequest, IndexError):
    """A layer, head, token, position or row that there is not; the message says which there are."""


class UnknownArgument(InvalidRequest, TypeError):
    """A keyword that a function does not have; the message gives the right one where there is one."""
