"""Libraries that are imported when first used."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minigpt.lazy import imported_when_used


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a shell's foreground has it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_until_a_library_is_imported_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "interrupted_package"
    package.mkdir()
    (package / "__init__.py").touch()
    code = "import signal\nsignal.raise_signal(signal.SIGINT)\nnumber = 7\n"
    (package / "slow.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    find = imported_when_used("interrupted_package", {"number": "slow"})
    with pytest.raises(KeyboardInterrupt):
        find("number")
    assert sys.modules["interrupted_package.slow"].number == 7
    assert find("number") == 7
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
