"""Packages that `make setup` leaves out: tests that need one are skipped without it, and fail in CI."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest


def heavy(package: str) -> Any:
    """The package, which `make test-all` installs."""
    if os.environ.get("CI"):
        return import_module(package)
    return pytest.importorskip(package, reason=f"needs {package}, which `make test-all` installs")
