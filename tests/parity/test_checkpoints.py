"""Every layout of GPT-2 files in the wild gives the reference's logits, and what we write, it reads."""

import json

import pytest
import torch
from reference import TINY, pair, reference
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from minigpt import GPT2

TOKENS = torch.arange(12)[None]


@torch.no_grad()
def same_logits(ours, theirs) -> bool:
    return bool((ours(TOKENS) - theirs(TOKENS).logits).abs().max() <= 1e-4)


@pytest.fixture
def saved(tmp_path):
    """A directory as transformers writes it, its tensors, and the model."""
    model = reference()
    model.save_pretrained(tmp_path)
    return tmp_path, load_file(tmp_path / "model.safetensors"), model


def rewrite(directory, tensors) -> None:
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "prefix",
    ["", "transformer.", "model.transformer.", "gpt.transformer.", "lm.model.", "_orig_mod.", "module.",
     "_orig_mod.transformer.", "module._orig_mod.transformer."],
)  # fmt: skip
def test_every_prefix_is_read(saved, prefix):
    directory, tensors, model = saved
    rewrite(directory, {prefix + name.removeprefix("transformer."): t for name, t in tensors.items()})
    assert same_logits(GPT2.from_pretrained(directory), model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.bool])
def test_stored_masks_are_left_out_in_any_dtype(saved, dtype):
    directory, tensors, model = saved
    for layer in range(3):
        tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48).tril().to(dtype)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    rewrite(directory, tensors)
    assert same_logits(GPT2.from_pretrained(directory), model)


def test_either_twin_of_the_tied_pair_serves_as_both(saved):
    directory, tensors, model = saved
    embedding = tensors.pop("transformer.wte.weight")
    rewrite(directory, {**tensors, "lm_head.weight": embedding})
    assert same_logits(GPT2.from_pretrained(directory), model)
    rewrite(directory, {**tensors, "lm_head.weight": embedding, "transformer.wte.weight": embedding})
    both = GPT2.from_pretrained(directory)
    assert same_logits(both, model)
    assert both.config.tie_word_embeddings
    rewrite(directory, tensors)
    with pytest.raises(ValueError, match=r"the weights lack transformer\.wte\.weight"):
        GPT2.from_pretrained(directory)


def test_twins_that_differ_are_loaded_untied_with_a_warning(saved):
    directory, tensors, _ = saved
    head = torch.randn(61, 32)
    rewrite(directory, {**tensors, "lm_head.weight": head})
    with pytest.warns(UserWarning, match="wte and lm_head differ; loading them untied"):
        ours = GPT2.from_pretrained(directory)
    assert torch.equal(ours.head.weight, head)
    assert not ours.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32_on_a_cpu(saved, dtype):
    directory, tensors, _ = saved
    rewrite(directory, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    theirs = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    ours = GPT2.from_pretrained(directory)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    assert same_logits(ours, theirs)
    assert {p.dtype for p in GPT2.from_pretrained(directory, dtype=dtype).parameters()} == {dtype}


def shard(directory, tensors) -> None:
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name].contiguous() for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def test_shards_are_read_by_their_index(saved):
    directory, tensors, model = saved
    shard(directory, tensors)
    assert same_logits(GPT2.from_pretrained(directory), model)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-00002-of-00002\.safetensors"):
        GPT2.from_pretrained(directory)


def test_other_heads_are_left_out_with_a_warning(saved):
    directory, tensors, model = saved
    rewrite(
        directory, {**tensors, "score.weight": torch.ones(2, 32), "v_head.summary.weight": torch.ones(1, 32)}
    )
    with pytest.warns(UserWarning, match=r"left out score\.weight, v_head\.summary\.weight"):
        ours = GPT2.from_pretrained(directory)
    assert same_logits(ours, model)


