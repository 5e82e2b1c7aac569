"""C code is compiled once, kept, and made anew where what was kept cannot be trusted; without a compiler there is none."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import pytest

from minigpt.kernels import c_code, c_functions

if not c_functions.available():
    pytest.skip("needs a C compiler, and a processor with AVX-512 VNNI", allow_module_level=True)

SOURCE = "int twice(int x) { return 2 * x; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "twice.c"
    path.write_text(SOURCE)
    return path


def load(source: Path) -> object:
    return c_code.library.__wrapped__(source)


def test_a_library_is_compiled_once_and_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: (runs.append(args), run(*args, **more))[1])
    for _ in range(2):
        library = load(source)
        assert library.twice(21) == 42  # type: ignore[attr-defined]
    assert len(runs) == 1
    assert [path.suffix for path in c_code.folder().iterdir()] == [".so"]
    source.write_text(SOURCE.replace("2 * x", "2 * x + 1"))
    assert load(source).twice(21) == 43  # type: ignore[attr-defined]


def test_what_it_includes_belongs_to_it(source: Path) -> None:
    source.write_text('#include "factor.h"\nint twice(int x) { return FACTOR * x; }\n')
    for factor in (2, 3):
        (source.parent / "factor.h").write_text(f"#define FACTOR {factor}\n")
        assert load(source).twice(21) == factor * 21  # type: ignore[attr-defined]


def test_without_a_compiler_or_the_instructions_there_is_none(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(c_code, "runs_here", lambda: False)
        assert load(source) is None
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert load(source) is None


def test_a_compiler_that_fails_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int twice(int x) { return 2 * y; }\n")
    with pytest.warns(
        UserWarning, match=r"twice\.c cannot be compiled or loaded \(.*\): torch's kernels are used"
    ):
        assert load(source) is None
    assert not c_code.folder().exists()
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.warns(UserWarning, match=r"cannot be compiled or loaded \(.*/no/such/compiler"):
        assert load(source) is None


@pytest.mark.parametrize("content", [b"", b"part of a library", None], ids=["empty", "part", "cut short"])
def test_a_kept_library_that_is_not_whole_is_made_anew(source: Path, content: bytes | None) -> None:
    """The loader would end the process with SIGBUS."""
    load(source)
    (kept,) = c_code.folder().iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # for it is in use
    kept.write_bytes(whole[:4096] if content is None else content)
    assert load(source).twice(21) == 42  # type: ignore[attr-defined]
    assert kept.read_bytes() == whole


def test_a_home_that_cannot_be_written_to_or_is_not_known_is_no_obstacle(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(source).twice(21) == 42  # type: ignore[attr-defined]
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", unknown)
        assert load(source).twice(21) == 42  # type: ignore[attr-defined]


def unknown() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_code_that_is_missing_is_named(source: Path) -> None:
    source.unlink()
    with pytest.warns(UserWarning, match=r"twice\.c cannot be compiled or loaded \(.*No such file"):
        assert load(source) is None
