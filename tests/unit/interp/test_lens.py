"""The lens of the last layer is the model; the tuned lens is closer to it than the logit lens at every layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from circuit import VOCAB, induction_circuit, repeated
from fakes import tiny_gpt2

import minigpt
from minigpt.interp import ablate, record, record_text, scale
from minigpt.interp.lens import best_in_any_layer, lens_logprobs, logit_lens
from minigpt.interp.tuned_lens import TunedLens, fit_tuned_lens
from minigpt.sampler import Sample, generate

MODEL = tiny_gpt2(n_layer=3)
TEXT = [3, 1, 4, 1, 5, 9, 2]
SEEN = record_text(MODEL, TEXT)
CIRCUIT, REPEATED = induction_circuit(), repeated(period=9, copies=3)


def test_the_last_layer_is_the_prediction() -> None:
    reading = logit_lens(MODEL, SEEN, top=3)
    logprobs = SEEN["logits"].log_softmax(-1)
    assert lens_logprobs(MODEL, SEEN["blocks.2.resid_post"]).equal(logprobs)
    assert reading.top_tokens[-1].equal(logprobs.topk(3).indices)
    assert reading.top_logprobs[-1].equal(logprobs.topk(3).values)
    assert reading.kl[-1].abs().max() < 1e-6
    assert reading.rank[-1].eq(1).all()


def test_each_layer_is_the_model_that_ends_there() -> None:
    """Oracle: transformers' way of an early exit, a model whose later blocks add nothing."""
    reading = logit_lens(MODEL, SEEN, ["embed", "blocks.*.resid_mid", "blocks.*.resid_post"])
    assert reading.points[1:3] == ["blocks.0.resid_mid", "blocks.0.resid_post"]
    short = tiny_gpt2(n_layer=3)
    with torch.no_grad():
        for block in short.blocks[1:]:
            for linear in (block.attn.out, block.mlp.down):
                linear.weight.zero_()
                linear.bias.zero_()
        logprobs = short(torch.tensor([TEXT])).log_softmax(-1)
    last = SEEN["logits"].log_softmax(-1)
    at = reading.points.index("blocks.0.resid_post")
    torch.testing.assert_close(reading.top_logprobs[at], logprobs.topk(5).values)
    torch.testing.assert_close(reading.entropy[at], -(logprobs.exp() * logprobs).sum(-1))
    kl = F.kl_div(logprobs, last, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(reading.kl[at], kl)
    order = logprobs.argsort(descending=True)
    target = last.argmax(-1)
    assert reading.rank[at].equal((order == target[..., None]).int().argmax(-1) + 1)


def test_the_circuit_knows_the_next_token_after_its_last_attention_only() -> None:
    seen = record_text(CIRCUIT, REPEATED, "embed", "blocks.*.resid_*")
    points = ["embed", "blocks.0.resid_post", "blocks.1.resid_mid", "blocks.1.resid_post"]
    targets = torch.tensor([[*REPEATED[1:], 0]])
    reading = logit_lens(CIRCUIT, seen, points, targets=targets)
    later = slice(10, len(REPEATED) - 1)
    torch.testing.assert_close(reading.entropy[:2, 0, later], torch.tensor(VOCAB).log().expand(2, 17))
    assert reading.rank[2:, 0, later].eq(1).all()
    assert reading.entropy[2:, 0, later].max() < 1e-4


def test_tokens_that_are_best_half_way_are_found() -> None:
    tokens, ranks = best_in_any_layer(MODEL, SEEN, position=4, n=3)
    points = ["embed", "blocks.0.resid_post", "blocks.1.resid_post", "blocks.2.resid_post"]
    logprobs = torch.stack([lens_logprobs(MODEL, SEEN[name][0, 4]) for name in points])
    firsts = {int(row.argmax()) for row in logprobs}
    assert firsts >= set(tokens[: len(firsts)].tolist())
    for token, rank in zip(tokens.tolist(), ranks.T, strict=True):
        assert rank.tolist() == [int((row > row[token]).sum()) + 1 for row in logprobs]


def test_tokens_that_are_equally_likely_have_one_rank() -> None:
    """As bfloat16 makes many; the same in both readings."""
    model = tiny_gpt2().to(torch.bfloat16)
    with torch.no_grad():
        model.token_embedding.weight[5] = model.token_embedding.weight[3]
    seen = record_text(model, TEXT)
    tokens, ranks = best_in_any_layer(model, seen, n=model.config.vocab_size)
    for token, rank in zip(tokens.tolist(), ranks.T, strict=True):
        reading = logit_lens(model, seen, targets=torch.full_like(seen.tokens, token))
        assert rank.equal(reading.rank[:, 0, -1])


def test_a_padded_row_reads_as_alone() -> None:
    both = record_text(MODEL, [TEXT, TEXT[:4]], "embed", "blocks.*.resid_post")
    alone = record_text(MODEL, TEXT[:4], "embed", "blocks.*.resid_post")
    tokens, ranks = best_in_any_layer(MODEL, both, row=1)
    expected, expected_ranks = best_in_any_layer(MODEL, alone)
    assert tokens.equal(expected)
    assert ranks.equal(expected_ranks)
    torch.testing.assert_close(
        logit_lens(MODEL, both.row(1)).kl, logit_lens(MODEL, alone).kl, rtol=1e-4, atol=1e-5
    )


def test_padding_counts_nowhere() -> None:
    """Its values are NaN, and the notebook's means are those of the texts read alone."""
    both, one, other = (
        logit_lens(MODEL, record_text(MODEL, ids)) for ids in ([TEXT, TEXT[:4]], TEXT, TEXT[:4])
    )
    assert both.pad.tolist() == [0, 3]
    for name in ("entropy", "kl", "target_logprobs"):
        values = getattr(both, name)
        assert values[:, 1, :3].isnan().all()
        torch.testing.assert_close(values[:, 0], getattr(one, name)[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[:, 1, 3:], getattr(other, name)[:, 0], rtol=1e-4, atol=1e-5)
    assert both.rank[:, 1, :3].eq(0).all()
    assert both.rank[:, 1, 3:].equal(other.rank[:, 0])
    entropy, kl = (
        torch.cat([getattr(x, name)[0, 0] for x in (one, other)]).mean() for name in ("entropy", "kl")
    )
    assert f"<td>embed</td><td>{entropy:.3f}</td><td>{kl:.3f}</td>" in both._repr_html_()


def test_padding_before_the_recording_began_is_not_in_the_reading() -> None:
    batch, pad = torch.tensor([TEXT, [0, 0, 0, *TEXT[:4]]]), torch.tensor([0, 3])
    cache = MODEL.new_cache(7, rows=2, pad=pad)
    MODEL.next_logits(batch[:, :2], cache)
    with record(MODEL, "embed", "blocks.*.resid_post") as seen:
        MODEL.next_logits(batch[:, 2:], cache)
    reading = logit_lens(MODEL, seen)
    assert reading.pad.tolist() == [0, 1]
    assert reading.kl.isnan().sum((0, 2)).tolist() == [0, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = tiny_gpt2().to(dtype)
    reading = logit_lens(model, record_text(model, TEXT))
    assert reading.entropy.dtype == torch.promote_types(dtype, torch.float32)
    assert reading.kl.isfinite().all()


@pytest.mark.parametrize("point", ["final_norm", "logits"])
def test_another_prediction_than_the_recorded_one_is_refused(point: str) -> None:
    model, tokenizer = minigpt.load()
    ids = tokenizer.encode("Once upon a time there was a king")
    with scale(model, point, 0.5, positions=[2], rows=[1]):
        seen = record_text(model, [ids, ids[:4]])
    with pytest.raises(
        ValueError,
        match=r"recorded logits of row 1, token 6, are not what .* KL [0-9.]+ nats, .* at most 0.05",
    ):
        logit_lens(model, seen)
    assert logit_lens(model, seen.row(0)).kl.isfinite().all()


def test_an_edit_of_the_stream_is_read_as_it_was_recorded() -> None:
    with ablate(MODEL, "blocks.1.attn.out"):
        seen = record_text(MODEL, TEXT)
    assert logit_lens(MODEL, seen).top_logprobs[-1].equal(seen["logits"].log_softmax(-1).topk(5).values)


def test_of_generated_text_the_last_logits_are_compared() -> None:
    model, tokenizer = minigpt.load()
    with scale(model, "final_norm", 0.5), record(model, "embed", "blocks.*.resid_post", "logits") as seen:
        generate(model, [tokenizer.encode("Once upon a time")], max_new_tokens=3)
    with pytest.raises(ValueError, match="recorded logits of row 0, token 5,"):
        logit_lens(model, seen)


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_quantized_weights_predict_what_was_recorded(kind: str) -> None:
    model, tokenizer = minigpt.load(quantize=kind)
    ids = tokenizer.encode("Once upon a time there was a king")
    assert logit_lens(model, record_text(model, [ids, ids[:4]])).kl[-1, 0].abs().max() < 1e-5


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks.0.attn.out is not the residual stream"):
        logit_lens(MODEL, SEEN, ["blocks.0.attn.out"])
    with pytest.raises(KeyError, match=r"blocks.0.resid_post was not recorded"):
        logit_lens(MODEL, record_text(MODEL, TEXT, "embed", "blocks.2.resid_post"))
    with pytest.raises(IndexError, match="there is no position 9: the recording has 0 to 6"):
        best_in_any_layer(MODEL, SEEN, position=9)
    with pytest.raises(ValueError, match="a lens reads at least one point of the residual stream"):
        logit_lens(MODEL, SEEN, [])
    with pytest.raises(ValueError, match=r"points are names in a list: write \['embed'\]"):
        logit_lens(MODEL, SEEN, "embed")
    with pytest.raises(ValueError, match=r"targets have shape \(7,\), the tokens \(1, 7\)"):
        logit_lens(MODEL, SEEN, targets=torch.zeros(7, dtype=torch.long))
    with pytest.raises(
        ValueError, match=r"^targets is a tensor of token ids, one for each token, got ' who'$"
    ):
        logit_lens(MODEL, SEEN, targets=" who")  # type: ignore[arg-type]
    for top in (-1, 0, 1.5):
        with pytest.raises(ValueError, match=rf"^top is how many tokens to keep, .* from 1 on, got {top}$"):
            logit_lens(MODEL, SEEN, top=top)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"^n is how many tokens to keep, .* from 1 on, got {top}$"):
            best_in_any_layer(MODEL, SEEN, n=top)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="targets must be ids from 0 to"):
        logit_lens(MODEL, SEEN, targets=torch.full((1, 7), 9999))
    with pytest.raises(ValueError, match=r"the recording's stream is \d+ wide, this model's 80"):
        logit_lens(tiny_gpt2(n_layer=3, n_embd=80), SEEN)


# The tuned lens


def test_untrained_it_is_the_logit_lens() -> None:
    tuned = TunedLens(MODEL.config)
    plain, translated = logit_lens(MODEL, SEEN), logit_lens(MODEL, SEEN, tuned=tuned)
    assert translated.kl.equal(plain.kl)
    with pytest.raises(
        ValueError, match=r"translates embed, resid_pre and resid_post, not blocks.0.resid_mid"
    ):
        logit_lens(MODEL, SEEN, ["blocks.0.resid_mid"], tuned=tuned)


def test_trained_it_is_closer_at_every_layer_of_the_bundled_model() -> None:
    model, tokenizer = minigpt.load()
    start = tokenizer.encode("Once upon a time")
    texts = generate(
        model, [start], Sample(num_return_sequences=24, seed=1), max_new_tokens=40, end_tokens=[]
    )[0]
    written = torch.tensor([text.tokens for text in texts])
    train, held_out = written[:20], written[20:]
    before = [value.clone() for value in model.state_dict().values()]
    tuned = fit_tuned_lens(model, [train[torch.randperm(20)[:5]] for _ in range(40)])
    assert all(old.equal(new) for old, new in zip(before, model.state_dict().values(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    seen = record_text(model, held_out, "embed", "blocks.*.resid_post")
    plain, better = (logit_lens(model, seen, tuned=lens).kl.mean((1, 2)) for lens in (None, tuned))
    assert (better[:-1] < plain[:-1]).all()
    assert better[-1] < 1e-6


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    tuned = TunedLens(MODEL.config)
    torch.nn.init.normal_(tuned.weight)
    tuned.save(tmp_path / "lens.safetensors")
    loaded = TunedLens.load(tmp_path / "lens.safetensors", MODEL.config)
    assert loaded.weight.equal(tuned.weight)
    with pytest.raises(ValueError, match="is no tuned lens of a model with n_layer=2, n_embd=16"):
        TunedLens.load(tmp_path / "lens.safetensors", tiny_gpt2().config)


def test_it_learns_although_graphs_are_switched_off_and_says_where_there_is_nothing_to_learn() -> None:
    with torch.inference_mode():
        assert fit_tuned_lens(MODEL, [torch.tensor([TEXT])]).weight.abs().max() > 0
    with pytest.raises(ValueError, match="there was no batch to learn from"):
        fit_tuned_lens(MODEL, iter([]))


def test_a_file_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lens").write_bytes(b"hello")
    with pytest.raises(ValueError, match="is no safetensors file"):
        TunedLens.load(tmp_path / "lens", MODEL.config)


def test_interrupted_it_keeps_what_it_has_learned() -> None:
    def batches():  # type: ignore[no-untyped-def]
        yield torch.tensor([TEXT])
        raise KeyboardInterrupt

    assert fit_tuned_lens(MODEL, batches()).weight.abs().max() > 0
