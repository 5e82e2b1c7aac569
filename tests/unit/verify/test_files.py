"""Hashes of a model's files: those that the hub gave, and those of weights that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt.verify import files
from minigpt.verify.files import check_files, sha256


def test_weights_without_a_hash_are_listed_with_theirs_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a large model, each reading takes seconds."""
    weights = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in weights:
        file.write_text(file.name)
    digests = [sha256(file) for file in weights]
    read: list[Path] = []
    monkeypatch.setattr(files, "sha256", lambda file: (read.append(file), sha256(file))[1])
    check = check_files(tmp_path, weights)
    assert check.verdict == "not checked"
    assert check.detail == (
        f"no hash is known for these files (a.safetensors {digests[0]}; b.safetensors {digests[1]})"
    )
    monkeypatch.setattr(files, "KNOWN_WEIGHTS", dict.fromkeys(digests, "some/model"))
    check = check_files(tmp_path, weights)
    assert (check.verdict, check.detail) == ("ok", "the weights are those of some/model")
    assert read == 2 * weights
