"""Writing whole files or none: aside first, then moved into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def all_or_none(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into; when the block ends well, its files move into `directory`, over older ones.

    If the block fails, or is interrupted, `directory` stays as it was.

    >>> with tempfile.TemporaryDirectory() as target:
    ...     with all_or_none(target) as aside:
    ...         _ = (aside / "a.txt").write_text("whole")
    ...     os.listdir(target)
    ['a.txt']
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Inside the target, because moving is only a rename within one file system.
    aside = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=directory))
    try:
        yield aside
        for file in sorted(aside.iterdir()):
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(aside)
