"""Sweeps, path patching and attribution patching light up the circuit's cells, and no others."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from circuit import induction_circuit, repeated
from fakes import tiny_gpt2

from minigpt.interp import patch, record_text
from minigpt.interp.attribution import direct_attribution
from minigpt.interp.patching import (
    Metric,
    Sweep,
    ablate_heads,
    attribution_patching,
    logit_difference,
    patch_heads,
    patch_positions,
)
from minigpt.interp.path_patching import path_patching

MODEL = induction_circuit()
BLOCK = repeated(period=6, copies=1)  # BOS and six tokens
CLEAN = [*BLOCK, BLOCK[3]]  # what follows is BLOCK[4]
CORRUPT = [*BLOCK, BLOCK[5]]  # ... BLOCK[6]
METRIC = logit_difference(BLOCK[4], BLOCK[6])
RANDOM = tiny_gpt2(n_layer=3)
A, B = [3, 1, 4, 1, 5], [3, 1, 7, 1, 5]


def lit(sweep: Sweep) -> set[tuple[int, int]]:
    """The cells that change anything; each of them changes all."""
    assert sweep.finished
    cells = {(i, j) for i, j in sweep.values.abs().gt(1e-3).nonzero().tolist()}
    for i, j in cells:
        assert sweep.values[i, j] == pytest.approx(1, abs=1e-2)
    return cells


def test_the_metric_is_forty_apart() -> None:
    """The texts differ in their last token: each copies what came after its earlier occurrence."""
    for text, sign in ((CLEAN, 1), (CORRUPT, -1)):
        assert float(METRIC(record_text(MODEL, text, "logits")["logits"])) == pytest.approx(
            sign * 20, abs=0.01
        )


def test_patching_finds_the_induction_head_and_its_query() -> None:
    assert lit(patch_heads(MODEL, CLEAN, CORRUPT, METRIC)) == {(1, 0)}
    assert lit(patch_heads(MODEL, CLEAN, CORRUPT, METRIC, "q")) == {(1, 0)}
    assert lit(patch_heads(MODEL, CLEAN, CORRUPT, METRIC, "k")) == set()
    assert lit(patch_heads(MODEL, CLEAN, CORRUPT, METRIC, "v")) == set()
    assert lit(patch_heads(MODEL, CLEAN, CORRUPT, METRIC, "pattern")) == {(1, 0)}


def test_patching_finds_the_place_in_the_stream() -> None:
    assert lit(patch_positions(MODEL, CLEAN, CORRUPT, METRIC)) == {(0, 7), (1, 7)}
    assert lit(patch_positions(MODEL, CLEAN, CORRUPT, METRIC, "attn.out")) == {(1, 7)}
    assert lit(patch_positions(MODEL, CLEAN, CORRUPT, METRIC, "mlp.out")) == set()


def test_where_the_earlier_occurrence_moves_it_is_found_through_the_previous_token_head() -> None:
    """Tokens 3 and 5 change places: now the keys differ, and what writes them."""
    swapped = [*BLOCK[:3], BLOCK[5], BLOCK[4], BLOCK[3], BLOCK[6], BLOCK[3]]
    assert lit(patch_heads(MODEL, CLEAN, swapped, METRIC, "z")) == {(0, 0), (1, 0)}
    assert lit(patch_heads(MODEL, CLEAN, swapped, METRIC, "k")) == {(1, 0)}
    assert lit(patch_heads(MODEL, CLEAN, swapped, METRIC, "q")) == set()
    assert lit(patch_heads(MODEL, CLEAN, swapped, METRIC, "pattern")) == {(1, 0)}
    before = record_text(MODEL, CLEAN, "logits")["logits"]

    def through(receiver: str, heads: list[int] | None = None) -> float:
        return float(METRIC(path_patching(MODEL, CLEAN, swapped, (0, 0), receiver, heads)["logits"]))

    assert float(METRIC(before)) == pytest.approx(20, abs=0.01)
    assert through("blocks.1.attn.k", [0]) == pytest.approx(-20, abs=0.01)  # the whole effect
    # The other head reads nothing of it.
    assert through("blocks.1.attn.k", [1]) == pytest.approx(20, abs=0.01)
    assert through("blocks.1.attn.q", [0]) == pytest.approx(20, abs=0.01)
    assert through("blocks.1.attn.v", [0]) == pytest.approx(20, abs=0.01)
    assert through("blocks.1.resid_post") == pytest.approx(20, abs=0.01)  # nothing directly


def test_noise_and_denoise_are_the_two_directions() -> None:
    sweeps = [patch_heads(RANDOM, A, B, logit_difference(1, 2), direction=d) for d in ("denoise", "noise")]  # type: ignore[arg-type]
    clean, corrupt = (record_text(RANDOM, text) for text in (A, B))
    metric = logit_difference(1, 2)
    low, high = (float(metric(run["logits"])) for run in (corrupt, clean))
    for sweep, base, source in zip(sweeps, (B, A), (clean, corrupt), strict=True):
        with patch(RANDOM, "blocks.1.attn.z", source, heads=[1]):
            patched = float(metric(record_text(RANDOM, base, "logits")["logits"]))
        assert float(sweep.values[1, 1]) == pytest.approx((patched - low) / (high - low), abs=1e-4)
        assert sweep.clean == pytest.approx(high)
        assert sweep.corrupt == pytest.approx(low)
    everything = patch_positions(RANDOM, A[:1], B[1:2], metric, "resid_pre", "noise")
    assert float(everything.values[0, 0]) == pytest.approx(0, abs=1e-5)


def test_ablation_finds_what_the_answer_needs() -> None:
    sweep = ablate_heads(MODEL, CLEAN, METRIC)
    assert float(sweep.values[1, 0]) == pytest.approx(0, abs=1e-3)
    assert float(sweep.values[0, 0]) < 0.2
    torch.testing.assert_close(sweep.values[:, 1], torch.ones(2))  # the inert ones
    mean = {f"blocks.{i}.attn.z": torch.zeros(1) for i in range(2)}
    torch.testing.assert_close(ablate_heads(MODEL, CLEAN, METRIC, mean).values, sweep.values)


def test_path_patching_to_the_logits_is_the_difference_of_direct_attribution() -> None:
    """With the final norm's scale held, and no MLP between."""
    model = tiny_gpt2(n_layer=3).double()
    for block in model.blocks:
        block.mlp.down.weight.data.zero_()
    clean, corrupt = record_text(model, A), record_text(model, B)
    sender, last = (1, 1), "blocks.2.resid_post"
    with torch.no_grad():
        changed = path_patching(model, A, B, sender, last)["logits"][0, -1, 7]
        stream = clean[last][0, -1]
        out = model.blocks[1].attn.out.weight.detach()[8:16]
        moved = (corrupt["blocks.1.attn.z"] - clean["blocks.1.attn.z"])[0, 1, -1] @ out
        exact = model.unembed(model.final_norm(stream + moved))[7]
    assert float(changed) == pytest.approx(float(exact), abs=1e-9)
    parts = [dict(zip(p.names, p.values.tolist(), strict=True)) for p in (
        direct_attribution(model, clean, 7), direct_attribution(model, _with_head(model, clean, corrupt, sender), 7)
    )]  # fmt: skip
    sigma = (stream.var(unbiased=False) + model.final_norm.eps).sqrt()
    frozen = ((moved - moved.mean()) * model.final_norm.weight / sigma) @ model.token_embedding.weight[7]
    assert parts[1]["blocks.1.attn.head.1"] - parts[0]["blocks.1.attn.head.1"] == pytest.approx(
        float(frozen.detach())
    )


