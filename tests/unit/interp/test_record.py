"""Recording changes nothing, sees everything, copies what it sees, and never fails in silence."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import tiny_gpt2
from safetensors.torch import load_file
from torch import Tensor, nn
from watched import close, n_hooks

import minigpt
from minigpt import GPT2
from minigpt.interp import (
    Recording,
    direct_attribution,
    edit,
    fit_tuned_lens,
    head_statistics,
    integrated_gradients,
    logit_lens,
    plots,
    record,
    record_text,
    rollout,
    surprisal,
    tensor_file,
    value_weighted,
)
from minigpt.interp.points import all_points
from minigpt.sampler import Beam, Contrastive, Greedy, PromptLookup, Sample, generate

MODEL = tiny_gpt2()
TEXT = [3, 1, 4, 1, 5, 9, 2]
TOKENS = torch.tensor([TEXT])
OTHER = [2, 6, 5, 3]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert n_hooks(MODEL) == 0


def read_in_parts(*parts: Tensor, pad: Tensor | None = None) -> None:
    cache = MODEL.new_cache(sum(part.size(1) for part in parts), rows=len(parts[0]), pad=pad)
    for part in parts:
        MODEL.next_logits(part, cache)


# What is recorded


def test_logits_are_equal_to_the_bit_with_and_without() -> None:
    with torch.no_grad():
        alone = MODEL(TOKENS)
        with record(MODEL):
            assert MODEL(TOKENS).equal(alone)
        cache, watched = MODEL.new_cache(7), MODEL.new_cache(7)
        expected = [MODEL.next_logits(TOKENS[:, i : i + 1], cache) for i in range(7)]
        with record(MODEL):
            got = [MODEL.next_logits(TOKENS[:, i : i + 1], watched) for i in range(7)]
    assert torch.stack(got).equal(torch.stack(expected))


@torch.no_grad()  # as points are recorded
def test_each_point_is_what_the_points_before_it_make() -> None:
    seen = record_text(MODEL, TEXT)
    assert list(seen) == all_points(MODEL.config)
    assert seen["embed"].equal(seen["blocks.0.resid_pre"])
    for layer, block in enumerate(MODEL.blocks):
        at = f"blocks.{layer}."
        close(seen[at + "attn.pattern"] @ seen[at + "attn.v"], seen[at + "attn.z"])
        assert seen[at + "resid_mid"].equal(seen[at + "resid_pre"] + seen[at + "attn.out"])
        assert seen[at + "resid_post"].equal(seen[at + "resid_mid"] + seen[at + "mlp.out"])
        heads = block.attn.out.weight.detach().view(2, 8, 16)
        summed = (seen[at + "attn.z"] @ heads).sum(1) + block.attn.out.bias.detach()
        close(summed, seen[at + "attn.out"])
        assert seen[at + "mlp.post"].equal(block.mlp.activation(seen[at + "mlp.pre"]))
    assert seen["blocks.0.resid_post"].equal(seen["blocks.1.resid_pre"])
    assert seen["final_norm"].equal(MODEL.final_norm(seen["blocks.1.resid_post"]))
    assert seen["logits"].equal(MODEL.unembed(seen["final_norm"]))


def test_stack_puts_layers_behind_each_other() -> None:
    seen = record_text(MODEL, TEXT, "blocks.*.resid_post")
    stacked = seen.stack("blocks.*.resid_post")
    assert stacked.shape == (2, 1, 7, 16)
    assert stacked[1].equal(seen["blocks.1.resid_post"])
    assert seen.stack("blocks.*.resid_post", layers=[1]).shape == (1, 1, 7, 16)
    with pytest.raises(KeyError, match=r"blocks.0.attn.q was not recorded; there are blocks.0.resid_post"):
        seen.stack("blocks.*.attn.q")
    with pytest.raises(
        KeyError, match=r"recorded; did you mean blocks\.1\.resid_post or blocks\.0\.resid_post\?"
    ):
        seen["blocks.1.resid_pots"]
    with pytest.raises(
        KeyError, match=r"blocks.\*.resid_post was not recorded; .*; stack\(\) takes a name with \*"
    ):
        seen["blocks.*.resid_post"]
    with pytest.raises(ValueError, match="matches points of different shapes"):
        record_text(MODEL, TEXT, "blocks.0.mlp.*").stack("blocks.0.mlp.*")


def test_layers_and_heads_choose() -> None:
    seen = record_text(MODEL, TEXT, "blocks.*.attn.*", "logits", layers=[1], heads=[1])
    assert list(seen) == [
        *(f"blocks.1.attn.{part}" for part in ("q", "k", "v", "pattern", "z", "out")),
        "logits",
    ]
    assert seen["blocks.1.attn.z"].equal(record_text(MODEL, TEXT)["blocks.1.attn.z"][:, 1:])
    assert seen["blocks.1.attn.out"].shape == (1, 7, 16)


def test_take_makes_less_of_a_value_before_it_is_kept() -> None:
    first = record_text(MODEL, TEXT, "blocks.*.attn.pattern", take=lambda pattern: pattern[..., 0])
    assert first["blocks.0.attn.pattern"].shape == (1, 2, 7)
    kept = first["blocks.0.attn.pattern"].untyped_storage().nbytes()
    assert kept == 2 * 7 * 4  # a view would have kept the whole pattern


def test_what_take_writes_into_its_value_does_not_reach_the_model() -> None:
    plain = record_text(MODEL, TEXT, "logits")["logits"]
    with record(MODEL, "blocks.*.resid_post", take=lambda value: value.zero_()), torch.no_grad():
        assert MODEL(TOKENS).equal(plain)


def test_gradients_of_every_point_are_those_of_autograd() -> None:
    model = tiny_gpt2().double()
    with record(model, grad=True) as seen:
        logits = model(TOKENS)
    logits[0, -1, 3].backward()
    for name in seen:
        assert seen[name].grad is not None, name
    stream = record_text(model, TEXT, "blocks.1.resid_pre")["blocks.1.resid_pre"].requires_grad_()
    rest = model.unembed(model.final_norm(model.blocks[1](stream, _no_past(), None)))
    (expected,) = torch.autograd.grad(rest[0, -1, 3], stream)
    torch.testing.assert_close(seen["blocks.1.resid_pre"].grad, expected)
    pattern, z = seen["blocks.1.attn.pattern"], seen["blocks.1.attn.z"]
    torch.testing.assert_close(pattern.grad.tril(), (z.grad @ seen["blocks.1.attn.v"].mT).tril())


def _no_past() -> object:
    from minigpt.cache import NoCache

    return NoCache(MODEL.config)


# In parts, in batches, while generating


@pytest.mark.parametrize("sizes", [(1,) * 7, (3, 1, 1, 1, 1), (4, 3)])
def test_with_a_cache_it_is_what_it_is_without(sizes: tuple[int, ...]) -> None:
    with record(MODEL) as live:
        read_in_parts(*TOKENS.split(list(sizes), 1))
    whole = record_text(MODEL, TEXT)
    assert live.tokens.equal(whole.tokens)
    for name in whole:
        if name != "logits":
            close(live[name], whole[name])
    last = torch.tensor(sizes).cumsum(0) - 1
    close(live["logits"], whole["logits"][:, last])
    assert len(live.steps("blocks.0.attn.q")) == len(sizes)


@pytest.mark.parametrize("live", [True, False])
def test_a_row_of_a_padded_batch_is_what_it_is_alone(live: bool) -> None:
    if live:
        pad = torch.tensor([0, 3])
        batch = torch.tensor([TEXT, [0, 0, 0, *OTHER]])
        with record(MODEL) as seen:
            read_in_parts(batch[:, :2], batch[:, 2:5], batch[:, 5:], pad=pad)
    else:
        seen = record_text(MODEL, [TEXT, OTHER])
    for index, text in enumerate((TEXT, OTHER)):
        row, alone = seen.row(index), record_text(MODEL, text)
        assert row.tokens.tolist() == [text]
        for name in alone:
            if name != "logits" or not live:
                close(row[name], alone[name])


def test_what_strategies_write_one_by_one_is_recorded_while_they_write() -> None:
    for strategy in (Greedy(), Sample(seed=5)):
        with record(MODEL, "blocks.*.attn.*", "blocks.*.resid_post") as live:
            ((best,),) = generate(MODEL, [TEXT, [*TEXT[1:], 8]], strategy, max_new_tokens=6)[:1]
        text = [*TEXT, *best.tokens[:-1]]  # the last token is not read
        finished = record_text(MODEL, text, *live)
        assert live.row(0).tokens.tolist() == [text]
        for name in finished:
            close(live.row(0)[name], finished[name])


def test_a_recording_that_begins_in_the_middle_knows_where_it_stands() -> None:
    cache = MODEL.new_cache(7)
    MODEL.next_logits(TOKENS[:, :4], cache)
    with record(MODEL, "blocks.1.attn.pattern") as seen:
        MODEL.next_logits(TOKENS[:, 4:], cache)
    assert seen.start == 4
    assert seen["blocks.1.attn.pattern"].shape == (1, 2, 3, 7)


# What cannot be recorded while it runs


@pytest.mark.parametrize(
    ("strategy", "limits", "message"),
    [
        (Beam(num_beams=3), {}, r"^1 row was recorded, now there are 3: .*record_text\(model, tokens\)"),
        (Contrastive(penalty_alpha=0.6, top_k=4), {}, "^1 row was recorded, now there are 4: "),
        (Sample(num_return_sequences=2, seed=1), {}, r"rows end or move cannot be recorded"),
        (
            PromptLookup(draft_schedule="constant"),
            {},
            r"^a pass read on from slot \d+, but \d+ .*: drafts, beams,",
        ),
        (Greedy(), {"overflow": "slide", "max_new_tokens": 40}, "a second text was read"),
    ],
)
def test_what_moves_rows_or_takes_tokens_back_is_refused(strategy, limits, message) -> None:  # type: ignore[no-untyped-def]
    prompt = [1, 2, 3, 1, 2, 3, 1, 2]
    with pytest.raises(ValueError, match=message), record(MODEL, "blocks.0.attn.z"):
        generate(MODEL, [prompt], strategy, **{"max_new_tokens": 8, **limits})


def test_beams_that_change_places_are_noticed_though_no_length_changes() -> None:
    cache = MODEL.new_cache(4, rows=2)

    def swap() -> None:
        with record(MODEL, "logits"):
            MODEL.next_logits(torch.tensor([[1, 2], [3, 4]]), cache)
            cache.select([1, 0])
            MODEL.next_logits(torch.tensor([[5], [5]]), cache)

    with pytest.raises(ValueError, match="rows were moved"):
        swap()


def test_a_second_text_is_refused() -> None:
    def twice() -> None:
        with record(MODEL, "logits"):
            MODEL(TOKENS)
            MODEL(TOKENS)

    with pytest.raises(ValueError, match="a second text was read inside one record"):
        twice()


# Nothing is left, nothing is shared, nothing grows


def test_no_recorded_tensor_shares_storage_with_the_cache_or_the_model() -> None:
    cache = MODEL.new_cache(7)
    with record(MODEL) as seen:
        logits = MODEL.next_logits(TOKENS, cache)
    own = {part.data_ptr() for part in [*MODEL.parameters(), cache._slots, logits]}
    kept = {name: seen[name].clone() for name in seen}
    assert not own & {seen[name].untyped_storage().data_ptr() for name in seen}
    assert len({seen[name].untyped_storage().data_ptr() for name in seen}) == len(seen)
    cache._slots.fill_(7.0)
    assert all(seen[name].equal(kept[name]) for name in seen)


def test_what_was_recorded_in_inference_mode_is_a_tensor_like_any_other() -> None:
    with torch.inference_mode(), record(MODEL, "embed") as seen:
        MODEL(TOKENS)
    assert not seen["embed"].is_inference()


def test_hooks_of_others_stay() -> None:
    calls: list[int] = []
    handle = MODEL.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with record(MODEL, "blocks.0.resid_post"), record(MODEL, "logits"):
        MODEL(TOKENS)
    MODEL(TOKENS)
    assert calls == [1, 1]
    handle.remove()


def test_an_error_inside_leaves_no_hook_and_is_the_one_that_is_seen() -> None:
    with pytest.raises(RuntimeError, match="mine"), record(MODEL, "logits"):
        raise RuntimeError("mine")
    assert n_hooks(MODEL) == 0


def test_nested_recordings_end_in_any_order() -> None:
    outer, inner = record(MODEL, "logits"), record(MODEL, "embed")
    first, second = outer.__enter__(), inner.__enter__()
    MODEL(TOKENS)
    outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert first["logits"].shape == (1, 7, 23)
    assert second["embed"].shape == (1, 7, 16)


def test_a_model_that_was_recorded_is_freed_with_its_last_reference() -> None:
    model = tiny_gpt2()
    record_text(model, [1, 2])
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None


def test_a_hundred_recordings_grow_no_memory() -> None:
    def count() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    record_text(MODEL, TEXT)
    before = count()
    for _ in range(100):
        record_text(MODEL, TEXT)
    assert count() <= before


def test_recording_one_layer_keeps_one_layer_however_deep_the_model() -> None:
    def kept(model: GPT2) -> int:
        seen = record_text(model, TEXT, "blocks.1.*.*", "blocks.1.*")
        return sum(seen[name].untyped_storage().nbytes() for name in seen)

    assert kept(tiny_gpt2(n_layer=2)) == kept(tiny_gpt2(n_layer=8))


# Bad input


@pytest.mark.parametrize(
    ("points", "options", "error", "message"),
    [
        (["blocks.0.attn.patern"], {}, KeyError, "did you mean blocks.0.attn.pattern"),
        (["blocks.*.attn.patern"], {}, KeyError, r"did you mean blocks.\*.attn.pattern"),
        (["blocks.7.attn.q"], {}, KeyError, r"no point matches 'blocks.7.attn.q'; layers are 0 to 1"),
        (
            ["attn.q"],
            {},
            KeyError,
            r"did you mean blocks.\*.attn.q\? \(points of layer L begin with blocks.L.",
        ),
        (["blocks.*"], {}, KeyError, "no point matches"),
        ([["logits", "embed"]], {}, ValueError, r"points are names, each an argument of its own, got \["),
        (["blocks.*.attn.q"], {"heads": 1}, ValueError, r"heads=1 must be a list of numbers: write \[1\]"),
        (["logits"], {"take": lambda value: 3.0}, ValueError, "take= must give a tensor, got 3.0 at logits"),
        (["blocks.0.attn.q"], {"layers": [1]}, KeyError, r"in layers \[1\]"),
        (["logits"], {"layers": [2]}, IndexError, "there is no layer 2: this model has layers 0 to 1"),
        (["blocks.*.attn.q"], {"heads": [2]}, IndexError, "there is no head 2: this model has heads 0 to 1"),
        (["blocks.*.attn.q"], {"heads": []}, ValueError, r"heads=\[\] chooses nothing"),
        (["logits"], {"heads": [0]}, ValueError, r"heads=\[0\] has no effect: none of logits has heads"),
        (["logits"], {"grad": True, "to": "x"}, ValueError, "grad=True records whole values in memory"),
    ],
)
def test_what_there_is_not_is_named(points, options, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message), record(MODEL, *points, **options):
        MODEL(TOKENS)


def test_a_with_in_which_nothing_is_read_raises() -> None:
    with (
        pytest.raises(ValueError, match="nothing was recorded: the model read no text"),
        record(MODEL, "logits"),
    ):
        pass


def test_a_point_that_never_fires_raises() -> None:
    with pytest.raises(ValueError, match=r"logits never fired"), record(MODEL, "embed", "logits"):
        MODEL.hidden_states(TOKENS, MODEL.new_cache(7))


def test_a_pass_that_did_not_finish_is_no_recording() -> None:
    """An exception that is caught inside the `with` ends the pass, and not the recording."""

    def broken(value: Tensor) -> Tensor:
        raise RuntimeError("mine")

    def interrupted(first: int, then: int = 0) -> None:
        cache = MODEL.new_cache(7)
        with record(MODEL, "blocks.*.resid_mid"):
            MODEL.next_logits(TOKENS[:, :first], cache) if first else None
            with suppress(RuntimeError), edit(MODEL, "blocks.1.attn.q", broken):
                MODEL.next_logits(TOKENS[:, first : first + 2], cache)
            MODEL.next_logits(TOKENS[:, first : first + then], cache) if then else None

    with pytest.raises(
        ValueError, match=r"a pass did not finish: an exception .*, so blocks.1.resid_mid never"
    ):
        interrupted(0)
    for then in (0, 3):
        with pytest.raises(
            ValueError, match=r"a pass did not finish: .* is not whole; open another record\(\)"
        ):
            interrupted(2, then)


def test_before_anything_is_read_a_value_is_not_there() -> None:
    with record(MODEL, "logits") as seen:
        with pytest.raises(KeyError, match="logits holds nothing yet"):
            seen["logits"]
        MODEL(TOKENS)


def test_a_graph_cannot_be_kept_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="grad=True needs a graph"), record(MODEL, "logits", grad=True):
        MODEL.next_logits(TOKENS, MODEL.new_cache(7))
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="grad=True needs a graph"),
        record(MODEL, "logits", grad=True),
    ):
        MODEL(TOKENS)


def test_a_recording_is_pickled_with_all_that_it_knows(tmp_path: Path) -> None:
    seen = record_text(MODEL, [TEXT, OTHER], "blocks.*.attn.z", heads=[1])
    filed = record_text(MODEL, [TEXT, OTHER], "blocks.*.attn.z", heads=[1], to=tmp_path / "seen")
    for other in (pickle.loads(pickle.dumps(seen)), pickle.loads(pickle.dumps(filed)), copy.deepcopy(seen)):
        assert other.heads == [1]
        assert other.tokens.equal(seen.tokens)
        for row in range(2):
            assert other.row(row)["blocks.1.attn.z"].equal(seen.row(row)["blocks.1.attn.z"])


def test_analyses_refuse_what_is_not_whole(tmp_path: Path) -> None:
    """With some heads only, weights of others would be multiplied, and heads be called by other numbers."""
    some = record_text(MODEL, TEXT, heads=[1], to=tmp_path / "some")
    taken = record_text(MODEL, TEXT, take=lambda value: value * 2)
    loaded = Recording.load(tmp_path / "some", MODEL.config)
    for analysis in (
        lambda seen: head_statistics(seen),
        lambda seen: rollout(seen),
        lambda seen: value_weighted(MODEL, seen, 0),
        lambda seen: direct_attribution(MODEL, seen, 3),
        lambda seen: plots.attention_grid(seen),
    ):
        for seen in (some, loaded, some.row(0)):
            with pytest.raises(
                ValueError, match=r"was recorded of heads \[1\] only: record it without heads="
            ):
                analysis(seen)
        with pytest.raises(ValueError, match="was reduced by take= while it was recorded"):
            analysis(taken)
    for of_all in (lambda seen: logit_lens(MODEL, seen), lambda seen: surprisal(seen)):
        of_all(some)  # nothing there has heads
        with pytest.raises(ValueError, match="was reduced by take= while it was recorded"):
            of_all(taken)


def test_another_model_or_a_compiled_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only a minigpt.GPT2 can be watched, got Linear"):
        record(nn.Linear(2, 2), "logits").__enter__()  # type: ignore[arg-type]
    compiled = tiny_gpt2()
    compiled.blocks[1]._compiled_call_impl = compiled.blocks[
        1
    ]._call_impl  # as .compile() does, with no compiler
    with pytest.raises(ValueError, match=r"blocks.1 is compiled and would skip hooks"):
        record_text(compiled, TEXT, "logits")


@torch.no_grad()
def test_training_mode_is_right_without_dropout_and_refused_with_it() -> None:
    without = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    calm = tiny_gpt2(**without).train()
    assert record_text(calm, TEXT, "logits")["logits"].equal(calm(TOKENS))
    with pytest.raises(ValueError, match=r"training mode and drops values at random"):
        record_text(tiny_gpt2().train(), TEXT, "logits")


def test_texts_that_are_empty_short_or_too_long() -> None:
    assert record_text(MODEL, [5], "blocks.0.attn.pattern")["blocks.0.attn.pattern"].tolist() == [
        [[[1.0]], [[1.0]]]
    ]
    with pytest.raises(ValueError, match="an empty text has nothing to read"):
        record_text(MODEL, [])
    with pytest.raises(ValueError, match="an empty text has nothing to read"):
        record_text(MODEL, [[1], []])
    with pytest.raises(ValueError, match="tokens are ids, got the text 'Once'"):
        record_text(MODEL, "Once")
    for wrong in ([1.5], ["Once", "upon"], None, 5, torch.zeros(1, 2, 3)):
        with pytest.raises(ValueError, match="tokens are ids of one text, or of several, got"):
            record_text(MODEL, wrong)  # type: ignore[arg-type]
    both = record_text(MODEL, [torch.tensor(TEXT), torch.tensor(OTHER)], "embed")
    assert both["embed"].equal(record_text(MODEL, [TEXT, OTHER], "embed")["embed"])
    assert record_text(MODEL, np.array([1, 2]), "embed")["embed"].equal(
        record_text(MODEL, [1, 2], "embed")["embed"]
    )
    with pytest.raises(ValueError, match="33 tokens do not fit the context length of 32"):
        record_text(MODEL, [1] * 33)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_recorded_as_it_is_and_patterns_in_float32(dtype: torch.dtype) -> None:
    model = tiny_gpt2().to(dtype)
    seen = record_text(model, TEXT)
    assert seen["blocks.0.attn.q"].dtype == seen["logits"].dtype == dtype
    pattern = seen["blocks.0.attn.pattern"]
    assert pattern.dtype == torch.float32
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 2, 7))
    z = pattern @ seen["blocks.0.attn.v"].float()
    torch.testing.assert_close(seen["blocks.0.attn.z"].float(), z, rtol=0.02, atol=0.02)


def test_under_autocast_it_changes_nothing_either() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        alone = MODEL(TOKENS)
        with record(MODEL) as seen:
            assert MODEL(TOKENS).equal(alone)
    assert seen["blocks.0.attn.q"].dtype == torch.bfloat16
    torch.testing.assert_close(seen["blocks.0.attn.pattern"].sum(-1), torch.ones(1, 2, 7))


# To a file


def test_a_file_holds_what_memory_would_hold(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "seen.safetensors"
    with record(MODEL, to=path) as seen:
        cache = MODEL.new_cache(7)
        MODEL.next_logits(TOKENS[:, :3], cache)
        assert seen["blocks.0.attn.q"].shape == (1, 2, 3, 8)  # also before the file is whole
        MODEL.next_logits(TOKENS[:, 3:4], cache)
        MODEL.next_logits(TOKENS[:, 4:], cache)
    with record(MODEL) as expected:
        read_in_parts(TOKENS[:, :3], TOKENS[:, 3:4], TOKENS[:, 4:])
    loaded = Recording.load(path, MODEL.config)
    stored = load_file(path)
    for name in expected:
        assert seen[name].equal(expected[name])
        assert loaded[name].equal(expected[name])
        assert stored[name].equal(expected[name])
    assert loaded.tokens.equal(TOKENS)
    assert [file.name for file in path.parent.iterdir()] == ["seen.safetensors"]


@pytest.mark.parametrize("length", range(1, 9))
def test_tensors_in_a_file_begin_at_a_multiple_of_eight(length: int, tmp_path: Path) -> None:
    tensor_file.write(tmp_path / "x", ["n" * length], lambda name: torch.ones(3))
    data = (tmp_path / "x").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert load_file(tmp_path / "x")["n" * length].tolist() == [1, 1, 1]


def test_a_file_of_a_padded_batch_in_half_precision(tmp_path: Path) -> None:
    model = tiny_gpt2().bfloat16()
    seen = record_text(model, [TEXT, OTHER], to=tmp_path / "x.safetensors")
    loaded = Recording.load(tmp_path / "x.safetensors", model.config)
    assert loaded.row(1)["logits"].equal(seen.row(1)["logits"])
    assert loaded["logits"].dtype == torch.bfloat16


def test_an_error_leaves_an_older_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "seen.safetensors"
    record_text(MODEL, TEXT, "logits", to=path)
    before = path.read_bytes()

    def interrupted(value: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        record(MODEL, "logits", to=path),
        edit(MODEL, "logits", interrupted),
    ):
        MODEL(TOKENS)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_another_file_is_no_recording(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no recording"):
        Recording.load(tmp_path / "model.safetensors", MODEL.config)


# How it shows itself


def test_a_file_that_is_damaged_or_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    record_text(MODEL, TEXT, "blocks.*.attn.z", to=path)
    with pytest.raises(
        ValueError, match=r"is the recording of another model: this one has no blocks.1.attn.z"
    ):
        Recording.load(path, tiny_gpt2(n_layer=1).config)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:50], whole[:-1], b"\xff" * 8 + whole[8:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no safetensors file"):
            Recording.load(path, MODEL.config)


def test_a_recording_shows_what_it_holds() -> None:
    seen = record_text(MODEL, [TEXT, OTHER], "logits", "blocks.0.attn.z")
    assert repr(seen) == "Recording(2 points, 2 x 7 tokens)"
    assert "<td>blocks.0.attn.z</td><td>2 × 2 × 7 × 8</td><td>1</td>" in seen._repr_html_()
    with pytest.raises(IndexError, match="there is no row 2: the recording has 2 texts"):
        seen.row(2)
    with pytest.raises(ValueError, match="cannot be split into rows"):
        record_text(MODEL, TEXT, "logits", take=lambda value: value.sum(-1)).row(0)


def test_reductions_of_several_passes_are_read_one_by_one() -> None:
    with record(MODEL, "blocks.0.attn.pattern", take=lambda pattern: pattern.amax()) as seen:
        read_in_parts(TOKENS[:, :3], TOKENS[:, 3:])
    assert len(seen.steps("blocks.0.attn.pattern")) == 2
    with pytest.raises(ValueError, match=r"reduced by take= in 2 passes"):
        seen["blocks.0.attn.pattern"]


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_quantised_weights_are_recorded_at_every_point_and_edited(kind: Any) -> None:
    model, tokenizer = minigpt.load(quantize=kind)
    tokens = tokenizer.encode("Once upon a time")
    with torch.no_grad():
        plain = model(torch.tensor([tokens]))
    seen = record_text(model, tokens)
    assert list(seen) == all_points(model.config)
    assert seen["logits"].equal(plain)
    for layer in range(model.config.n_layer):
        at = f"blocks.{layer}."
        close(seen[at + "attn.pattern"] @ seen[at + "attn.v"], seen[at + "attn.z"])
        assert seen[at + "resid_post"].equal(seen[at + "resid_mid"] + seen[at + "mlp.out"])
    for analysis in (
        lambda: integrated_gradients(model, tokens, 7),
        lambda: fit_tuned_lens(model, [torch.tensor([tokens])]),
        lambda: record_text(model, tokens, grad=True),
    ):
        with pytest.raises(
            ValueError, match=rf"are quantized \({kind}\) .*: load the model without quantize=$"
        ):
            analysis()
    with edit(model, "blocks.*.attn.z", torch.zeros_like):
        assert not record_text(model, tokens, "logits")["logits"].allclose(plain, atol=0.1)
