"""A page that shows other numbers than the model's is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import save, tiny

from minigpt import GPT2
from minigpt.interp.page import observed, patterns
from minigpt.verify.logits import Reference
from minigpt.verify.page import check_page
from minigpt.verify.stored import StoredModel

TOKENS = [*b"a cat and a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny(n_layer=2, n_head=2, initializer_range=0.5))


def verdicts(folder: Path, tokens: list[int] = TOKENS) -> list[str]:
    model = GPT2.from_pretrained(folder)
    return [check.verdict for check in check_page(model, Reference.of(model, StoredModel(folder), tokens))]


def test_a_page_shows_what_was_computed(folder: Path) -> None:
    assert verdicts(folder) == ["ok", "ok"]
    assert verdicts(folder, [97]) == ["not checked", "ok"]


def test_a_shifted_surprisal_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_pack = observed.pack

    def shifted(values: torch.Tensor, dtype: str) -> object:
        return true_pack(values.roll(1) if values.dim() == 1 else values, dtype)

    monkeypatch.setattr(observed, "pack", shifted)
    assert verdicts(folder) == ["failed", "ok"]


def test_another_key_s_weight_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_pack = patterns.pack

    def other(values: torch.Tensor, dtype: str) -> object:
        return true_pack(values.flip(-1) if values.dim() == 4 and dtype == "uint8" else values, dtype)

    monkeypatch.setattr(patterns, "pack", other)
    assert verdicts(folder) == ["ok", "failed"]
