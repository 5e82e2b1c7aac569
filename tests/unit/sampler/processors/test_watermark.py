"""A watermark is found in the text that bears it, and nowhere else; parity has transformers' figures."""

from __future__ import annotations

import torch
from fakes import FakeModel, scrambled

from minigpt.evaluation.watermark import WatermarkDetector
from minigpt.sampler import Greedy, Sample, generate
from minigpt.sampler.processors import Watermark
from minigpt.sampler.processors.watermark import green_tokens

V = 50
MODEL = FakeModel(scrambled(V), n_positions=256)


def written(*, watermark: bool, key: int = 7) -> list[int]:
    strategy = Sample(seed=1, watermark=watermark, watermark_key=key)
    return generate(MODEL, [[0]], strategy, max_new_tokens=200)[0][0].tokens


def test_the_mark_is_found_by_its_key_alone() -> None:
    marked = written(watermark=True)
    found = WatermarkDetector(V, key=7)(marked)
    assert found.z > 4
    assert found.p_value < 1e-4
    assert found.green_fraction > 0.4
    assert abs(WatermarkDetector(V, key=8)(marked).z) < 4
    assert abs(WatermarkDetector(V, key=7)(written(watermark=False)).z) < 4
    assert abs(WatermarkDetector(V, key=7)(written(watermark=True, key=8)).z) < 4


def test_green_tokens_are_lifted_and_no_others() -> None:
    logits = torch.randn(2, V)
    lifted = Watermark(bias=3.0, ratio=0.5, key=7)(logits, torch.tensor([[1, 2], [4, 5]])) - logits
    for row, last in enumerate((2, 5)):
        green = sorted(green_tokens(last, V, 0.5, 7).tolist())
        assert lifted[row].nonzero()[:, 0].tolist() == green
        assert len(green) == V // 2
    torch.testing.assert_close(lifted[lifted != 0], torch.full((V,), 3.0))


def test_every_strategy_can_be_marked() -> None:
    plain, marked = (
        generate(MODEL, [[0]], Greedy(watermark=on, watermark_bias=9.0), max_new_tokens=30)[0][0].tokens
        for on in (False, True)
    )
    assert WatermarkDetector(V)(marked).green_fraction > 0.95
    assert WatermarkDetector(V)(plain).green_fraction < 0.6
