"""Interventions act where they were asked to, the same however the text is read, or say that they did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
from fakes import tiny_gpt2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from watched import close, n_hooks

from minigpt.interp import (
    ablate,
    edit,
    knock_out,
    mean_activation,
    patch,
    record,
    record_text,
    scale,
    steer,
)
from minigpt.interp.points import all_points
from minigpt.sampler import Beam, DoLa, Greedy, PromptLookup, generate
from minigpt.training import lora

MODEL = tiny_gpt2()
TEXT, OTHER = [3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 8, 1]
TOKENS = torch.tensor([TEXT])
SOURCE, OWN = record_text(MODEL, OTHER), record_text(MODEL, TEXT)
VECTOR = torch.linspace(-1, 1, 16) ** 2  # not the same in all directions, which the norms would take away
LONGER = [3, 1, 4, 4, *TEXT]
BY_POSITION = mean_activation(MODEL, [LONGER, LONGER[::-1]], "blocks.0.attn.z", over="texts")
PATTERN = mean_activation(MODEL, [LONGER, LONGER[::-1]], "blocks.1.attn.pattern", over="texts")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with torch.no_grad():
        before = MODEL(TOKENS)
        yield
        assert n_hooks(MODEL) == 0
        assert MODEL(TOKENS).equal(before)


def logits(text: list[int] = TEXT) -> Tensor:
    return record_text(MODEL, text, "logits")["logits"]


# Each kind, at several points: (name, the intervention)
KINDS: list[tuple[str, Callable[[], AbstractContextManager[None]]]] = [
    ("zero a head", lambda: ablate(MODEL, "blocks.1.attn.z", heads=[1])),
    ("zero at positions", lambda: ablate(MODEL, "blocks.0.mlp.out", positions=[2, 5])),
    ("mean", lambda: ablate(MODEL, "blocks.*.attn.k", torch.ones(8), heads=[0])),
    ("mean by position", lambda: ablate(MODEL, "blocks.0.attn.z", BY_POSITION, heads=[0])),
    ("pattern by position", lambda: ablate(MODEL, "blocks.1.attn.pattern", PATTERN)),
    ("keep patterns", lambda: ablate(MODEL, "blocks.0.mlp.post", keep_patterns=OWN)),
    ("scale the pattern", lambda: scale(MODEL, "blocks.0.attn.pattern", 0.5, positions=[1, 6])),
    ("scale queries", lambda: scale(MODEL, "blocks.*.attn.q", 3.0)),
    ("scale the embedding", lambda: scale(MODEL, "embed", 0.7, positions=[3])),
    ("scale logits", lambda: scale(MODEL, "logits", 0.5)),
    ("scale the norm", lambda: scale(MODEL, "final_norm", 0.5)),
    ("steer the stream", lambda: steer(MODEL, "blocks.0.resid_mid", VECTOR, positions=[4, 5])),
    ("steer by position", lambda: steer(MODEL, "blocks.1.mlp.out", torch.arange(16.0 * 11).reshape(11, 16).sin())),
    ("steer a head", lambda: steer(MODEL, "blocks.1.attn.v", torch.ones(8), 2.0, heads=[0])),
    ("patch the stream", lambda: patch(MODEL, "blocks.0.resid_post", SOURCE, positions=[1, 3])),
    ("patch keys", lambda: patch(MODEL, "blocks.*.attn.k", SOURCE, heads=[1], positions=range(7))),
    ("patch patterns", lambda: patch(MODEL, "blocks.1.attn.pattern", SOURCE, positions=range(7))),
    ("patch a row of patterns", lambda: patch(MODEL, "blocks.0.attn.pattern", SOURCE, heads=[0], positions=[4])),
    ("knock out", lambda: knock_out(MODEL, queries=[3, 6], keys=[1, 2])),
    ("knock out of a head", lambda: knock_out(MODEL, queries=[5], keys=[0, 5], layers=[1], heads=[1])),
]  # fmt: skip
EVERY = pytest.mark.parametrize("kind", [make for _, make in KINDS], ids=[name for name, _ in KINDS])
Kind = Callable[[], AbstractContextManager[None]]


@EVERY
def test_it_changes_the_prediction(kind: Kind) -> None:
    before = logits()
    with kind():
        assert not torch.allclose(logits(), before, atol=1e-3)


@EVERY
@pytest.mark.parametrize("sizes", [(1,) * 7, (4, 1, 2)])
def test_with_a_cache_it_acts_as_without(kind: Kind, sizes: tuple[int, ...]) -> None:
    with kind():
        whole = logits()
        cache = MODEL.new_cache(7)
        parts = [MODEL.next_logits(part, cache) for part in TOKENS.split(list(sizes), 1)]
    last = torch.tensor(sizes).cumsum(0) - 1
    close(torch.stack(parts, 1), whole[:, last])


@EVERY
def test_in_a_padded_batch_it_acts_as_alone(kind: Kind, request: pytest.FixtureRequest) -> None:
    # a source without positions= must be as long as the longest row
    mate = [5, 5] if request.node.callspec.id == "keep patterns" else LONGER
    pads = [max(len(mate), 7) - len(text) for text in (mate, TEXT)]
    batch, pad = (
        torch.tensor([[0] * n + text for n, text in zip(pads, (mate, TEXT), strict=True)]),
        torch.tensor(pads),
    )
    cache = MODEL.new_cache(batch.size(1), rows=2, pad=pad)
    with kind():
        alone = logits()
        together = MODEL(batch, pad=pad)
        for part in batch.split(3, 1):
            in_parts = MODEL.next_logits(part, cache)
    close(together[1, pads[1] :], alone[0])
    close(in_parts[1], alone[0, -1])


def test_padding_is_never_edited() -> None:
    batch, pad = torch.tensor([[0, 0, *TEXT[:3]], TEXT[:5]]), torch.tensor([2, 0])
    with edit(MODEL, "blocks.0.resid_post", torch.zeros_like), record(MODEL, "blocks.0.resid_post") as seen:
        MODEL(batch, pad=pad)
    edited = seen["blocks.0.resid_post"].abs().amax(-1) == 0
    assert edited.tolist() == [[False, False, True, True, True], [True] * 5]


def broken(value: Tensor) -> Tensor:
    raise RuntimeError("mine")


@EVERY
def test_it_is_undone_after_an_exception(kind: Kind) -> None:
    with pytest.raises(RuntimeError, match="mine"), kind(), edit(MODEL, "blocks.1.mlp.out", broken):
        logits()


@EVERY
def test_a_recording_opened_before_or_after_sees_what_the_model_used(kind: Kind) -> None:
    points = ["blocks.*.*", "blocks.*.*.*", "embed", "final_norm", "logits"]
    with record(MODEL, *points) as outer, kind(), record(MODEL, *points) as inner:
        MODEL(TOKENS)
    for name in outer:
        assert outer[name].equal(inner[name])


def test_every_point_can_be_edited_and_is_what_the_edit_gives() -> None:
    for name in all_points(MODEL.config):
        before = record_text(MODEL, TEXT, name)[name]
        with edit(MODEL, name, lambda value: value * 1.5 + value.sin()):
            seen, changed = record_text(MODEL, TEXT, name)[name], logits()
        close(seen, before * 1.5 + before.sin())
        assert not torch.allclose(changed, logits(), atol=1e-3), name


def test_the_stream_between_attention_and_mlp_is_edited_for_both() -> None:
    """The MLP reads it, and it goes on beside the MLP."""
    vector = torch.randn(16)
    with (
        steer(MODEL, "blocks.0.resid_mid", vector),
        record(MODEL, "blocks.0.resid_mid", "blocks.1.resid_pre") as seen,
    ):
        MODEL(TOKENS)
    block = MODEL.blocks[0]
    middle = record_text(MODEL, TEXT, "blocks.0.resid_mid")["blocks.0.resid_mid"] + vector
    close(seen["blocks.0.resid_mid"], middle)
    close(seen["blocks.1.resid_pre"], middle + block.mlp(block.mlp_norm(middle)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stream_after_attention_is_put_in_place_to_the_bit(dtype: torch.dtype) -> None:
    """Not as a difference: a sum of it and what it is to replace would round."""
    model = tiny_gpt2().to(dtype)
    source = record_text(model, OTHER)
    with patch(model, "blocks.0.resid_mid", source):
        patched = record_text(model, TEXT, "blocks.0.mlp.*", "blocks.0.resid_post", "blocks.1.*", "logits")
    for name in patched:
        assert patched[name].equal(source[name]), name


@pytest.mark.parametrize("name", all_points(MODEL.config))
def test_patching_a_run_with_itself_changes_nothing(name: str) -> None:
    own = record_text(MODEL, TEXT)
    with patch(MODEL, name, own):
        patched = logits()
    if name.endswith("pattern"):  # the formula rounds otherwise than the kernel
        close(patched, own["logits"])
    else:
        assert patched.equal(own["logits"])


def test_patching_everything_is_the_other_run() -> None:
    with patch(MODEL, "blocks.0.resid_pre", SOURCE):
        assert logits().equal(SOURCE["logits"])
    with (
        patch(MODEL, "blocks.*.attn.*", SOURCE),
        patch(MODEL, "embed", SOURCE),
        patch(MODEL, "blocks.*.mlp.*", SOURCE),
    ):
        close(logits(), SOURCE["logits"])


def test_a_source_of_a_padded_batch_is_aligned_by_real_tokens() -> None:
    both = record_text(MODEL, [OTHER[:4], TEXT])
    batch, pad = torch.tensor([[0] * 5 + TEXT[:4], [0, 0, *OTHER]]), torch.tensor([5, 2])
    for point in ("blocks.0.resid_post", "blocks.1.attn.pattern", "blocks.0.attn.v"):
        with patch(MODEL, point, both):
            together = MODEL(batch, pad=pad)
        for row, (text, source) in enumerate(((TEXT[:4], OTHER[:4]), (OTHER, TEXT))):
            with patch(MODEL, point, record_text(MODEL, source)):
                close(together[row, pad[row] :], logits(text)[0])


@pytest.mark.parametrize("point", ["blocks.0.resid_post", "blocks.1.attn.pattern", "blocks.0.attn.v"])
def test_what_is_generated_after_a_short_source_is_not_patched_beside_a_longer_one(point: str) -> None:
    both = record_text(MODEL, [OTHER[:4], TEXT])
    batch, pad = torch.tensor([[0] * 3 + TEXT[:4], OTHER]), torch.tensor([3, 0])

    def continued(passes: int) -> Tensor:
        """Two tokens after the texts, one by one; the patch is open for so many of the three passes."""
        cache = MODEL.new_cache(9, rows=2, pad=pad)
        parts = [batch, torch.tensor([[6], [7]]), torch.tensor([[8], [9]])]
        with patch(MODEL, point, both):
            for part in parts[:passes]:
                last = MODEL.next_logits(part, cache)
        for part in parts[passes:]:
            last = MODEL.next_logits(part, cache)
        return last

    close(continued(3), continued(1))


def test_interventions_compose_in_the_order_of_opening() -> None:
    twice = lambda value: value * 2  # noqa: E731
    plus = lambda value: value + 1  # noqa: E731
    for point in ("blocks.0.resid_pre", "blocks.0.attn.pattern", "blocks.1.mlp.pre"):
        before = record_text(MODEL, TEXT, point)[point]
        with edit(MODEL, point, twice), edit(MODEL, point, plus):
            close(record_text(MODEL, TEXT, point)[point], before * 2 + 1)
        with edit(MODEL, point, plus):
            with edit(MODEL, point, twice):
                close(record_text(MODEL, TEXT, point)[point], (before + 1) * 2)
            close(record_text(MODEL, TEXT, point)[point], before + 1)


def test_a_knockout_and_an_edit_of_the_pattern_both_act() -> None:
    point = "blocks.0.attn.pattern"
    with scale(MODEL, point, 0.5), knock_out(MODEL, [3], [1]):
        pattern = record_text(MODEL, TEXT, point)[point]
    assert pattern[0, :, 3, 1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(pattern.sum(-1), torch.full((1, 2, 7), 0.5))


def test_only_the_chosen_places_change() -> None:
    name = "blocks.1.attn.z"
    batch = torch.tensor([TEXT, OTHER])
    before = record_text(MODEL, batch, name)[name]
    with ablate(MODEL, name, heads=[1], positions=[2, 4], rows=[1]):
        after = record_text(MODEL, batch, name)[name]
    expected = before.clone()
    expected[1, 1, [2, 4]] = 0
    assert after.equal(expected)


def test_rows_of_a_shorter_text_count_their_own_positions() -> None:
    with ablate(MODEL, "embed", positions=[0]):
        seen = record_text(MODEL, [TEXT, OTHER[:3]], "embed")
    assert not seen.row(0)["embed"][0, 0].any()
    assert not seen.row(1)["embed"][0, 0].any()
    assert seen["embed"][1, :4].any(-1).all()  # padding is not edited


def test_the_function_may_write_into_what_it_is_given() -> None:
    def in_place(value: Tensor) -> Tensor:
        return value.mul_(0)

    with edit(MODEL, "blocks.0.mlp.out", in_place, positions=[1]):
        seen = record_text(MODEL, TEXT, "blocks.0.mlp.out")["blocks.0.mlp.out"]
    assert seen[0].any(-1).tolist() == [True, False, *[True] * 5]


def test_a_knockout_leaves_attention_that_sums_to_one() -> None:
    point = "blocks.1.attn.pattern"
    free = record_text(MODEL, TEXT, point)[point]
    with knock_out(MODEL, queries=[4, 6], keys=[2], layers=[1]):
        blind = record_text(MODEL, TEXT, point)[point]
    expected = free.clone()
    expected[:, :, [4, 6], 2] = 0
    torch.testing.assert_close(blind, expected / expected.sum(-1, keepdim=True))


def test_interventions_steer_what_is_written() -> None:
    """Greedy text under an intervention is what reading the finished text under it predicts; beams take edits too."""
    with ablate(MODEL, "blocks.1.attn.z", heads=[0]):
        ((best,),) = generate(MODEL, [TEXT], Greedy(), max_new_tokens=6)
        predicted = logits([*TEXT, *best.tokens])[0].argmax(-1)
        assert predicted[6:-1].tolist() == best.tokens
        ((beam,),) = generate(MODEL, [TEXT], Beam(num_beams=1), max_new_tokens=6)
        assert beam.tokens == best.tokens


def test_gradients_flow_through_an_edit() -> None:
    vector = torch.zeros(16, requires_grad=True)
    with torch.enable_grad(), steer(MODEL, "blocks.0.resid_post", vector):
        MODEL(TOKENS)[0, -1, 3].backward()
    assert vector.grad is not None
    assert vector.grad.abs().max() > 0


def test_means_of_texts() -> None:
    texts = [TEXT, OTHER]
    z = record_text(MODEL, texts, "blocks.0.attn.z")["blocks.0.attn.z"]
    torch.testing.assert_close(mean_activation(MODEL, texts, "blocks.0.attn.z"), z.mean((0, 2), keepdim=True))
    each = mean_activation(MODEL, texts, "blocks.0.attn.z", over="texts")
    torch.testing.assert_close(each, z.mean(0, keepdim=True))
    with ablate(MODEL, "blocks.0.attn.z", each, heads=[1]):
        assert record_text(MODEL, TEXT, "blocks.0.attn.z")["blocks.0.attn.z"][:, 1].equal(each[:, 1])
    with pytest.raises(ValueError, match="needs texts that are equally long"):
        mean_activation(MODEL, [[1], [1, 2]], "embed", over="texts")
    with pytest.raises(ValueError, match='over must be "texts and positions"'):
        mean_activation(MODEL, texts, "embed", over="rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'blocks.\*.attn.z' matches 2 points"):
        mean_activation(MODEL, texts, "blocks.*.attn.z")
    with pytest.raises(ValueError, match="a mean needs at least one text"):
        mean_activation(MODEL, [], "embed")
    with pytest.raises(ValueError, match="tokens are ids of one text, or of several, got 3"):
        mean_activation(MODEL, TEXT, "embed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='a mean of patterns is over "texts"'):
        mean_activation(MODEL, texts, "blocks.0.attn.pattern")


def test_half_precision_and_training_without_dropout_are_edited_too() -> None:
    half = tiny_gpt2(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0).bfloat16().train()
    with scale(half, "blocks.0.attn.pattern", 0.5), ablate(half, "blocks.1.mlp.out"):
        seen = record_text(half, TEXT, "logits", "blocks.1.mlp.out")
    assert seen["logits"].dtype == torch.bfloat16
    assert not seen["blocks.1.mlp.out"].any()


# What cannot be, or did not act


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ablate(MODEL, "blocks.5.mlp.out"), KeyError, "no point matches 'blocks.5.mlp.out'"),
        (lambda: ablate(MODEL, "blocks.0.attn.z", heads=[2]), IndexError, "there is no head 2"),
        (lambda: ablate(MODEL, "blocks.0.mlp.out", heads=[0]), ValueError, "which has no heads"),
        (lambda: ablate(MODEL, "embed", positions=[-1]), IndexError, "no position -1: positions are counted from 0"),
        (lambda: knock_out(MODEL, 3, [0]), ValueError, r"queries=3 must be a list of numbers: write \[3\]"),  # type: ignore[arg-type]
        (lambda: knock_out(MODEL, [3], 0), ValueError, r"keys=0 must be a list of numbers: write \[0\]"),  # type: ignore[arg-type]
        (lambda: ablate(MODEL, "embed", positions=[7]), IndexError, "position 7 was never read: .* positions 0 to 6"),
        (lambda: ablate(MODEL, "embed", positions=[]), ValueError, r"positions=\[\] chooses nothing"),
        (lambda: ablate(MODEL, "embed", rows=[1]), IndexError, "row 1 was never read: the batch had rows 0 to 0"),
        (lambda: ablate(MODEL, "embed", rows=[-1]), IndexError, "there is no row -1"),
        (lambda: ablate(MODEL, "embed", torch.ones(5)), ValueError, r"shape \(5,\) does not fit embed"),
        (lambda: steer(MODEL, "embed", torch.ones(1, 5, 16)), ValueError,
         r"for embed has positions 0 to 4, and position 6 is to be changed: .* \(positions=\)"),
        (lambda: steer(MODEL, "embed", torch.ones(1, 5, 16), positions=[3, 5]), ValueError, "and position 5 is to be"),
        (lambda: steer(MODEL, "embed", torch.ones(2, 7, 16)), ValueError, r"shape \(2, 7, 16\) does not fit embed"),
        (lambda: ablate(MODEL, "blocks.0.attn.pattern", torch.ones(5)), ValueError, "has positions 0 to 4"),
        (lambda: edit(MODEL, "embed", lambda value: value[:, :1]), ValueError, r"must give a tensor of shape \(1, 7, 16\)"),
        (lambda: edit(MODEL, "embed", lambda value: None), ValueError, "got None"),  # type: ignore[arg-type,return-value]
        (lambda: patch(MODEL, "embed", record_text(MODEL, OTHER, "logits")), KeyError, "embed was not recorded"),
        (lambda: patch(MODEL, "embed", record_text(MODEL, OTHER[:4])), ValueError, r"has \[4\] tokens, .* \[7\]"),
        (lambda: patch(MODEL, "embed", record_text(MODEL, [*OTHER, 1])), IndexError, "position 7 was never read"),
        (lambda: patch(MODEL, "embed", record_text(MODEL, OTHER[:4]), positions=[4]), IndexError, "is not in the source"),
        (lambda: patch(MODEL, "embed", record_text(MODEL, [OTHER, TEXT])), ValueError, "has 2 rows, .* has 1"),
        (lambda: patch(MODEL, "blocks.0.attn.z", record_text(MODEL, OTHER, "blocks.0.attn.z", heads=[0])),
         ValueError, r"blocks.0.attn.z was recorded of heads \[0\] only"),
        (lambda: patch(MODEL, "blocks.0.attn.z", record_text(MODEL, OTHER, "blocks.0.attn.z", heads=[1, 0])),
         ValueError, r"of heads \[1, 0\] only"),
        (lambda: patch(MODEL, "embed", record_text(MODEL, OTHER, "embed", take=torch.zeros_like)),
         ValueError, "embed was reduced by take="),
        (lambda: patch(MODEL, "embed", {"embed": OWN["embed"]}), ValueError, "from a recording, got dict"),  # type: ignore[arg-type]
        (lambda: patch(MODEL, "embed", record_text(tiny_gpt2(n_embd=32), OTHER)), ValueError, "has shape"),
        (lambda: ablate(MODEL, "embed", positions=3), ValueError, r"positions=3 must be a list of numbers: write \[3\]"),  # type: ignore[arg-type]
        (lambda: ablate(MODEL, "blocks.0.attn.z", heads=1), ValueError, r"heads=1 must be a list"),  # type: ignore[arg-type]
        (lambda: ablate(MODEL, "blocks.0.attn.z", heads=[0.5]), ValueError, r"heads=\[0.5\] must be whole numbers"),  # type: ignore[list-item]
        (lambda: ablate(MODEL, "blocks.0.attn.z", heads=[True, False]), ValueError, "must be whole numbers"),
        (lambda: ablate(MODEL, "embed", positions=slice(2)), ValueError, "must be whole numbers in a list"),  # type: ignore[arg-type]
        (lambda: ablate(MODEL, "blocks.0.attn.*", heads=[0]), ValueError,
         r"heads=\[0\] has no effect at blocks.0.attn.out"),
        (lambda: ablate(MODEL, "embed", layers=[0]), ValueError, r"layers=\[0\] has no effect at embed"),
        (lambda: knock_out(MODEL, [2], None), ValueError, "needs queries that shall not see, and keys"),  # type: ignore[arg-type]
        (lambda: knock_out(MODEL, [2], [3]), ValueError, "query 2 cannot see key 3"),
        (lambda: knock_out(MODEL, [0], [0]), ValueError, "are all that a query sees"),
        (lambda: knock_out(MODEL, [9], [3]), IndexError, "position 9 was never read"),
        (lambda: knock_out(MODEL, [3], [2], layers=[4]), IndexError, "there is no layer 4"),
        (lambda: knock_out(MODEL, [3], [2], heads=[4]), IndexError, "there is no head 4"),
    ],
)  # fmt: skip
def test_an_intervention_that_cannot_act_raises(make: Kind, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), make():
        MODEL(TOKENS)


def test_places_are_named_by_tensors_and_ranges_too() -> None:
    with ablate(MODEL, "blocks.0.attn.z", heads=[1], positions=[2, 3]):
        expected = logits()
    with ablate(MODEL, "blocks.0.attn.z", heads=torch.tensor([1]), positions=range(2, 4)):  # type: ignore[arg-type]
        assert logits().equal(expected)
    with knock_out(MODEL, torch.tensor([3]), torch.tensor([1])), knock_out(MODEL, [4], range(1, 3)):  # type: ignore[arg-type]
        seen = record_text(MODEL, TEXT, "blocks.0.attn.pattern")["blocks.0.attn.pattern"]
    assert not seen[0, :, 3, 1].any()
    assert not seen[0, :, 4, 1:3].any()


def test_numbers_do_for_vectors_and_values() -> None:
    with ablate(MODEL, "blocks.0.mlp.out", 0.5), steer(MODEL, "blocks.1.attn.z", [2.0] * 8):  # type: ignore[arg-type]
        seen = record_text(MODEL, TEXT, "blocks.0.mlp.out")
    assert seen["blocks.0.mlp.out"].eq(0.5).all()


def test_logits_that_a_pass_does_not_compute_cannot_be_edited() -> None:
    """Into a cache, the logits of the newest token only are computed: the others would be edited in silence."""
    with (
        pytest.raises(IndexError, match=r"position 2 was never edited: .* logits of the newest token only"),
        ablate(MODEL, "logits", positions=[2, 6]),
    ):
        MODEL.next_logits(TOKENS, MODEL.new_cache(7))


def test_a_layer_that_is_called_by_itself_is_no_pass() -> None:
    for layer in MODEL.blocks:
        with (
            pytest.raises(ValueError, match="a layer was called by itself, or by another thread"),
            ablate(MODEL, "blocks.*.mlp.out"),
        ):
            layer(torch.zeros(1, 3, 16), MODEL.new_cache(3).layers[0], None)


def test_adapters_are_edited_and_their_dropout_is_refused() -> None:
    adapted = tiny_gpt2(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    lora.attach(adapted, rank=2, dropout=0.5)
    for name, parameter in adapted.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter.data)
    merged = lora.merge(adapted)
    with scale(adapted, "blocks.*.attn.q", 0.5), ablate(adapted, "blocks.1.mlp.post", positions=[2]):
        seen = record_text(adapted, TEXT)
    with scale(merged, "blocks.*.attn.q", 0.5), ablate(merged, "blocks.1.mlp.post", positions=[2]):
        expected = record_text(merged, TEXT)
    for name in expected:
        close(seen[name], expected[name])
    with pytest.raises(ValueError, match="drops values at random"):
        record_text(adapted.train(), TEXT, "logits")


def test_an_intervention_without_a_pass_raises() -> None:
    with pytest.raises(ValueError, match="did nothing: no text was read"), ablate(MODEL, "embed"):
        pass
    with pytest.raises(ValueError, match="the knockout did nothing"), knock_out(MODEL, [1], [0]):
        pass


def test_a_point_that_does_not_fire_raises() -> None:
    with pytest.raises(ValueError, match="logits never fired"), scale(MODEL, "logits", 2.0):
        MODEL.hidden_states(TOKENS, MODEL.new_cache(7))


def test_a_source_that_was_generated_has_not_every_tokens_logits() -> None:
    with record(MODEL, "logits") as live:
        cache = MODEL.new_cache(7)
        MODEL.next_logits(TOKENS[:, :4], cache)
        MODEL.next_logits(TOKENS[:, 4:], cache)
    with pytest.raises(ValueError, match="use record_text"), patch(MODEL, "logits", live):
        MODEL(TOKENS)


def test_a_live_recording_is_a_source() -> None:
    point = "blocks.0.attn.pattern"
    with record(MODEL, point) as live:
        cache = MODEL.new_cache(7)
        for token in torch.tensor([OTHER]).split([3, 1, 3], 1):
            MODEL.next_logits(token, cache)
    with patch(MODEL, point, live):
        got = logits()
    with patch(MODEL, point, SOURCE):
        close(got, logits())


@pytest.mark.parametrize("strategy", [Greedy(), Beam(num_beams=2)])
def test_rows_that_no_longer_name_the_same_texts_raise(strategy: Any) -> None:
    """A text that ends leaves the batch, and beams change places: row 1 would silently be another text."""
    prompts = [TEXT, OTHER, TEXT[:3]]
    ((first,), *_) = generate(MODEL, prompts, Greedy(), max_new_tokens=1)
    with (
        pytest.raises(ValueError, match="rows= no longer names the same texts"),
        ablate(MODEL, "embed", rows=[1]),
    ):
        generate(MODEL, prompts, strategy, max_new_tokens=8, end_tokens=first.tokens)
    with ablate(MODEL, "blocks.0.mlp.out"):
        # All rows are treated alike, so that it does no harm when they move.
        generate(MODEL, prompts, strategy, max_new_tokens=8, end_tokens=first.tokens)


def test_a_source_of_several_texts_needs_its_rows_in_place() -> None:
    prompts = [TEXT, OTHER]
    source = record_text(MODEL, prompts, "blocks.0.mlp.out")
    with (
        pytest.raises(ValueError, match="rows= no longer names the same texts"),
        patch(MODEL, "blocks.0.mlp.out", source),
    ):
        generate(MODEL, prompts, Beam(num_beams=2), max_new_tokens=8)
    with (
        pytest.raises(ValueError, match="rows= no longer names the same texts"),
        knock_out(MODEL, [3], [1], rows=[1]),
    ):
        generate(MODEL, prompts, Beam(num_beams=2), max_new_tokens=8)


@pytest.mark.parametrize("kind", [
    lambda rows: ablate(MODEL, "blocks.0.mlp.out", rows=rows), lambda rows: knock_out(MODEL, [3], [1], rows=rows),
])  # fmt: skip
def test_rows_of_a_second_batch_would_be_other_texts(kind: Callable[[Any], Any]) -> None:
    """More prompts than fit one batch are decoded in several, whose rows are no longer the prompts' places."""
    prompts = [[i % 23, *TEXT[: 4 + i % 3]] for i in range(33)]
    alike = [[*TEXT, i % 23] for i in range(66)]  # a second batch begins with what the first one has read
    strategy = Greedy()
    for many in (prompts, alike):
        with pytest.raises(ValueError, match=r"rows= n(ames rows of one batch|o longer)"), kind([5]):
            generate(MODEL, many, strategy, max_new_tokens=2)
        with kind(None):
            generate(MODEL, many, strategy, max_new_tokens=2)
    two, others = torch.stack([TOKENS[0], TOKENS[0].flip(0)]), torch.stack([TOKENS[0].flip(0), TOKENS[0]])
    with kind([0]):  # the same texts once more, and drafts that are taken back
        MODEL(two)
        MODEL(two[:, :-1])
        generate(MODEL, [TEXT + TEXT], PromptLookup(), max_new_tokens=8)
    with kind([0]):
        MODEL(two)
        with pytest.raises(ValueError, match="a second batch was read: rows= names rows of one batch"):
            MODEL(others)


