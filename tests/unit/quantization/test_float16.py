"""16-bit weights: the packed kernel is the plain product, and nearly float32's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from minigpt.quantization import float16
from minigpt.quantization.float16 import Float16, Float16Linear, PackedMatrix, PlainMatrix

needs_packing = pytest.mark.skipif(not float16.can_pack(), reason="needs fbgemm, which torch has on x86")


@needs_packing
@pytest.mark.parametrize("n_rows", [1, 3, 8, 65])
@torch.no_grad()
def test_the_packed_product_is_the_plain_one(n_rows: int) -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(64, 96).half(), torch.randn(n_rows, 96)
    torch.testing.assert_close(PackedMatrix(weight)(rows), PlainMatrix(weight)(rows), rtol=1e-5, atol=1e-5)
    assert torch.equal(PackedMatrix(weight).weight, weight)


@pytest.mark.parametrize("packed", [True, False])
@torch.no_grad()
def test_a_layer_is_nearly_float32s_and_is_copied_pickled_and_loaded(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:
        monkeypatch.setattr(float16, "can_pack", lambda: False)
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(64, 96), torch.randn(64), torch.randn(5, 96)
    linear = Float16().linear(weight, bias, torch.ones(96))
    exact = rows @ weight.t() + bias
    assert (linear(rows) - exact).norm() < 5e-4 * exact.norm()
    loaded = Float16Linear(torch.zeros(64, 96).half(), torch.zeros(64))
    loaded.load_state_dict(linear.state_dict())
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear)), loaded):
        assert torch.equal(other(rows), linear(rows))


def test_a_weight_too_large_for_float16_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a weight of 1e\+05 exceeds float16's largest number 65504"):
        Float16().linear(torch.full((4, 4), 1e5), torch.zeros(4), torch.ones(4))