def _with_head(model, clean, corrupt, sender):  # type: ignore[no-untyped-def]
    """The clean recording with one head's output of the corrupt one; the stream, and so its scale, unchanged."""
    name = f"blocks.{sender[0]}.attn.z"
    z = clean[name].clone()
    z[:, sender[1]] = corrupt[name][:, sender[1]]
    mixed = record_text(model, A)
    mixed.chunks = {**mixed.chunks, name: [z]}
    return mixed


def test_attribution_patching_is_the_derivative_of_patching() -> None:
    """For texts that are close, both agree; and on a metric that is linear in what is patched."""
    model = tiny_gpt2(n_layer=2).double()
    with torch.no_grad():
        model.token_embedding.weight[7] = model.token_embedding.weight[4] + 1e-5 * torch.randn(16).double()
    metric = logit_difference(1, 2)
    parts: tuple[Literal["z", "v"], ...] = ("z", "v")
    for part in parts:
        linear = attribution_patching(model, A, B, metric, f"attn.{part}")
        exact = patch_heads(model, A, B, metric, part)
        torch.testing.assert_close(linear.values, exact.values, rtol=1e-2, atol=1e-3)
    linear = attribution_patching(model, A, B, metric, "resid_pre")
    torch.testing.assert_close(
        linear.values, patch_positions(model, A, B, metric).values, rtol=1e-2, atol=1e-3
    )
    assert linear.title == "attribution patching of resid_pre"