def test_positions_of_a_window_that_slides_would_be_other_tokens() -> None:
    limits = {"overflow": "slide", "max_new_tokens": MODEL.config.n_positions}
    for kind in (ablate(MODEL, "blocks.0.mlp.out", positions=[3]), knock_out(MODEL, [3], [1])):
        with pytest.raises(ValueError, match=r"the window slid .* positions would name other tokens"), kind:
            generate(MODEL, [TEXT], **limits)  # type: ignore[arg-type]
    whole = torch.randint(23, (1, MODEL.config.n_positions))
    with ablate(MODEL, "blocks.0.mlp.out", positions=[3]):  # texts that fill the context, one after the other
        MODEL(whole)
        MODEL(whole)
        MODEL(whole.flip(1))
    with ablate(MODEL, "blocks.0.mlp.out"):  # everywhere: it does no harm that the window moves
        generate(MODEL, [TEXT], **limits)  # type: ignore[arg-type]


def test_a_layer_by_layer_reading_is_not_mistaken_for_the_end_of_a_pass() -> None:
    with (
        pytest.raises(ValueError, match="logits was computed for something else"),
        scale(MODEL, "logits", 0.5),
    ):
        generate(MODEL, [TEXT, OTHER], DoLa(dola_layers="low"), max_new_tokens=2)
    with (
        pytest.raises(ValueError, match="final_norm was computed for something else"),
        scale(MODEL, "final_norm", 2.0),
    ):
        MODEL.final_norm(torch.zeros(1, 3, 16))


