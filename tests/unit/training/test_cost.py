"""The cost model, against what a pass keeps, counted tensor by tensor, and against parameters as torch counts them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from minigpt import GPT2, GPT2Config
from minigpt.training.cost import Plan, memory, seconds
from minigpt.training.distillation import Distillation
from minigpt.training.hardware import autocast
from minigpt.training.validation import sum_loss

CONFIG = GPT2Config(
    n_layer=2, n_head=4, n_embd=64, n_positions=32, vocab_size=300, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
)


def kept_bytes(plan: Plan) -> int:
    """What a forward pass keeps for its backward pass beside the parameters, each piece of memory once."""
    torch.manual_seed(0)
    model = GPT2(plan.config)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors, too: memory that is free again would be counted as another's

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    rows = torch.randint(plan.config.vocab_size, (plan.rows, plan.config.n_positions + 1))
    precision = partial(autocast, torch.device("cpu"), plan.dtype)
    teachers = [GPT2(teacher) for teacher in plan.teachers]
    targets = Distillation(teachers, 0.5, precision)(rows) if teachers else rows[:, 1:]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with precision():
            logits = model(rows[:, :-1])
        sum_loss(logits, targets)
    return sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in parameters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [{"n_layer": 1}, {"n_layer": 3}, {"n_inner": 100}])
def test_what_a_pass_keeps(dtype: str, shape: dict[str, int]) -> None:
    plan = Plan(replace(CONFIG, **shape), rows=16, dtype=dtype)
    needed = memory(plan)
    # their log-softmax; the rest is there for a moment only
    logits = 4 * plan.config.vocab_size * plan.tokens
    ids = 2 * 8 * plan.tokens + 8 * 16 + 8 * 32  # inputs and targets, which the model leaves out
    assert kept_bytes(plan) == pytest.approx(needed.activations + needed.copies + logits + ids, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_teachers_are_kept_whole_and_what_they_teach_once(dtype: str) -> None:
    plan = Plan(CONFIG, rows=16, dtype=dtype)
    taught = replace(plan, teachers=(CONFIG, replace(CONFIG, n_layer=3)))
    weights = 4 * sum(p.numel() for teacher in taught.teachers for p in GPT2(teacher).parameters())
    more = kept_bytes(taught) - kept_bytes(plan) + 8 * plan.tokens  # in place of the ids to predict
    assert memory(taught).total - memory(plan).total == pytest.approx(weights + more, rel=1e-3)


def test_a_teacher_of_the_same_size_makes_a_step_a_third_longer() -> None:
    alone, taught = (seconds(Plan(CONFIG, 4, teachers=teachers), 1e9, 1e9) for teachers in ((), (CONFIG,)))
    assert taught.computing == pytest.approx(4 / 3 * alone.computing)


@pytest.mark.parametrize("n_inner", [None, 100])
def test_parameters_are_those_of_the_model(n_inner: int | None) -> None:
    config = replace(CONFIG, n_inner=n_inner)
    plan, model = Plan(config, rows=1), GPT2(config)
    assert config.block_parameters == sum(p.numel() for p in model.blocks[0].parameters())
    inside = sum(p.numel() for p in model.blocks.parameters())
    assert plan.other_parameters == sum(p.numel() for p in model.parameters()) - inside


def test_shards_divide_the_state_and_nothing_else() -> None:
    one, four = (memory(Plan(CONFIG, rows=4, processes=n)) for n in (1, 4))
    assert one.state == 4 * four.state == 16 * CONFIG.n_parameters
    assert (one.copies, one.activations, one.logits) == (four.copies, four.activations, four.logits)
    assert one.gathered == 0 < four.gathered


def test_recomputing_keeps_one_block_and_takes_a_third_longer() -> None:
    deep = replace(CONFIG, n_layer=12)
    plan, less = (Plan(deep, rows=4, recompute=recompute) for recompute in (False, True))
    assert memory(less).activations < memory(plan).activations / 4
    assert memory(less).copies < memory(plan).copies
    times = [seconds(each, 1e9, 1e9) for each in (plan, less)]
    assert times[1].computing == pytest.approx(4 / 3 * times[0].computing)


def test_a_step_of_twice_the_tokens_takes_twice_the_time_and_sums_gradients_once() -> None:
    once, twice = (seconds(Plan(CONFIG, 4, accumulate=n, processes=2), 1e9, 1e3) for n in (1, 2))
    assert twice.computing == pytest.approx(2 * once.computing)
    assert once.communicating == pytest.approx(3 * 4 * CONFIG.n_parameters / 2 / 1e3)
    assert twice.communicating == pytest.approx(5 / 3 * once.communicating)
    assert once.total == max(once)