def test_an_interrupted_sweep_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def metric(logits: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 2 + 3:  # both texts, and three places
            raise KeyboardInterrupt
        return METRIC(logits)

    sweep = patch_heads(MODEL, CLEAN, CORRUPT, metric)
    assert not sweep.finished
    assert sweep.values.isnan().sum() == 1
    assert "3 of 4 done" in repr(sweep)
    assert len(sweep.largest()) == 3
    assert not MODEL._forward_hooks


def test_texts_are_lists_or_tensors_and_graphs_may_be_switched_off() -> None:
    expected = attribution_patching(RANDOM, A, B, METRIC).values
    with torch.inference_mode():
        got = attribution_patching(RANDOM, torch.tensor([A]), torch.tensor(B), METRIC)
    assert got.values.equal(expected)
    sweep = patch_positions(RANDOM, torch.tensor([A]), torch.tensor([B]), METRIC)
    assert sweep.columns == list("01234")
    assert sweep.values.equal(patch_positions(RANDOM, A, B, METRIC).values)


def test_sweeps_show_themselves() -> None:
    sweep = patch_heads(MODEL, CLEAN, CORRUPT, METRIC)
    assert repr(sweep).startswith("Sweep(attn.z (denoise): 2 x 2; most: layer 1/head 0 +1.00")
    assert "<th>layer 1</th><td>+1.00</td>" in sweep._repr_html_()


def infinite_from_the_second_call() -> Metric:
    values = iter([1.0, -torch.inf])
    return lambda logits: torch.tensor(next(values))


def test_what_cannot_be_swept_is_refused() -> None:
    with pytest.raises(
        ValueError, match="the clean text has 8 tokens, the corrupt one 7: they must be equally long"
    ):
        patch_heads(MODEL, CLEAN, BLOCK, METRIC)
    with pytest.raises(ValueError, match="there is no difference to explain"):
        patch_heads(MODEL, CLEAN, CLEAN, METRIC)
    with pytest.raises(ValueError, match='direction must be "denoise" or "noise"'):
        patch_heads(MODEL, CLEAN, CORRUPT, METRIC, direction="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^wrong is a token id, got the text ' b': encode it first$"):
        logit_difference(1, " b")  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="no point matches"):
        patch_positions(MODEL, CLEAN, CORRUPT, METRIC, "attn.o")
    with pytest.raises(ValueError, match='part must be "z", "q", "k", "v" or "pattern", got \'out\''):
        patch_heads(MODEL, CLEAN, CORRUPT, METRIC, part="out")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this reads one text at a time, got 2"):
        patch_positions(MODEL, [CLEAN, CLEAN], [CORRUPT, CORRUPT], METRIC)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"a metric gives one number, this one has shape \(12,\)"):
        ablate_heads(MODEL, CLEAN, lambda logits: logits[0, -1])
    with pytest.raises(
        ValueError, match="the metric gives nan for a text as it is, which cannot be compared"
    ):
        patch_heads(MODEL, CLEAN, CORRUPT, lambda logits: logits[0, -1, 0] * torch.nan)
    with pytest.raises(ValueError, match="the metric gives -inf for layer 0, head 0, which cannot"):
        ablate_heads(MODEL, CLEAN, infinite_from_the_second_call())
    with pytest.raises(
        IndexError, match="there is no position 99: the text has 0 to 7, from its end -1 to -8"
    ):
        patch_heads(MODEL, CLEAN, CORRUPT, logit_difference(5, 6, position=99))
    with pytest.raises(IndexError, match=r"there is no token 60000: the model knows ids from 0 to \d+"):
        patch_heads(MODEL, CLEAN, CORRUPT, logit_difference(5, 60000))
    with pytest.raises(ValueError, match="must be a tensor that depends on the logits, not float"):
        attribution_patching(MODEL, CLEAN, CORRUPT, lambda logits: METRIC(logits).detach())
    with pytest.raises(
        ValueError, match=r"'blocks.0.attn.\*' matches \d+ points: name one of them, such as blocks.0.attn.q"
    ):
        attribution_patching(MODEL, CLEAN, CORRUPT, METRIC, part="attn.*")
    with pytest.raises(ValueError, match="matches 2 points: name one of them"):
        path_patching(MODEL, CLEAN, CORRUPT, (0, 0), "blocks.*.attn.k")
    with pytest.raises(IndexError, match="there is no head 2"):
        path_patching(MODEL, CLEAN, CORRUPT, (0, 2), "blocks.1.attn.k")
    with pytest.raises(ValueError, match="they must be equally long"):
        path_patching(MODEL, CLEAN, BLOCK, (0, 0), "blocks.1.attn.k")
    with pytest.raises(ValueError, match=r"blocks.0.attn.k is computed before head 0.0"):
        path_patching(MODEL, CLEAN, CORRUPT, (0, 0), "blocks.0.attn.k")
    with pytest.raises(ValueError, match=r"blocks.0.attn.z is computed before head 0.0"):
        path_patching(MODEL, CLEAN, CORRUPT, (0, 0), "blocks.0.attn.z")
