"""What modules with quantized weights have in common."""

from __future__ import annotations

import pytest
import torch

from minigpt.quantization import WEIGHT_FORMATS, float16, int8


@pytest.mark.parametrize("kind", WEIGHT_FORMATS)
@pytest.mark.skipif(
    not (int8.packing_is_exact() and float16.can_pack()), reason="needs packed weights: x86 with VNNI"
)
@torch.no_grad()
def test_a_packed_weight_is_not_asked_whether_it_overrides_operations(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For it has no answer but exceptions, at every product."""
    linear = WEIGHT_FORMATS[kind].linear(torch.randn(64, 96), torch.zeros(64), torch.ones(96))
    expected = linear(torch.ones(2, 96))
    answer = classmethod(lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(torch.ScriptObject, "__torch_function__", answer, raising=False)
    assert torch.equal(linear(torch.ones(2, 96)), expected)
    with pytest.raises(pytest.fail.Exception, match="asked"):
        torch.ops.quantized.linear_dynamic_fp16(
            torch.ones(2, 96), float16.PackedMatrix(torch.ones(64, 96)).packed
        )
