"""What decays, and whose state is kept: AdamW by hand."""

from __future__ import annotations

import torch
from learning import close, new_model

from minigpt.training import lora, optimiser


def test_only_matrices_decay() -> None:
    model = new_model(tie_word_embeddings=False)
    adamw = optimiser.adamw(optimiser.trainable(model), 0.1, 0.3, 0.9)
    decay = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert len(decay) == len(found)
    for name, value in found.items():
        assert value == (0.0 if name.endswith("bias") or "norm" in name else 0.3), name


def test_what_is_frozen_is_not_the_optimisers_business() -> None:
    model = new_model()
    lora.attach(model, 2)
    adamw = optimiser.adamw(optimiser.trainable(model), 0.1, 0.3, 0.9)
    named = optimiser.state_by_name(model, [adamw])
    assert named
    assert all(name.endswith(("lora_a", "lora_b")) for name in named)
    assert {id(p) for g in adamw.param_groups for p in g["params"]} == {
        id(p) for p in optimiser.trainable(model)
    }


def test_steps_are_those_of_the_paper() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, by hand in float64."""
    lr, decay, beta1, beta2, eps = 0.05, 0.1, 0.9, 0.95, 1e-8
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    adamw = optimiser.adamw(model.parameters(), lr, decay, beta2)
    expected = {name: p.detach().double() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in expected.items()}
    v = {name: torch.zeros_like(p) for name, p in expected.items()}
    for t in range(1, 6):
        optimiser.set_learning_rate([adamw], 1 / t)
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            g = p.grad.double()
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g * g
            update = (m[name] / (1 - beta1**t)) / ((v[name] / (1 - beta2**t)).sqrt() + eps)
            update += expected[name] * (decay if name == "weight" else 0.0)
            expected[name] = expected[name] - lr / t * update
        adamw.step()
    close({name: p.detach().double() for name, p in model.named_parameters()}, expected)
