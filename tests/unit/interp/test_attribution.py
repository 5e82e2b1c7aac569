"""Attribution sums to what it explains; the circuit's logits come from where they are made."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from circuit import BOS, GAIN, VOCAB, WIDTH, induction_circuit, repeated
from fakes import tiny_gpt2
from torch import nn

import minigpt
from minigpt import GPT2, training
from minigpt.interp import ablate, attribution, dense, record, record_text, scale, steer
from minigpt.interp.attribution import direct_attribution
from minigpt.interp.circuits import (
    composition_baseline,
    composition_score,
    copying_score,
    ov_circuit,
    qk_circuit,
)
from minigpt.interp.gradients import input_x_gradient, integrated_gradients
from minigpt.interp.surprisal import surprisal


@torch.no_grad()
def trained_gpt2(**config: Any) -> GPT2:
    """Norms whose weights are not 1 and biases that are not 0, so that a forgotten one is seen."""
    model = tiny_gpt2(n_layer=3, **config).double()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
        elif "norm" in name:
            parameter.uniform_(0.5, 2.0)
    return model


MODEL, TEXT = induction_circuit(), repeated(period=9, copies=3)
RANDOM = trained_gpt2()
TOKENS = [3, 1, 4, 1, 5, 9, 2]


# Of the parts of the model


@pytest.mark.parametrize("minus", [None, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_the_parts_sum_to_the_logit(minus: int | None, tied: bool) -> None:
    model = trained_gpt2(tie_word_embeddings=tied)
    seen = record_text(model, TOKENS)
    for position in (None, 0, 3):
        parts = direct_attribution(model, seen, 7, minus, position=position)
        logits = seen["logits"][0, -1 if position is None else position]
        expected = float(logits[7] - (0 if minus is None else logits[minus]))
        assert parts.total == pytest.approx(expected, abs=1e-9)
        assert abs(parts.remainder) < 1e-9
    assert len(parts.names) == 2 + 3 * (2 + 3) + 1
    assert {"blocks.1.attn.bias", "blocks.2.mlp.bias", "final_norm.bias"} <= set(parts.names)


def test_the_circuit_s_logit_comes_from_the_induction_head() -> None:
    seen = record_text(MODEL, TEXT)
    (following,) = [TEXT[10 + 1]]
    parts = direct_attribution(MODEL, seen, following, position=10)
    got = dict(zip(parts.names, parts.values.tolist(), strict=True))
    share = GAIN / WIDTH  # what centring takes from each part that is a single one
    expected = {
        "token_embedding": -share, "position_embedding": -share, "blocks.0.attn.head.0": -share,
        "blocks.1.attn.head.0": GAIN - share, "final_norm.bias": 4 * share,
    }  # fmt: skip
    for name, value in got.items():
        assert value == pytest.approx(expected.get(name, 0.0), abs=1e-3), name
    difference = direct_attribution(MODEL, seen, following, minus=BOS, position=10)
    assert difference.largest(1) == [("blocks.1.attn.head.0", pytest.approx(GAIN, abs=1e-3))]
    assert [value for _, value in difference.largest(2)][1] == pytest.approx(0, abs=1e-3)


def test_a_padded_row_is_attributed_as_alone() -> None:
    both = record_text(RANDOM, [TOKENS, TOKENS[:4]])
    alone = direct_attribution(RANDOM, record_text(RANDOM, TOKENS[:4]), 7)
    torch.testing.assert_close(direct_attribution(RANDOM, both, 7, row=1).values, alone.values)


def test_a_text_recorded_while_it_is_written_is_attributed_too() -> None:
    cache = RANDOM.new_cache(7)
    with record(RANDOM) as live:
        for part in torch.tensor([TOKENS]).split([4, 2, 1], 1):
            RANDOM.next_logits(part, cache)
    whole = record_text(RANDOM, TOKENS)
    torch.testing.assert_close(
        direct_attribution(RANDOM, live, 7).values, direct_attribution(RANDOM, whole, 7).values
    )


@pytest.mark.parametrize("point", ["embed", "blocks.1.attn.out", "blocks.2.resid_mid"])
def test_what_was_added_to_the_stream_is_a_part_of_its_own(point: str) -> None:
    vector = torch.linspace(-1, 2, 16).double()
    with steer(RANDOM, point, vector):
        seen = record_text(RANDOM, TOKENS)
    parts = direct_attribution(RANDOM, seen, 7, 2)
    assert parts.names[-1] == "edits"
    assert abs(parts.remainder) < 1e-9
    stream = seen["blocks.2.resid_post"][0, -1]
    rows = RANDOM.token_embedding.weight[7] - RANDOM.token_embedding.weight[2]
    norm = RANDOM.final_norm
    expected = (
        (vector - vector.mean()) * norm.weight / (stream.var(unbiased=False) + norm.eps).sqrt()
    ) @ rows
    assert float(parts.values[-1]) == pytest.approx(float(expected.detach()))


def test_what_was_edited_in_a_part_counts_as_that_part() -> None:
    with ablate(RANDOM, "blocks.1.attn.z", heads=[1]), scale(RANDOM, "blocks.0.mlp.out", 2.0):
        parts = direct_attribution(RANDOM, record_text(RANDOM, TOKENS), 7)
    assert "edits" not in parts.names
    assert dict(zip(parts.names, parts.values.tolist(), strict=True))["blocks.1.attn.head.1"] == 0
    assert abs(parts.remainder) < 1e-9


@pytest.mark.parametrize("edit", [("final_norm", 0.5), ("logits", 1.5)])
def test_another_logit_than_the_recorded_one_is_not_explained(edit: tuple[str, float]) -> None:
    usual = direct_attribution(RANDOM, record_text(RANDOM, TOKENS), 7).total
    with scale(RANDOM, *edit):
        seen = record_text(RANDOM, TOKENS)
    logit = float(seen["logits"][0, -1, 7])
    with pytest.raises(
        ValueError,
        match=rf"recorded logit is {logit:.4g}, and this model makes {usual:.4g} of .* edit of final_norm or logits",
    ):
        direct_attribution(RANDOM, seen, 7)


def test_a_recording_of_another_model_is_not_explained() -> None:
    other = deepcopy(RANDOM)
    torch.nn.init.normal_(other.token_embedding.weight, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="or from another model"):
        direct_attribution(RANDOM, record_text(other, TOKENS), 7)


def test_a_stream_that_is_all_mean_rounds_more() -> None:
    """Its differences are small numbers between large ones, and the norm makes them large again."""
    model = tiny_gpt2()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-4)
        model.position_embedding.weight += 1.0
        model.final_norm.weight.fill_(1.0)
    assert "edits" not in direct_attribution(model, record_text(model, TOKENS), 7, 2).names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_is_no_edit(dtype: torch.dtype) -> None:
    """Also where a model is large, all positions and the difference of two logits; autocast rounds, too."""
    model, tokenizer = minigpt.load(dtype=dtype)
    ids = tokenizer.encode("Once upon a time there was a king who had three sons.")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float16):
        seen = record_text(model if dtype != torch.float16 else model.float(), ids)
    for position in range(0, len(ids), 4):
        for minus in (None, 270):
            parts = direct_attribution(model, seen, 381, minus, position=position)
            assert "edits" not in parts.names


def test_attributions_show_themselves_and_refuse_what_they_cannot_do() -> None:
    seen = record_text(MODEL, TEXT)
    parts = direct_attribution(MODEL, seen, TEXT[11], position=10)
    assert repr(parts).startswith("Attribution(+20.000 in 13 parts: blocks.1.attn.head.0 +19.687")
    assert "<td>blocks.1.attn.head.0</td><td>+19.687</td>" in parts._repr_html_()
    with pytest.raises(IndexError, match="there is no token 12: the model knows ids from 0 to 11"):
        direct_attribution(MODEL, seen, VOCAB)
    with pytest.raises(ValueError, match=r"^target is a token id, got the text ' who': encode it first$"):
        direct_attribution(MODEL, seen, " who")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^minus is a token id, got 1.5: give one whole number$"):
        direct_attribution(MODEL, seen, 1, 1.5)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="there is no position 28"):
        direct_attribution(MODEL, seen, 1, position=28)
    with pytest.raises(KeyError, match=r"blocks.0.mlp.out was not recorded; there are blocks.0.attn.z"):
        direct_attribution(MODEL, record_text(MODEL, TEXT, "blocks.*.attn.z"), 1)


class Packed(nn.Module):
    """Stands for any kind of weights that is not a plain matrix."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.inner = [linear]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner[0](x)
        return result


