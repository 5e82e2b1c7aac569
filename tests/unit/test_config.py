"""Every field that changes the mathematics is honoured or refused by name."""

import json

import pytest

from minigpt import GPT2, GPT2Config
from minigpt.config import PUBLISHED

PARAMETERS = {
    "distilgpt2": 81_912_576,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes_have_the_published_number_of_parameters(name):
    import torch

    with torch.device("meta"):
        model = GPT2(PUBLISHED[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_what_is_left_out_has_gpt2_s_defaults():
    assert GPT2Config.from_dict({"model_type": "gpt2", "task_specific_params": {"x": 1}}) == GPT2Config()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "gpt_neo"}, "model_type='gpt_neo' is not supported: minigpt reads gpt2 models only"),
        ({"n_embd": 8}, "names no model_type and lacks n_layer, n_head"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ({"model_type": "gpt2", "pruned_heads": {"0": [1]}}, r"pruned_heads=\{'0': \[1\]\} is not supported"),
        ({"model_type": "gpt2", "quantization_config": {"bits": 8}}, "quantization_config=.* is not supported"),
        ({"model_type": "gpt2", "activation_function": "mish"}, "'mish' is not supported; there are gelu_new, gelu"),
        ({"model_type": "gpt2", "n_head": 5}, "n_embd=768 does not split over n_head=5"),
        ({"model_type": "gpt2", "n_layer": 0}, "n_layer must be a whole number of at least 1, got 0"),
        ({"model_type": "gpt2", "n_inner": -1}, "n_inner must be a whole number of at least 1, got -1"),
        ({"model_type": "gpt2", "vocab_size": "many"}, "vocab_size must be a whole number of at least 1, got 'many'"),
        ({"model_type": "gpt2", "attn_pdrop": 1.0}, "attn_pdrop must be at least 0 and below 1, got 1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config.from_dict(values)


@pytest.mark.parametrize(
    "values", [{"add_cross_attention": False}, {"pruned_heads": {}}, {"pruned_heads": None}]
)
def test_harmless_values_pass(values):
    assert GPT2Config.from_dict({"model_type": "gpt2", **values}) == GPT2Config()


def test_two_names_of_one_number_must_agree():
    values = {"model_type": "gpt2", "n_embd": 64, "n_head": 4}
    assert GPT2Config.from_dict({**values, "hidden_size": 64}).n_embd == 64
    with pytest.raises(ValueError, match="hidden_size=32 and n_embd=64 contradict each other"):
        GPT2Config.from_dict({**values, "hidden_size": 32})


def test_every_activation_has_its_function():
    from minigpt.config import ACTIVATIONS
    from minigpt.model import ACTIVATION_FUNCTIONS

    assert set(ACTIVATIONS) == set(ACTIVATION_FUNCTIONS)


def test_an_early_config_without_a_model_type_is_read_and_says_so():
    with pytest.warns(UserWarning, match="names no model_type; reading it as gpt2"):
        assert GPT2Config.from_dict({"n_embd": 768, "n_layer": 6, "n_head": 12}) == PUBLISHED["distilgpt2"]


@pytest.mark.parametrize("ends", [None, 5, (5, 7)])
def test_saved_is_loaded(tmp_path, ends):
    config = GPT2Config(n_layer=2, n_inner=100, activation_function="relu", eos_token_id=ends)
    config.save(tmp_path, "float32")
    assert GPT2Config.load(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[1]", r"must hold an object, got \[1\]")]
)
def test_a_broken_file_is_named(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json {message}"):
        GPT2Config.load(tmp_path)


def test_a_config_json_names_its_directory_in_the_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=f"{tmp_path.name}: model_type='bert'"):
        GPT2Config.load(tmp_path)


def test_scores_are_scaled_as_the_flags_say():
    assert GPT2Config().attention_scale(3) == 64**-0.5
    assert GPT2Config(scale_attn_weights=False).attention_scale(3) == 1
    assert GPT2Config(scale_attn_by_inverse_layer_idx=True).attention_scale(3) == 64**-0.5 / 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": [[1]]}, r"eos_token_id must be an id or a list of ids, got \(\[1\],\)"),
        ({"eos_token_id": {"a": 1}}, r"eos_token_id must be an id or a list of ids, got \{'a': 1\}"),
        ({"attn_pdrop": 10**400}, "attn_pdrop must be at least 0 and below 1, got 10000"),
        ({"vocab_size": 10**18}, "vocab_size must be at most 2,147,483,647, got 1000000000000000000"),
        ({"n_layer": 10**6}, "n_layer must be at most 10,000, got 1000000"),
        ({"n_embd": 12 * 10**6}, "make 20,736,617,.* parameters; at most 10,000,000,000,000 are read"),
        ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon must be a number of at least 0, got 'x'"),
        ({"attn_pdrop": "0.1"}, "attn_pdrop must be at least 0 and below 1, got '0.1'"),
        ({"eos_token_id": "abc"}, "eos_token_id must be an id or a list of ids, got 'abc'"),
        ({"eos_token_id": [1, "a"]}, r"eos_token_id must be an id or a list of ids, got \(1, 'a'\)"),
        ({"bos_token_id": 1.5}, "bos_token_id must be an id, got 1.5"),
        ({"scale_attn_weights": "no"}, "scale_attn_weights must be true or false, got 'no'"),
    ],
)
def test_values_of_another_type_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config.from_dict({"model_type": "gpt2", **values})
