"""Muon: which tensors it takes, that its steps are those of a short oracle, and what is made orthogonal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from minigpt import GPT2, GPT2Config
from minigpt.training import lora
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.distributed import Processes
from minigpt.training.muon import BlockMuon, block_matrices
from minigpt.training.optimiser import muon_and_adamw, set_learning_rate, state_by_name, trainable

CONFIG = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
LR, DECAY, ADAMW_LR, BETA2 = 0.02, 0.1, 0.01, 0.95


def new_model(tied: bool = True) -> GPT2:
    torch.manual_seed(0)
    config = GPT2Config(**{**vars(CONFIG), "tie_word_embeddings": tied})
    return GPT2(config)


def random_gradients(model: GPT2, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in trainable(model):
        p.grad = torch.randn(p.shape, generator=generator)


# ------------------------------------------------------------------------------ who takes what

MATRICES = {
    f"blocks.{i}.{name}.weight" for i in range(2) for name in ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_tensor_belongs_to_one_optimiser(tied: bool) -> None:
    model = new_model(tied)
    muon, adamw = muon_and_adamw(model, LR, DECAY, ADAMW_LR, BETA2)
    assert isinstance(muon, BlockMuon)
    assert muon.matrices.keys() == MATRICES
    by_adamw = [id(p) for group in adamw.param_groups for p in group["params"]]
    assert len(by_adamw) == len({*by_adamw})
    named = dict(model.named_parameters())
    assert {name for name, p in named.items() if id(p) in by_adamw} == named.keys() - MATRICES
    if not tied:
        assert id(named["head.weight"]) in by_adamw


def test_the_parts_are_the_models_own_memory() -> None:
    model = new_model()
    muon = BlockMuon(block_matrices(model), LR, DECAY)
    for name, parts in muon.parts.items():
        assert len(parts) == (3 if "qkv" in name else 1)
        torch.testing.assert_close(torch.cat(list(parts), dim=1).detach(), muon.matrices[name].detach())
        assert parts[0].data_ptr() == muon.matrices[name].data_ptr()


def test_each_has_its_own_learning_rate() -> None:
    optimisers = muon_and_adamw(new_model(), LR, DECAY, ADAMW_LR, BETA2)
    set_learning_rate(optimisers, 0.25)
    rates = [{group["lr"] for group in optimiser.param_groups} for optimiser in optimisers]
    assert rates == [{LR / 4}, {ADAMW_LR / 4}]


def test_of_an_adapter_both_matrices_are_muons_and_nothing_is_left() -> None:
    model = new_model()
    lora.attach(model, 2)
    (muon,) = muon_and_adamw(model, LR, DECAY, ADAMW_LR, BETA2)
    assert isinstance(muon, BlockMuon)
    assert all(name.endswith(("lora_a", "lora_b")) for name in muon.matrices)
    assert len(muon.matrices) == len(list(trainable(model)))


# ------------------------------------------------------------------------------ its steps


def orthogonal(g: Tensor) -> Tensor:
    """Jordan's five steps of Newton and Schulz, in bfloat16, wide side last."""
    x = (g if g.size(0) <= g.size(1) else g.T).bfloat16()
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x if g.size(0) <= g.size(1) else x.T).float()


