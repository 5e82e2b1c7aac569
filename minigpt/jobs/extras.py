"""Optional packages: named where they are missing."""

from __future__ import annotations

from importlib.util import find_spec


def require(package: str, extra: str, what: str) -> None:
    """Refuses what needs a package that is not installed.

    Raises:
        ValueError: it is not; the message names the extra that brings it.

    >>> require("no_such_package", "data", "a Parquet file")
    Traceback (most recent call last):
    ValueError: a Parquet file needs the package no_such_package: pip install 'minigpt[data]'
    """
    if find_spec(package) is None:
        raise ValueError(f"{what} needs the package {package}: pip install 'minigpt[{extra}]'")
