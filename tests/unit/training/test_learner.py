"""One training step: batches, sums and memory tricks change nothing, and it depends on its number alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from learning import close, learner, new_model, numbers, weights

from minigpt.data.windows import Windows
from minigpt.training.distributed import Processes
from minigpt.training.learner import MAX_GRAD_NORM, Learner
from minigpt.training.settings import Settings


def test_four_batches_of_two_are_one_of_eight() -> None:
    # Muon rounds to bfloat16, and another order of sums may fall to the other side
    whole, parts = (
        learner(optimizer="adamw", **how) for how in ({"batch_size": 8}, {"batch_size": 2, "accumulate": 4})
    )
    for step in range(3):
        (loss, norm), (same_loss, same_norm) = whole.step(step), parts.step(step)
        torch.testing.assert_close(loss, same_loss)
        torch.testing.assert_close(norm, same_norm)
    close(weights(whole), weights(parts), 1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_targets() -> None:
    one = learner(batch_size=4, accumulate=2)
    rows = one.windows.rows(range(8, 16))  # those of the second step
    logits = one.model(rows[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    expected.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in one.model.parameters()))
    one.model.zero_grad()
    loss, found_norm = one.step(1)
    torch.testing.assert_close(loss, expected.detach())
    assert found_norm.item() == pytest.approx(norm, rel=1e-5)


def test_a_long_gradient_is_cut_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner(lr=0.0)
    norms = []

    def look(*_: object) -> None:
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in one.model.parameters())))

    with torch.no_grad():
        one.model.final_norm.weight.mul_(50)
    one.optimisers[0].register_step_pre_hook(look)
    _, norm = one.step(0)
    assert norm.item() > MAX_GRAD_NORM
    assert norms == [pytest.approx(MAX_GRAD_NORM, rel=1e-3)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_layers_computed_twice_are_the_same_to_the_bit(dropout: float) -> None:
    once, twice = learner(dropout=dropout), learner(dropout=dropout, gradient_checkpointing=True)
    for step in range(3):
        assert once.step(step) == twice.step(step)
    assert all(
        torch.equal(p, q) for p, q in zip(weights(once).values(), weights(twice).values(), strict=True)
    )


def test_a_step_depends_on_nothing_but_its_number() -> None:
    """What was computed before, or drawn, changes no bit: this is why a run can go on from its weights alone."""
    one, other = learner(dropout=0.2), learner(dropout=0.2)
    for step in range(4):
        torch.rand(step + 1)
        other.windows.rows(range(step * 100, step * 100 + 1))
        assert one.step(step) == other.step(step)
    assert one_loss(0) == one_loss(0) != one_loss(1)
    assert learner(dropout=0.2).step(0) != learner(dropout=0.2).step(1)


def one_loss(seed: int) -> float:
    return learner(dropout=0.2, seed=seed).step(0)[0].item()


def test_two_steps_drop_other_numbers() -> None:
    """With one window that is all the text, only dropout tells one step from the next."""
    how = {"dropout": 0.5, "lr": 0.0, "batch_size": 1}
    one = learner(**how)
    one.windows = Windows(numbers(17), 16, 0)
    rows = one.windows.rows(range(1))
    one.windows.rows = lambda _: rows
    assert len({one.step(step)[0].item() for step in range(5)}) == 5


def test_a_state_is_shared_and_enough_to_go_on() -> None:
    one, other = learner(dropout=0.1), learner(dropout=0.1)
    one.step(0)
    one.step(1)
    for part, values in one.state().items():
        for name, value in values.items():
            if part == "model":
                other.state()[part][name].copy_(value)
            else:
                for key in value:
                    other.state()[part][name][key].copy_(value[key])
    assert one.step(2) == other.step(2)
    assert all(torch.equal(p, q) for p, q in zip(weights(one).values(), weights(other).values(), strict=True))


def test_half_precision_is_for_products_alone() -> None:
    settings = Settings(lr=0.01, steps=10, batch_size=8).with_defaults(16)
    tokens = numbers()
    half = Learner(new_model(), Windows(tokens, 16, 0), settings, "bfloat16", Processes())
    whole = learner(warmup=None)
    (loss, _), (whole_loss, _) = half.step(0), whole.step(0)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss - whole_loss) < 0.05
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
