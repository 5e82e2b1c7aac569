"""Ours = transformers: the same logits from the same files, whatever the config asks for."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from reference import pair, reference
from torch import Tensor

from minigpt.config import ACTIVATIONS

TOLERANCE = 1e-4
OWN_ERROR = 2e-5  # what the reference itself may be off by in float32: else the tolerance would prove nothing
FLAGS = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")


def tokens(rows: int, length: int = 20) -> Tensor:
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(ours, theirs, batch: Tensor, pads: list[int]) -> float:
    """The largest difference of logits over all tokens that are not padding."""
    pad = torch.tensor(pads)
    places = torch.arange(batch.size(1)) - pad[:, None]
    is_token = places >= 0
    how = {"attention_mask": is_token.long(), "position_ids": places.clamp_min(0)}
    expected = theirs(batch, **how).logits
    assert (expected - in_double(theirs, batch, how))[is_token].abs().max() < OWN_ERROR
    return float((ours(batch, pad=pad) - expected)[is_token].abs().max())


def in_double(theirs, batch: Tensor, how: dict[str, Tensor]) -> Tensor:
    double = copy.deepcopy(theirs).double()
    for block in double.transformer.h:
        block.attn.reorder_and_upcast_attn = False  # the same mathematics, but it insists on float32
    return double(batch, **how).logits


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_for_every_activation_tied_and_untied(tmp_path, activation, tied):
    ours, theirs = pair(tmp_path, activation_function=activation, tie_word_embeddings=tied)
    for pad in (0, 1, 7):
        assert difference(ours, theirs, tokens(1), [pad]) <= TOLERANCE
    assert difference(ours, theirs, tokens(4), [0, 1, 7, 0]) <= TOLERANCE


@pytest.mark.parametrize("values", list(itertools.product([False, True], repeat=3)))
def test_logits_for_every_combination_of_scale_flags(tmp_path, values):
    ours, theirs = pair(tmp_path, **dict(zip(FLAGS, values, strict=True)))
    assert difference(ours, theirs, tokens(4), [0, 1, 7, 0]) <= TOLERANCE


@pytest.mark.parametrize(
    "config", [{"n_inner": 50}, {"layer_norm_epsilon": 0.1}, {"n_head": 1}, {"n_head": 32}]
)
def test_logits_for_other_shapes(tmp_path, config):
    ours, theirs = pair(tmp_path, **config)
    assert difference(ours, theirs, tokens(2), [0, 3]) <= TOLERANCE


def test_logits_at_the_very_last_position(tmp_path):
    ours, theirs = pair(tmp_path)
    assert difference(ours, theirs, tokens(1, 48), [0]) <= TOLERANCE


def test_this_suite_would_notice_exact_gelu(tmp_path):
    ours, theirs = pair(tmp_path)
    for block in ours.blocks:
        block.mlp.activation = F.gelu
    assert difference(ours, theirs, tokens(4), [0, 1, 7, 0]) > TOLERANCE


def test_every_block_gives_the_stream_that_the_reference_has_after_it(tmp_path):
    ours, theirs = pair(tmp_path)
    batch, stream = tokens(2), []
    for block in ours.blocks:
        block.register_forward_hook(lambda module, inputs, output: stream.append(output.detach()))
    with torch.no_grad():
        ours(batch)
        expected = theirs(batch, output_hidden_states=True).hidden_states
    for mine, reference_stream in zip(stream[:-1], expected[1:-1], strict=True):
        torch.testing.assert_close(mine, reference_stream, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_padded_row_gives_the_logits_it_gives_alone(tmp_path):
    ours, _ = pair(tmp_path)
    batch = tokens(3)
    together = ours(batch, pad=torch.tensor([0, 1, 7]))
    for row, pad in enumerate([0, 1, 7]):
        torch.testing.assert_close(
            together[row, pad:], ours(batch[row : row + 1, pad:])[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_padding_is_finite_in_every_dtype(tmp_path, dtype):
    ours, _ = pair(tmp_path)
    assert ours.to(dtype)(tokens(2), pad=torch.tensor([0, 19])).isfinite().all()


def test_gradients_are_those_of_the_reference(tmp_path):
    ours, theirs = pair(tmp_path)
    batch = tokens(2)
    F.cross_entropy(ours(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
    theirs(batch, labels=batch).loss.backward()
    stored = dict(theirs.transformer.named_parameters())
    pairs = [
        (ours.token_embedding.weight.grad, stored["wte.weight"].grad),  # both uses of the tied matrix
        (ours.position_embedding.weight.grad, stored["wpe.weight"].grad),
        (ours.blocks[0].attn.qkv.weight.grad, stored["h.0.attn.c_attn.weight"].grad),
        (ours.blocks[2].mlp.down.bias.grad, stored["h.2.mlp.c_proj.bias"].grad),
    ]
    for mine, expected in pairs:
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)


def test_fresh_weights_have_the_reference_s_spread():
    from transformers import GPT2Config as Theirs
    from transformers import GPT2LMHeadModel

    from minigpt import GPT2, GPT2Config

    shape = {"vocab_size": 500, "n_positions": 64, "n_embd": 128, "n_layer": 8, "n_head": 4}
    torch.manual_seed(0)
    ours, theirs = GPT2(GPT2Config(**shape)), GPT2LMHeadModel(Theirs(**shape))
    for mine, stored in [
        (ours.token_embedding.weight, theirs.transformer.wte.weight),
        (ours.position_embedding.weight, theirs.transformer.wpe.weight),
        (ours.blocks[3].attn.qkv.weight, theirs.transformer.h[3].attn.c_attn.weight),
        (ours.blocks[3].attn.out.weight, theirs.transformer.h[3].attn.c_proj.weight),
        (ours.blocks[3].mlp.up.weight, theirs.transformer.h[3].mlp.c_fc.weight),
        (ours.blocks[3].mlp.down.weight, theirs.transformer.h[3].mlp.c_proj.weight),
    ]:
        assert mine.std().item() == pytest.approx(stored.std().item(), rel=0.05)
    assert all(not p.any() for name, p in ours.named_parameters() if name.endswith("bias"))
    assert all((p == 1).all() for name, p in ours.named_parameters() if name.endswith("norm.weight"))


def test_reference_draws_norms_and_biases_too():
    """A helper of the tests that left them at 1 and 0 would hide a swap."""
    model = reference()
    assert model.transformer.h[0].ln_1.weight.std() > 0.1
    assert model.transformer.h[0].attn.c_attn.bias.std() > 0.1
