"""MAUVE: near and far."""

from __future__ import annotations

import pytest
import torch

from minigpt.evaluation.mauve import mauve


def test_mauve_is_1_for_equal_texts_and_low_for_distant_ones(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    human = torch.randn(60, 8)
    assert mauve(human, human.clone()) == pytest.approx(1)
    assert mauve(human, human + 20) < 0.1 < 0.5 < mauve(human, torch.randn(60, 8))
    assert mauve(human[:1].repeat(3, 1), human[:1].repeat(2, 1)) == 1
    assert capfd.readouterr() == ("", "")  # the clustering's warnings would tear the progress bar
