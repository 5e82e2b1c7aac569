"""Distillation: its loss and gradient are those of the formula, from one teacher to many; who cannot teach is refused."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import bytes_alone, save, tiny
from learning import CONFIG, close, learner, new_model, weights
from torch import Tensor
from trainer import assert_same_run, contents, metrics, train, well, write_text
from trainer import flags as flags_of

from minigpt import GPT2, load
from minigpt.training import train as train_in_python
from minigpt.training.distillation import Distillation, load_teachers
from minigpt.training.initial_model import InitialModel
from minigpt.training.learner import next_tokens


def teacher(seed: int) -> GPT2:
    """A model whose probabilities differ from one token to the next."""
    torch.manual_seed(seed)
    model = GPT2(replace(CONFIG, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return model


def distillation(teachers: list[GPT2], weight: float = 0.5) -> Distillation:
    return Distillation(teachers, weight, nullcontext)


def gradients(model: GPT2) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def oracle(student: GPT2, teachers: list[GPT2], rows: Tensor, weight: float) -> Tensor:
    """The loss as it is defined, token by token, in float64; leaves its gradient in the student."""
    logits = student.double()(rows[:, :-1])
    probabilities = [torch.exp(t.double()(rows[:, :-1]).log_softmax(-1)).detach() for t in teachers]
    losses = []
    for row in range(len(rows)):
        for place, target in enumerate(rows[row, 1:]):
            log_probabilities = logits[row, place] - torch.logsumexp(logits[row, place], 0)
            expected = torch.stack([p[row, place] for p in probabilities]).mean(0)
            text, teaching = -log_probabilities[target], -(expected * log_probabilities).sum()
            losses.append((1 - weight) * text + weight * teaching)
    loss = torch.stack(losses).mean()
    torch.autograd.backward(loss)
    return loss.detach()


@pytest.mark.parametrize("n_teachers", [1, 2, 3])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_loss_and_gradient_are_those_of_the_formula(n_teachers: int, weight: float) -> None:
    one = learner(batch_size=4, targets=distillation([teacher(i) for i in range(1, n_teachers + 1)], weight))
    rows = one.windows.rows(range(4))
    loss = one._learn(rows)
    student = new_model().eval()
    expected = oracle(student, [teacher(i) for i in range(1, n_teachers + 1)], rows, weight)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    close({name: g.double() for name, g in gradients(one.model).items()}, gradients(student))


def test_two_batches_of_a_step_are_one_of_both() -> None:
    both = distillation([teacher(1), teacher(2)])
    whole, parts = (
        learner(optimizer="adamw", targets=both, **how)
        for how in ({"batch_size": 8}, {"batch_size": 4, "accumulate": 2})
    )
    for step in range(2):
        torch.testing.assert_close(whole.step(step), parts.step(step))
    close(weights(whole), weights(parts), 1e-5)


def test_two_teachers_are_the_mean_of_their_probabilities_not_of_their_logits() -> None:
    rows = torch.randint(257, (3, 17))
    both = distillation([teacher(1), teacher(2)], 1.0)(rows)
    apart = [distillation([teacher(seed)], 1.0)(rows) for seed in (1, 2)]
    torch.testing.assert_close(both, (apart[0] + apart[1]) / 2)
    assert both.dtype == torch.float32
    geometric = (apart[0].log() + apart[1].log()).softmax(-1)
    assert (both - geometric).abs().max() > 0.01


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0])
def test_targets_are_distributions_with_the_texts_share_on_the_next_token(weight: float) -> None:
    rows = torch.randint(257, (3, 17))
    targets = distillation([teacher(1)], weight)(rows)
    assert targets.shape == (3, 16, 257)
    torch.testing.assert_close(targets.sum(-1), torch.ones(3, 16))
    taught = weight * teacher(1)(rows[:, :-1]).softmax(-1)
    text = targets - taught
    torch.testing.assert_close(text.gather(-1, rows[:, 1:, None])[..., 0], torch.full((3, 16), 1 - weight))
    assert text.scatter(-1, rows[:, 1:, None], 0).abs().max() < 1e-6


def test_a_student_learns_nothing_from_itself() -> None:
    model = teacher(1)
    rows = torch.randint(257, (4, 17))
    alone, beside = (learner(teacher(1), targets=distillation([model], w)) for w in (1.0, 0.5))
    plain = learner(teacher(1))
    for one in (alone, beside, plain):
        one._learn(rows)
    largest = max(float(g.abs().max()) for g in gradients(plain.model).values())
    assert all(float(g.abs().max()) < 1e-6 * max(1, largest) for g in gradients(alone.model).values())
    halved = {name: g / 2 for name, g in gradients(plain.model).items()}
    close(gradients(beside.model), halved)


def test_hardly_any_weight_is_plain_training() -> None:
    plain, hardly = learner(), learner(targets=distillation([teacher(1)], 1e-12))
    for step in range(3):
        torch.testing.assert_close(plain.step(step), hardly.step(step), rtol=1e-6, atol=1e-6)
    close(weights(plain), weights(hardly), 1e-5)


def test_a_teacher_is_frozen_draws_nothing_and_is_in_no_checkpoint() -> None:
    torch.manual_seed(1)
    dropping = new_model(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    before = {name: weight.clone() for name, weight in dropping.state_dict().items()}
    recorded: list[bool] = []
    dropping.register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    one = learner(dropout=0.2, targets=distillation([dropping]))
    state = torch.get_rng_state()
    assert not one.targets(one.windows.rows(range(2))).requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    one.step(0)
    assert all(torch.equal(weight, before[name]) for name, weight in dropping.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in dropping.parameters())
    assert recorded == [False, False]
    assert one.state()["model"].keys() == learner().state()["model"].keys()
    assert one.state()["optimiser"].keys() == learner().state()["optimiser"].keys()


def test_teachers_compute_in_the_students_precision() -> None:
    seen: list[torch.dtype] = []
    model = teacher(1)
    model.register_forward_hook(lambda module, given, logits: seen.append(logits.dtype))
    targets = Distillation([model], 0.5, lambda: torch.autocast("cpu", torch.bfloat16))
    assert targets(torch.randint(257, (2, 9))).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_without_teachers_the_targets_are_the_next_tokens() -> None:
    rows = torch.tensor([[5, 6, 7]])
    assert next_tokens(rows).tolist() == [[6, 7]]
    assert learner().targets is next_tokens


# ------------------------------------------------------------------------------ who can teach


def student(**config: Any) -> InitialModel:
    return InitialModel(tiny(**config), bytes_alone())


def test_a_teacher_that_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path / "fits", tiny(n_layer=2))
    assert list(load_teachers([str(tmp_path / "fits")], student(), 32)) == [str(tmp_path / "fits")]
    save(tmp_path / "padded", tiny(vocab_size=300))
    with pytest.raises(
        ValueError, match="padded has a vocabulary of 300, the model to train one of 258: give a"
    ):
        load_teachers([str(tmp_path / "padded")], student(), 32)
    message = (
        "fits has a context length of 32, less than this run's 33: add --context 32, or give another teacher"
    )
    with pytest.raises(ValueError, match=message):
        load_teachers([str(tmp_path / "fits")], student(), 33)
    message = f"other tokenizer than this run, .*: begin with --tokenizer {tmp_path / 'fits'}, or give a teacher with"
    with pytest.raises(ValueError, match=message):
        load_teachers([str(tmp_path / "fits")], InitialModel(tiny(), load()[1]), 32)
    save(tmp_path / "int8", tiny(n_embd=32).eval().quantize("int8"))
    with pytest.raises(ValueError, match="int8 has int8 weights, which are for inference: use the original"):
        load_teachers([str(tmp_path / "int8")], student(), 32)
    with pytest.raises(OSError, match="does not exist"):
        load_teachers([str(tmp_path / "none" / "at" / "all")], student(), 32)


# ------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and two runs on it, of other seeds."""
    folder = tmp_path_factory.mktemp("taught")
    write_text(folder / "tales.txt")
    for seed in (1, 2):
        well(train(*flags(folder, f"teacher-{seed}", "--seed", seed, "--lr", 0.02)))
    return folder