def test_unknown_missing_and_misshapen_tensors_are_named(saved):
    directory, tensors, _ = saved
    rewrite(directory, {**tensors, "transformer.h.0.crossattention.c_attn.weight": torch.ones(2)})
    with pytest.raises(ValueError, match=r"no place for transformer\.h\.0\.crossattention\.c_attn\.weight"):
        GPT2.from_pretrained(directory)
    rewrite(directory, {**tensors, "transformer.h.3.ln_1.weight": torch.ones(32)})
    with pytest.raises(ValueError, match=r"no place for transformer\.h\.3\.ln_1\.weight"):
        GPT2.from_pretrained(directory)
    rewrite(directory, {name: t for name, t in tensors.items() if "h.1.mlp.c_fc.bias" not in name})
    with pytest.raises(ValueError, match=r"lack transformer\.h\.1\.mlp\.c_fc\.bias"):
        GPT2.from_pretrained(directory)
    rewrite(directory, {**tensors, "transformer.wpe.weight": torch.ones(64, 32)})
    with pytest.raises(ValueError, match=r"wpe\.weight \(64, 32\) \(config\.json: \(48, 32\)\)"):
        GPT2.from_pretrained(directory)
    rewrite(directory, {**tensors, "transformer.wte.weight": torch.ones(61, 32, dtype=torch.int8)})
    with pytest.raises(ValueError, match=r"wte\.weight is stored as I8; F64, F32"):
        GPT2.from_pretrained(directory)
    rewrite(directory, {**tensors, "wte.weight": tensors["transformer.wte.weight"]})
    with pytest.raises(ValueError, match="are the same tensor of the model"):
        GPT2.from_pretrained(directory)


@pytest.mark.parametrize("damage", ["empty", "header", "short"])
def test_damaged_files_are_named(saved, damage):
    directory, _, _ = saved
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(
        {"empty": b"", "header": b"\xff" * 8 + whole[8:], "short": whole[: len(whole) // 2]}[damage]
    )
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or incomplete"):
        GPT2.from_pretrained(directory)


@pytest.mark.parametrize("tied", [True, False])
def test_what_we_write_transformers_reads_and_it_is_what_we_read(saved, tmp_path, tied):
    ours, theirs = pair(tmp_path / "in", tie_word_embeddings=tied, eos_token_id=[3, 5], bos_token_id=7)
    ours.save_pretrained(tmp_path / "out")
    read = GPT2LMHeadModel.from_pretrained(tmp_path / "out", attn_implementation="eager")
    with torch.no_grad():
        assert torch.equal(read(TOKENS).logits, theirs(TOKENS).logits)
    assert read.generation_config.eos_token_id == [3, 5]
    assert read.config.bos_token_id == 7
    assert read.dtype == torch.float32
    again = GPT2.from_pretrained(tmp_path / "out")
    assert again.config == ours.config
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_saved_names_and_values_are_those_that_transformers_saves(tmp_path):
    ours, _ = pair(tmp_path / "in")
    ours.save_pretrained(tmp_path / "out")
    mine, stored = (load_file(tmp_path / where / "model.safetensors") for where in ("out", "in"))
    assert mine.keys() == stored.keys()
    assert all(torch.equal(mine[name], stored[name]) for name in stored)


def test_end_tokens_come_from_the_generation_config_where_it_names_them(saved):
    directory, _, _ = saved
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": 1}))
    for text, expected in [
        ('{"temperature": 0.1}', {1}),
        ('{"eos_token_id": 2}', {2}),
        ('{"eos_token_id": [2, 3]}', {2, 3}),
        ('{"eos_token_id": null}', set()),
    ]:
        (directory / "generation_config.json").write_text(text)
        assert GPT2.from_pretrained(directory).config.end_tokens == expected


def test_a_sliced_or_aliased_config_is_read_as_transformers_reads_it(saved):
    directory, _, model = saved
    aliases = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
    config = {aliases.get(name, name): value for name, value in TINY.items()}
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2", **config}))
    assert same_logits(GPT2.from_pretrained(directory), model)
