"""The largest weights of each row: which they are, how far from the true ones, and how much of the row they hold."""

from __future__ import annotations

import pytest
import torch
from command import tiny

from minigpt.interp import record_text, value_weighted
from minigpt.interp.page.packed import unpack
from minigpt.interp.page.patterns import NO_KEY, largest, pack_norms, pack_patterns, unpack_patterns

MODEL = tiny(n_layer=3, n_head=2, initializer_range=0.8).eval()
TEXT = [*b"a cat saw a mouse"]
N = len(TEXT)
SEEN = record_text(MODEL, TEXT)
TRUE = SEEN.stack("blocks.*.attn.pattern")[:, 0]  # (L, H, T, T)


def kept(k: int, n_tokens: int = N) -> dict[str, torch.Tensor]:
    taken = record_text(MODEL, TEXT, "blocks.*.attn.pattern", take=largest(k))
    packed = pack_patterns(taken.stack("blocks.*.attn.pattern")[:, 0], n_tokens)
    return {name: value if name == "kept" else unpack(value) for name, value in packed.items()}


def test_whole_rows_come_back_to_half_a_step() -> None:
    """Steps of 1/255 of the row's largest weight, which is itself known in steps of 1/65535."""
    back = unpack_patterns(kept(99))
    bound = TRUE.amax(-1, keepdim=True) / 510 + 1 / 131070 + 1e-6
    assert ((back - TRUE).abs() <= bound).all()
    assert (back - TRUE).abs().max() > 1e-4  # it is 8 bits, not the tensor itself


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_largest_are_kept_in_order_and_their_share_is_said(k: int) -> None:
    data = kept(k)
    best = TRUE.sort(descending=True).values[..., :k]
    assert data["kept"] == k
    assert data["mass"].div(255).sub(best.sum(-1)).abs().max() <= 1 / 510 + 1e-6
    index = data["index"]
    rows = torch.arange(N)[:, None]
    assert index.eq(NO_KEY).equal((rows < torch.arange(k)).expand(index.shape))  # row i has i + 1 keys
    found = TRUE.gather(-1, index.clamp_max(N - 1)).masked_fill(index == NO_KEY, 0)
    torch.testing.assert_close(found, best)


def test_weights_of_long_even_rows_are_not_all_zero() -> None:
    n = 1000
    even = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    packed = pack_patterns(largest(8)(even[None, None]), n)
    data = {name: value if name == "kept" else unpack(value) for name, value in packed.items()}
    row = unpack_patterns(data)[0, 0, -1]
    assert row.count_nonzero() == 8
    assert row.max() == pytest.approx(1 / n, rel=0.01)
    assert data["mass"][0, 0, -1] == round(255 * 8 / n)


def test_tokens_that_were_not_read_have_empty_rows() -> None:
    data = kept(4, N + 1)
    assert data["index"][..., N, :].eq(NO_KEY).all()
    assert all(data[name][:, :, N].eq(0).all() for name in ("weight", "scale", "mass"))
    assert data["index"][..., :N, :].equal(kept(4)["index"])


def test_nan_in_a_pattern_does_no_harm() -> None:
    taken = largest(2)(torch.full((1, 1, 3, 3), torch.nan))
    assert unpack(pack_patterns(taken, 3)["weight"]).eq(0).all()


def test_norms_times_attention_is_value_weighted_attention() -> None:
    packed = pack_norms(MODEL, SEEN, N + 1)
    assert packed is not None
    scale = torch.tensor(packed["scale"])  # (L, H)
    norms = unpack(packed["norm"]) / 255 * scale[..., None]
    assert norms[..., N].eq(0).all()
    for layer in range(3):
        truth = value_weighted(MODEL, SEEN, layer)[0]
        assert (
            (TRUE[layer] * norms[layer, :, None, :N] - truth).abs() <= scale[layer].max() / 510 + 1e-6
        ).all()


def test_quantised_weights_have_no_norms() -> None:
    small = tiny(n_embd=32, n_head=2).eval().quantize("float16")
    assert pack_norms(small, record_text(small, TEXT, "blocks.*.attn.v"), N) is None