def test_weights_of_another_kind_are_recorded_and_refused_by_what_reads_weights() -> None:
    model = tiny_gpt2()
    expected = record_text(model, TOKENS)
    for block in model.blocks:
        block.attn.qkv, block.attn.out = Packed(block.attn.qkv), Packed(block.attn.out)
        block.mlp.up, block.mlp.down = Packed(block.mlp.up), Packed(block.mlp.down)
    seen = record_text(model, TOKENS)
    assert all(seen[name].equal(expected[name]) for name in expected)  # every point fires
    for analysis in (
        lambda: direct_attribution(model, seen, 1),
        lambda: copying_score(model, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"and blocks\.0\.attn\.(qkv|out) \(Packed\) has none: "):
            analysis()


def test_a_model_with_an_adapter_is_analysed_merged_and_one_of_8_bits_with_its_own_weights() -> None:
    adapted = tiny_gpt2()
    training.attach(adapted, 2, layers=["blocks.1.mlp.down"])
    torch.nn.init.normal_(adapted.blocks[1].mlp.down.lora_b)
    seen = record_text(adapted, TOKENS)
    with pytest.raises(
        ValueError,
        match=r"and blocks.1.mlp.down \(LoraLinear\) has none: .* minigpt.training.merge\(model\)$",
    ):
        direct_attribution(adapted, seen, 1)
    parts = direct_attribution(training.merge(adapted), seen, 1)
    assert parts.total == pytest.approx(float(seen["logits"][0, -1, 1]), abs=1e-5)
    quantized = tiny_gpt2(n_embd=64).quantize("int8")
    for analysis in (
        lambda: direct_attribution(quantized, record_text(quantized, TOKENS), 1),
        lambda: copying_score(quantized, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"load the model without quantize=$"):
            analysis()


def test_heads_are_layers_by_heads() -> None:
    parts = direct_attribution(RANDOM, record_text(RANDOM, TOKENS), 7)
    got = dict(zip(parts.names, parts.values.tolist(), strict=True))
    assert parts.heads.tolist() == [[got[f"blocks.{i}.attn.head.{j}"] for j in range(2)] for i in range(3)]


def test_only_the_wanted_rows_of_the_unembedding_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of gpt2's in float64 took 0.3 s a call, twenty times the rest."""
    sizes: list[int] = []

    def exact(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return dense.exact(tensor)

    monkeypatch.setattr(attribution, "exact", exact)
    model = tiny_gpt2(vocab_size=1000)
    direct_attribution(model, record_text(model, TOKENS), 7, 2)
    assert max(sizes) < model.token_embedding.weight.numel()


# Of tokens, by gradients


def test_input_x_gradient_is_the_derivative_by_each_token_s_size() -> None:
    got = input_x_gradient(RANDOM, TOKENS, target=7, minus=2)
    scales = torch.ones(7, dtype=torch.float64, requires_grad=True)
    embedded = RANDOM.token_embedding.weight.detach()[TOKENS]
    from minigpt.interp import edit

    with torch.enable_grad(), edit(RANDOM, "embed", lambda x: x + (scales[:, None] - 1) * embedded):
        logits = RANDOM(torch.tensor([TOKENS]))[0, -1]
    (expected,) = torch.autograd.grad(logits[7] - logits[2], scales)
    torch.testing.assert_close(got.values, expected)
    assert got.value == pytest.approx(float((logits[7] - logits[2]).detach()))
    assert got.gap is None
    assert all(parameter.grad is None for parameter in RANDOM.parameters())


def test_integrated_gradients_are_complete() -> None:
    model, tokenizer = minigpt.load()
    tokens = tokenizer.encode("Once upon a time there was a")
    (king,) = tokenizer.encode(" king")
    shares = integrated_gradients(model, tokens, king)
    assert shares.gap is not None
    assert shares.baseline is not None
    assert shares.gap <= 0.01 * abs(shares.value - shares.baseline)
    exact = integrated_gradients(RANDOM, TOKENS, 7, minus=2, steps=400)
    assert exact.gap is not None
    assert exact.gap < 1e-3


def test_integrated_gradients_of_the_circuit_fall_on_the_tokens_that_decide() -> None:
    """The present token, the one that followed its earlier occurrence, and the one that marks the place."""
    text = repeated(period=6, copies=1)
    text = [*text, text[1]]
    shares = integrated_gradients(MODEL, text, text[2], steps=400)
    assert shares.value == pytest.approx(GAIN, abs=0.01)
    others = [shares.values[i] for i in range(len(text)) if i not in (1, 2, 7)]
    assert max(abs(value) for value in others) < 0.2 * max(abs(v) for v in shares.values)


def test_gradients_refuse_what_there_is_not() -> None:
    with pytest.raises(IndexError, match="there is no token 23"):
        input_x_gradient(RANDOM, TOKENS, 23)
    for analysis in (input_x_gradient, integrated_gradients):
        with pytest.raises(ValueError, match=r"^target is a token id, got the text ' who': encode it first$"):
            analysis(RANDOM, TOKENS, " who")  # type: ignore[operator]
        with pytest.raises(ValueError, match=r"^minus is a token id, got the text ' who'"):
            analysis(RANDOM, TOKENS, 1, " who")  # type: ignore[operator]
    with pytest.raises(IndexError, match="there is no position 7: the text has 0 to 6"):
        integrated_gradients(RANDOM, TOKENS, 2, position=7)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        integrated_gradients(RANDOM, TOKENS, 2, steps=0)
    with pytest.raises(ValueError, match="an empty text has nothing to read"):
        input_x_gradient(RANDOM, [], 2)
    with pytest.raises(ValueError, match="this reads one text at a time, got 2"):
        integrated_gradients(RANDOM, [TOKENS, TOKENS], 2)  # type: ignore[list-item]
    with torch.inference_mode():
        assert input_x_gradient(RANDOM, torch.tensor([TOKENS]), 2).tokens == TOKENS  # type: ignore[arg-type]
    assert repr(integrated_gradients(RANDOM, TOKENS, 2)).startswith("TokenAttribution(7 tokens, value ")


# By weights alone


CENTRE = torch.eye(16, dtype=torch.float64) - 1 / 16  # what a norm does to the mean of the stream


def test_circuits_are_the_products_of_the_weights() -> None:
    norm = RANDOM.blocks[1].attn_norm.weight.detach()
    qkv = RANDOM.blocks[1].attn.qkv.weight.detach()
    q, k, v = (CENTRE @ (qkv[:, 16 * part + 8 : 16 * part + 16] * norm[:, None]) for part in range(3))
    out = RANDOM.blocks[1].attn.out.weight.detach()[8:]
    torch.testing.assert_close(qk_circuit(RANDOM, 1, 1), q @ k.T)
    torch.testing.assert_close(ov_circuit(RANDOM, 1, 1), v @ out @ CENTRE)


def test_the_stream_and_the_circuit_give_the_scores_of_queries_and_keys() -> None:
    """x_i @ this @ x_j, x straight from the stream, is q_i . k_j without what biases add to both."""
    seen = record_text(RANDOM, TOKENS, "blocks.1.resid_pre", "blocks.1.attn.q", "blocks.1.attn.k")
    block, here = RANDOM.blocks[1], slice(8, 16)
    x = seen["blocks.1.resid_pre"][0]
    x = x / (x.var(-1, unbiased=False, keepdim=True) + block.attn_norm.eps).sqrt()
    biases = (block.attn_norm.bias @ block.attn.qkv.weight + block.attn.qkv.bias).detach()
    q = seen["blocks.1.attn.q"][0, 1] - biases[:16][here]
    k = seen["blocks.1.attn.k"][0, 1] - biases[16:32][here]
    torch.testing.assert_close(x @ qk_circuit(RANDOM, 1, 1) @ x.T, q @ k.T, rtol=0, atol=1e-9)


def test_models_that_compute_the_same_have_the_same_scores() -> None:
    """A head may add any mean to the stream, and the unembedding any number to all logits: nothing reads either."""
    one = trained_gpt2(tie_word_embeddings=False)
    other = deepcopy(one)
    with torch.no_grad():
        for block in other.blocks:
            block.attn.out.weight += torch.linspace(-3, 5, 16)[:, None]
        other.head.weight += torch.linspace(2, -1, 16)
        before, after = (model(torch.tensor([TOKENS])).softmax(-1) for model in (one, other))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)
    scores = [
        [
            *(copying_score(model, layer, head) for layer in range(3) for head in range(2)),
            *(composition_score(model, (0, 1), (2, 0), through) for through in ("q", "k", "v")),
            *ov_circuit(model, 1, 1).flatten().tolist(),
        ]
        for model in (one, other)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)


def test_the_copying_score_is_that_of_the_whole_vocabulary_s_matrix() -> None:
    embed, unembed = RANDOM.token_embedding.weight.detach(), RANDOM.token_embedding.weight.detach()
    unembed = (unembed - unembed.mean(0)) * RANDOM.final_norm.weight.detach() @ CENTRE
    whole = embed @ ov_circuit(RANDOM, 2, 0) @ unembed.T  # (V, V)
    values = torch.linalg.eigvals(whole)
    assert copying_score(RANDOM, 2, 0) == pytest.approx(
        float(values.real.sum() / values.abs().sum()), abs=1e-6
    )


def test_the_circuit_s_induction_head_copies_and_reads_keys_from_the_previous_token_head() -> None:
    assert copying_score(MODEL, 1, 0) == pytest.approx(1)
    assert [copying_score(MODEL, *head) for head in ((0, 0), (0, 1), (1, 1))] == [0, 0, 0]
    scores = [composition_score(MODEL, (0, 0), (1, 0), through) for through in ("q", "k", "v")]
    # Keys alone, but for the stream's mean, to which every part adds a little.
    assert scores == [
        pytest.approx(0, abs=0.1),
        pytest.approx(1 / math.sqrt(VOCAB), abs=0.03),
        pytest.approx(0, abs=0.1),
    ]
    assert composition_score(MODEL, (0, 1), (1, 0), "k") == 0


def test_composition_is_the_ratio_of_the_full_matrices_norms() -> None:
    ov = ov_circuit(RANDOM, 0, 1)
    for through, matrix in (
        ("q", qk_circuit(RANDOM, 2, 0)),
        ("k", qk_circuit(RANDOM, 2, 0).T),
        ("v", ov_circuit(RANDOM, 2, 0)),
    ):
        expected = float((ov @ matrix).norm() / (ov.norm() * matrix.norm()))
        assert composition_score(RANDOM, (0, 1), (2, 0), through) == pytest.approx(expected)  # type: ignore[arg-type]
    assert composition_baseline(RANDOM) == pytest.approx(1 / math.sqrt(16), rel=0.2)
    with pytest.raises(ValueError, match=r"the receiver \(layer 1\) must come after the sender \(layer 1\)"):
        composition_score(RANDOM, (1, 0), (1, 1), "k")
    with pytest.raises(ValueError, match='through must be "q", "k" or "v"'):
        composition_score(RANDOM, (0, 0), (1, 1), "o")  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="there is no layer 3"):
        copying_score(RANDOM, 3, 0)


# Surprisal


def test_surprisal_is_the_loss_in_bits() -> None:
    seen = record_text(MODEL, [TEXT, TEXT[:12]], "logits")
    bits = surprisal(seen)
    assert bits[0, 0].isnan()
    assert bits[1, :17].isnan().all()
    assert bits[1, 17:].isfinite().all()
    logprobs = seen["logits"][0].log_softmax(-1)
    expected = [-float(logprobs[i - 1, TEXT[i]]) / math.log(2) for i in range(1, len(TEXT))]
    torch.testing.assert_close(bits[0, 1:], torch.tensor(expected))
    assert bits[0, 11:].max() < 1e-5
    assert bits[0, 1] == pytest.approx(expected[0])
    assert surprisal(record_text(MODEL, [0], "logits")).isnan().all()


def test_surprisal_needs_every_token_s_logits() -> None:
    cache = MODEL.new_cache(5)
    with record(MODEL, "logits") as live:
        MODEL.next_logits(torch.tensor([TEXT[:5]]), cache)
    with pytest.raises(ValueError, match="record the finished text with record_text"):
        surprisal(live)
