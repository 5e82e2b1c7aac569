"""The check that watching changes nothing finds it where watching does."""

from __future__ import annotations

import pytest
import torch
from fakes import tiny_gpt2

from minigpt.interp import hooks, interventions
from minigpt.verify.recording import check_recording

TOKENS = [3, 1, 4, 1, 5]


def test_a_model_that_is_watched_from_outside_passes() -> None:
    assert check_recording(tiny_gpt2(), TOKENS).verdict == "ok"


def test_a_hook_that_changes_a_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def heads(self: hooks.BlockHooks, module: object, args: object, z: torch.Tensor) -> torch.Tensor:
        self.show("attn.pattern", torch.ones(1, 2, 5, 5))
        return self.show("attn.z", z * (1 + 1e-6))

    monkeypatch.setattr(hooks.BlockHooks, "heads", heads)
    check = check_recording(tiny_gpt2(), TOKENS)
    assert (check.verdict, check.detail) == ("failed", "recorded, token 0 has others")


def test_an_intervention_that_puts_in_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def aligned(name: str, value: torch.Tensor, *_: object) -> torch.Tensor:
        return value * (1 + 1e-6)

    monkeypatch.setattr(interventions, "_aligned", aligned)
    check = check_recording(tiny_gpt2(), TOKENS)
    assert (check.verdict, check.detail) == ("failed", "patched, token 0 has others")


def test_a_compiled_model_is_not_checked() -> None:
    model = tiny_gpt2()
    model.blocks[1]._compiled_call_impl = model.blocks[1]._call_impl
    check = check_recording(model, TOKENS)
    assert check.verdict == "not checked"
    assert "blocks.1 is compiled" in check.detail