def flags(folder: Path, name: str, *more: object) -> list[str]:
    return flags_of(folder / "tales.txt", folder / name, *more)


def taught(folder: Path) -> tuple[object, ...]:
    return "--teacher", folder / "teacher-1", "--teacher", folder / "teacher-2"


def test_a_run_with_teachers_says_so_and_its_model_stands_alone(folder: Path) -> None:
    lines = well(train(*flags(folder, "said", *taught(folder), "--teacher-weight", 0.25)))
    names = f"{folder / 'teacher-1'}, {folder / 'teacher-2'}"
    assert f"weight 0.25 on the mean probabilities of {names}" in lines
    well(train(*flags(folder, "plain")))
    assert contents(folder / "said").keys() == contents(folder / "plain").keys()
    flops, alone = (
        json.loads((folder / name / "run.json").read_text())["flops_per_token"] for name in ("said", "plain")
    )
    assert flops == alone + 2 * (alone // 3)  # of the teachers, of the same shape, the forward pass
    first, plain = metrics(folder / "said")[0], metrics(folder / "plain")[0]
    assert first["loss"] != plain["loss"]
    assert first["loss"] == pytest.approx(
        plain["loss"], rel=0.1
    )  # near ln 257, whatever a fresh model is asked


def test_a_run_with_teachers_is_resumed_to_the_bit_and_keeps_them(folder: Path) -> None:
    run = (
        *taught(folder),
        "--dropout",
        0.1,
        "--accumulate",
        2,
        "--lr",
        0.01,
        "--warmup",
        1,
        "--schedule",
        "wsd",
    )
    well(train(*flags(folder, "whole", *run, "--decay", 2)))
    well(train(*flags(folder, "resumed", *run, "--decay", 0, "--steps", 4, "--eval-every", 3)))
    well(train("--resume", "--out", folder / "resumed", "--steps", 6, "--decay", 2))
    whole, resumed = metrics(folder / "whole"), metrics(folder / "resumed")
    assert [line["loss"] for line in whole] == [line["loss"] for line in resumed]
    (weights, others) = (load(folder / name)[0].state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    result = train("--resume", "--out", folder / "resumed", "--teacher", folder / "teacher-1")
    assert result.code == 2
    assert f"--teacher {folder / 'teacher-1'}: this run began with {folder / 'teacher-1'}, " in result.mistake
    result = train("--resume", "--out", folder / "resumed", "--teacher-weight", 0.75)
    assert "--teacher-weight 0.75: this run began with 0.5, and keeps it" in result.mistake


def test_a_teacher_that_has_changed_or_is_gone_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    one = save(tmp_path / "one", tiny())
    given = flags(folder, "forsaken", "--teacher", one, "--tokenizer", one)
    well(train(*given))
    before = contents(folder / "forsaken")
    tiny(n_layer=2).save_pretrained(one)
    resume = ("--resume", "--out", folder / "forsaken", "--steps", 8)
    result = train(*resume)
    assert result.code == 2
    assert f"--teacher {one} has other weights than this run began with: put those back, or" in result.mistake
    one.rename(tmp_path / "elsewhere")
    result = train(*resume)
    assert result.code == 3
    assert f"--teacher: '{one}' does not exist" in result.mistake
    assert contents(folder / "forsaken") == before


def test_python_takes_one_path_or_several_and_makes_the_same_run(folder: Path) -> None:
    well(train(*flags(folder, "command", *taught(folder))))
    how: dict[str, Any] = {
        "n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16, "batch_size": 4, "tokenizer": "bytes", "steps": 6,
        "eval_every": 3, "checkpoint_every": 2, "dtype": "float32", "threads": 1, "log": lambda line: None,
        "data": folder / "tales.txt", "token_cache": folder / "tokens",
    }  # fmt: skip
    both = [folder / "teacher-1", str(folder / "teacher-2")]
    train_in_python(**how, out=folder / "python", teacher=both)
    assert_same_run(folder / "command", folder / "python")
    single = train_in_python(**how, out=folder / "single", teacher=folder / "teacher-1", teacher_weight=1)
    assert math.isfinite(single.metrics[-1]["val_loss"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_gives_its_precision_to_its_teachers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    seen: list[torch.dtype] = []

    def look(teachers: list[GPT2], weight: float, autocast: Any) -> Distillation:
        with autocast():
            seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return Distillation(teachers, weight, autocast)

    monkeypatch.setattr("minigpt.training.prepare.Distillation", look)
    well(train(*flags(folder, f"in-{dtype}", *taught(folder), "--dtype", dtype)))
    assert seen == [getattr(torch, dtype)]


def test_teachers_are_compiled_with_their_student(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[GPT2] = []
    monkeypatch.setattr(GPT2, "compile", lambda model: compiled.append(model))
    well(train(*flags(folder, "compiled", *taught(folder), "--compile")))
    assert [model.training for model in compiled] == [False, False, True]
    well(train(*flags(folder, "compiled-alone", "--compile")))
    assert len(compiled) == 4


def test_layers_computed_twice_are_taught_the_same(folder: Path) -> None:
    for name, more in (("once", ()), ("twice", ("--gradient-checkpointing",))):
        well(train(*flags(folder, name, *taught(folder), "--dropout", 0.2, *more)))
    assert_same_run(folder / "once", folder / "twice")


def test_an_adapter_has_teachers_too(folder: Path) -> None:
    first = folder / "teacher-1"
    given = ("--data", folder / "tales.txt", "--token-cache", folder / "tokens", "--init", first, "--lora", 2)
    times = ("--steps", 4, "--batch-size", 4, "--dtype", "float32", "--threads", 1)
    alone = ("--teacher", first, "--teacher-weight", 1)
    well(train(*given, *times, "--out", folder / "itself", *alone))
    assert metrics(folder / "itself")[0]["grad_norm"] < 1e-5  # of its own teacher it has nothing to learn
    well(train(*given, *times, "--out", folder / "adapted", "--teacher", folder / "teacher-2"))
    assert metrics(folder / "adapted")[0]["grad_norm"] > 1e-3