def test_steps_are_those_of_a_ten_line_oracle() -> None:
    model = new_model()
    muon, _ = muon_and_adamw(model, LR, DECAY, ADAMW_LR, BETA2)
    pieces = {name: 3 if "qkv" in name else 1 for name in MATRICES}
    expected = {name: p.detach().clone() for name, p in block_matrices(model).items()}
    momentum = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(3):
        random_gradients(model, step)
        for name, p in block_matrices(model).items():
            assert p.grad is not None
            momentum[name] = 0.95 * momentum[name] + 0.05 * p.grad
            ahead = 0.95 * momentum[name] + 0.05 * p.grad  # Nesterov's
            update = torch.cat([orthogonal(part) for part in ahead.chunk(pieces[name], dim=1)], dim=1)
            longer = max(p.size(0), p.size(1) // pieces[name])
            expected[name] = expected[name] * (1 - LR * DECAY) - LR * 0.2 * longer**0.5 * update
        muon.step()
    for name, p in block_matrices(model).items():
        # bfloat16 keeps 8 bits, and torch rounds at other places than the oracle
        torch.testing.assert_close(p.detach(), expected[name], rtol=0, atol=0.04 * LR * 3, msg=name)


def test_steps_are_those_of_torch() -> None:
    """Which takes one matrix after the other; tall, wide and square ones, and some of the same shape."""
    shapes = {"square": (8, 8), "wide": (8, 32), "tall": (32, 8), "wide, too": (8, 32)}
    torch.manual_seed(0)
    ours = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    theirs = {name: torch.nn.Parameter(p.detach().clone()) for name, p in ours.items()}
    muon = BlockMuon(ours, LR, DECAY)
    reference = torch.optim.Muon(theirs.values(), LR, DECAY, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for name in shapes:
            theirs[name].grad = torch.randn(shapes[name])
            ours[name].grad = theirs[name].grad.clone()  # type: ignore[union-attr]
        muon.step()
        reference.step()
    for name in shapes:
        # a batch of products may be rounded at other places: a bit of bfloat16, in one of some hundred matrices
        torch.testing.assert_close(
            ours[name].detach(), theirs[name].detach(), rtol=0, atol=0.01 * LR, msg=name
        )


def test_queries_keys_and_values_are_each_made_orthogonal() -> None:
    """Although the gradient of the values is a thousand times that of the queries."""
    model = new_model()
    muon = BlockMuon(block_matrices(model), LR, weight_decay=0.0)
    random_gradients(model, 0)
    qkv = model.blocks[0].attn.qkv.weight
    assert qkv.grad is not None
    qkv.grad.view(16, 3, 16)[:, 0] *= 1e-3
    before = qkv.detach().clone()
    muon.step()
    for update in ((before - qkv.detach()) / (LR * 0.2 * 4)).chunk(3, dim=1):
        singular = torch.linalg.svdvals(update)
        assert 0.6 < singular.mean() < singular.max() < 1.4


def test_the_way_round_in_which_a_matrix_is_kept_changes_nothing() -> None:
    torch.manual_seed(0)
    wide = torch.nn.Parameter(torch.randn(8, 32))
    tall = torch.nn.Parameter(wide.detach().T.clone())
    muon = BlockMuon({"wide": wide, "tall": tall}, LR, DECAY)
    wide.grad = torch.randn(8, 32)
    tall.grad = wide.grad.T.clone()
    muon.step()
    torch.testing.assert_close(wide.detach(), tall.detach().T, rtol=0, atol=1e-3)


def test_a_checkpoint_of_torchs_own_is_gone_on_with(tmp_path: Path) -> None:
    """By which runs were trained until the matrices of one shape were taken together; it had one group for all."""
    model, successor = new_model(), new_model()
    before = BlockMuon(block_matrices(model), LR, DECAY)  # for its parts
    parts = {f"{name}.{i}": part for name, some in before.parts.items() for i, part in enumerate(some)}
    torchs = torch.optim.Muon(parts.values(), LR, DECAY, adjust_lr_fn="match_rms_adamw")

    def step(seed: int) -> None:
        random_gradients(model, seed)
        for name, some in before.parts.items():
            for part, grad in zip(some, before.matrices[name].grad.chunk(len(some), dim=1), strict=True):  # type: ignore[union-attr]
                part.grad = grad
        torchs.step()

    step(0)
    checkpoints = Checkpoints(tmp_path, Processes())
    remembered = {name: torchs.state[part] for name, part in parts.items()}
    checkpoints.save(1, {"model": block_matrices(model), "optimiser": remembered}, {})
    ours = BlockMuon(block_matrices(successor), LR, DECAY)
    state = {"model": block_matrices(successor), "optimiser": ours.state_by_name()}
    checkpoints.load(tmp_path / "step-00000001", state)
    step(1)
    random_gradients(successor, 1)
    ours.step()
    for name, matrix in block_matrices(successor).items():
        expected = block_matrices(model)[name].detach()
        torch.testing.assert_close(matrix.detach(), expected, rtol=0, atol=0.01 * LR, msg=name)


def test_no_gradient_is_kept_after_a_step() -> None:
    model = new_model()
    muon = BlockMuon(block_matrices(model), LR, DECAY)
    random_gradients(model, 0)
    muon.step()
    model.zero_grad()
    assert all(part.grad is None for parts in muon.parts.values() for part in parts)
    assert all(p.grad is None for p in model.parameters())


def test_its_state_has_a_name_for_every_part() -> None:
    model = new_model()
    named = state_by_name(model, muon_and_adamw(model, LR, DECAY, ADAMW_LR, BETA2))
    parts = {f"{name}.{i}" for name in MATRICES for i in range(3 if "qkv" in name else 1)}
    assert named.keys() == parts | (dict(model.named_parameters()).keys() - MATRICES)
    assert {key for name in parts for key in named[name]} == {"momentum_buffer"}