# Whatever the text, however it is read


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_intervention_acts_alike_however_the_text_is_read(data: st.DataObject) -> None:
    """Alone, with a cache in pieces, and padded beside another text; several interventions at once."""
    text = data.draw(st.lists(st.integers(0, 22), min_size=2, max_size=8))
    n = len(text)
    places = st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True)

    def intervention() -> AbstractContextManager[None]:
        name = data.draw(
            st.sampled_from(["embed", *(p for p in all_points(MODEL.config) if p.startswith("blocks"))])
        )
        kind = data.draw(st.sampled_from(["scale", "edit", "patch", "knock out"]))
        positions = data.draw(places)
        if kind == "scale":
            return scale(MODEL, name, 0.5, positions=positions)
        if kind == "edit":
            return edit(MODEL, name, torch.tanh, positions=positions)
        if kind == "patch":
            return patch(MODEL, name, record_text(MODEL, list(reversed(text)), name), positions=positions)
        query = data.draw(st.integers(1, n - 1))
        return knock_out(
            MODEL, [query], [data.draw(st.integers(0, query - 1))], heads=[data.draw(st.integers(0, 1))]
        )

    made = [intervention() for _ in range(data.draw(st.integers(1, 3)))]
    mate = data.draw(st.lists(st.integers(0, 22), min_size=1, max_size=10))
    cut = data.draw(st.integers(1, n))
    pads = [max(n, len(mate)) - n, max(n, len(mate)) - len(mate)]
    batch = torch.tensor([[0] * pads[0] + text, [0] * pads[1] + mate])
    with ExitStack() as stack:
        for one in made:
            stack.enter_context(one)
        alone = MODEL(torch.tensor([text]))[0]
        cache = MODEL.new_cache(n)
        for part in torch.tensor([text]).split([cut, n - cut] if cut < n else [n], 1):
            cached = MODEL.next_logits(part, cache)[0]
        together = MODEL(batch, pad=torch.tensor(pads))[0, pads[0] :]
    close(cached, alone[-1])
    close(together, alone)


# When something breaks in the middle of a pass


@pytest.mark.parametrize(
    "module", ["blocks.0", "blocks.0.attn.qkv", "blocks.1.attn.sdpa", "blocks.1.mlp.down", "head"]
)
def test_a_pass_that_fails_leaves_nothing_and_the_next_is_right(module: str) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("mine")

    cache = MODEL.new_cache(7)
    MODEL.next_logits(TOKENS[:, :3], cache)
    handle = MODEL.get_submodule(module).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mine"), scale(MODEL, "blocks.*.resid_mid", 0.5), record(MODEL):
        MODEL.next_logits(TOKENS[:, 3:], cache)
    handle.remove()
    assert cache.length == 3
    assert n_hooks(MODEL) == 0
    close(MODEL.next_logits(TOKENS[:, 3:], cache), MODEL(TOKENS)[:, -1])
