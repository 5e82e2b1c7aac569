"""The parts of a step: what decays, how fast it learns, and that batches, sums and memory tricks change nothing."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minigpt import GPT2, GPT2Config, Tokenizer
from minigpt.data.token_file import TokenFile
from minigpt.data.windows import Windows
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.byte_level import byte_tokenizer, character_tokenizer
from minigpt.training import lora, optimiser
from minigpt.training.distributed import Processes
from minigpt.training.evaluate import Validation
from minigpt.training.learner import MAX_GRAD_NORM, Learner
from minigpt.training.settings import Settings

CONFIG = GPT2Config(vocab_size=257, n_positions=16, n_embd=16, n_layer=2, n_head=2)
CPU = torch.device("cpu")


def new_model(**config):
    torch.manual_seed(0)
    return GPT2(replace(CONFIG, **config))


def numbers(n=400, vocab_size=257, n_documents=1):
    ids = np.random.default_rng(0).integers(vocab_size, size=n).astype(np.uint16)
    starts = np.linspace(0, n, n_documents + 1).astype(np.int64)
    spans = np.stack([starts[:-1], starts[1:]], axis=1)
    return TokenFile(Path(), ids, spans, np.zeros(n_documents), "")


def learner(model=None, **how):
    how = {"lr": 0.01, "warmup": 0, "steps": 10, "batch_size": 8, **how}
    settings = Settings(**how).settled(CONFIG.n_embd)
    model = model or new_model(
        resid_pdrop=settings.dropout, embd_pdrop=settings.dropout, attn_pdrop=settings.dropout
    )
    tokens = numbers()
    return Learner(model, Windows(tokens, 16, settings.seed), settings, "float32", Processes())


def weights(of):
    return {name: parameter.detach().clone() for name, parameter in of.model.named_parameters()}


def close(a, b, tolerance=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


# ------------------------------------------------------------------------------ the optimiser


def test_only_matrices_decay():
    model = new_model(tie_word_embeddings=False)
    adamw = optimiser.adamw(optimiser.trainable(model), 0.1, 0.3, 0.9)
    decay = {id(p): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert len(decay) == len(found)
    for name, value in found.items():
        assert value == (0.0 if name.endswith("bias") or "norm" in name else 0.3), name


def test_what_is_frozen_is_not_the_optimisers_business():
    model = new_model()
    lora.attach(model, 2)
    adamw = optimiser.adamw(optimiser.trainable(model), 0.1, 0.3, 0.9)
    named = optimiser.state_by_name(model, [adamw])
    assert named
    assert all(name.endswith(("lora_a", "lora_b")) for name in named)
    assert {id(p) for g in adamw.param_groups for p in g["params"]} == {
        id(p) for p in optimiser.trainable(model)
    }


def test_steps_are_those_of_the_paper():
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


# ------------------------------------------------------------------------------ a step


def test_four_batches_of_two_are_one_of_eight():
    # Muon rounds to bfloat16, and another order of sums may fall to the other side
    whole, parts = (
        learner(optimizer="adamw", **how) for how in ({"batch_size": 8}, {"batch_size": 2, "accumulate": 4})
    )
    for step in range(3):
        (loss, norm), (same_loss, same_norm) = whole.step(step), parts.step(step)
        torch.testing.assert_close(loss, same_loss)
        torch.testing.assert_close(norm, same_norm)
    close(weights(whole), weights(parts), 1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_targets():
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


def test_a_long_gradient_is_cut_to_its_limit(monkeypatch):
    one = learner(lr=0.0)
    norms = []

    def look(*_):
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in one.model.parameters())))

    with torch.no_grad():
        one.model.final_norm.weight.mul_(50)
    one.optimisers[0].register_step_pre_hook(look)
    _, norm = one.step(0)
    assert norm.item() > MAX_GRAD_NORM
    assert norms == [pytest.approx(MAX_GRAD_NORM, rel=1e-3)]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_layers_computed_twice_are_the_same_to_the_bit(dropout):
    once, twice = learner(dropout=dropout), learner(dropout=dropout, gradient_checkpointing=True)
    for step in range(3):
        assert once.step(step) == twice.step(step)
    assert all(
        torch.equal(p, q) for p, q in zip(weights(once).values(), weights(twice).values(), strict=True)
    )


def test_a_step_depends_on_nothing_but_its_number():
    """What was computed before, or drawn, changes no bit: this is why a run can go on from its weights alone."""
    one, other = learner(dropout=0.2), learner(dropout=0.2)
    for step in range(4):
        torch.rand(step + 1)
        other.windows.rows(range(step * 100, step * 100 + 1))
        assert one.step(step) == other.step(step)
    assert one_loss(0) == one_loss(0) != one_loss(1)
    assert learner(dropout=0.2).step(0) != learner(dropout=0.2).step(1)


def one_loss(seed):
    return learner(dropout=0.2, seed=seed).step(0)[0].item()


def test_two_steps_drop_other_numbers():
    """With one window that is all the text, only dropout tells one step from the next."""
    how = {"dropout": 0.5, "lr": 0.0, "batch_size": 1}
    one = learner(**how)
    one.windows = Windows(numbers(17), 16, 0)
    rows = one.windows.rows(range(1))
    one.windows.rows = lambda _: rows
    assert len({one.step(step)[0].item() for step in range(5)}) == 5


def test_a_state_is_shared_and_enough_to_go_on():
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


def test_half_precision_is_for_products_alone():
    settings = Settings(lr=0.01, steps=10, batch_size=8).settled(16)
    tokens = numbers()
    half = Learner(new_model(), Windows(tokens, 16, 0), settings, "bfloat16", Processes())
    whole = learner(warmup=None)
    (loss, _), (whole_loss, _) = half.step(0), whole.step(0)
    assert loss.dtype == torch.float32
    assert 0 < abs(loss - whole_loss) < 0.05
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


# ------------------------------------------------------------------------------ validation


def judged(tokenizer, ids, length, most=10**6, batch_size=3):
    tokens = TokenFile(Path(), np.array(ids, np.uint16), np.array([[0, len(ids)]]), np.zeros(1), "")
    validation = Validation(tokens, length, most, tokenizer)
    model = new_model(vocab_size=tokenizer.vocab_size, n_positions=length).train()
    score = validation.score(model, batch_size, CPU, Processes(), nullcontext)
    assert model.training
    return model.eval(), validation, score


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_validation_is_the_plain_sum_over_all_its_windows(batch_size):
    text = "A täle of 😀 and wörds, told twice over."
    tokenizer = byte_tokenizer()
    ids = [256, *tokenizer.encode(text), 256, *tokenizer.encode(text)]
    model, validation, score = judged(tokenizer, ids, 10, batch_size=batch_size)
    n = (len(ids) - 1) // 10
    nats = 0.0
    for i in range(n):
        logits = model(torch.tensor([ids[10 * i : 10 * i + 10]]))[0]
        nats += F.cross_entropy(logits, torch.tensor(ids[10 * i + 1 : 10 * i + 11]), reduction="sum").item()
    assert validation.windows.tolist() == [ids[10 * i : 10 * i + 11] for i in range(n)]
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.n_tokens == 10 * n
    assert score.n_bytes == sum(token != 256 for token in ids[1 : 10 * n + 1])
    assert score.loss == pytest.approx(nats / (10 * n))
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / score.n_bytes)


def test_bytes_are_those_of_the_text_whatever_it_is_cut_into():
    text = "Köln, Ærø und 😀: naïve façades. " * 3
    joined = Tokenizer({**BYTES, "Ġu": 256, "nd": 257, "<|endoftext|>": 258}, [("Ġ", "u"), ("n", "d")])
    for tokenizer in (byte_tokenizer(), character_tokenizer([text]), joined, Tokenizer.from_pretrained()):
        ids = [tokenizer.end_token, *tokenizer.encode(text)]
        _, validation, score = judged(tokenizer, ids, len(ids) - 1)
        assert score.n_bytes == validation.n_bytes == len(text.encode())
        assert score.n_tokens == len(ids) - 1


def test_a_text_shorter_than_a_window_is_judged_whole():
    _, validation, score = judged(byte_tokenizer(), [256, 1, 2, 3], 16)
    assert validation.windows.tolist() == [[256, 1, 2, 3]]
    assert score.n_tokens == 3


def test_a_single_token_predicts_nothing():
    with pytest.raises(ValueError, match="the validation text is a single token: hold out more"):
        judged(byte_tokenizer(), [256], 16)


@given(st.integers(2, 257), st.integers(1, 20), st.integers(1, 400))
def test_a_long_text_is_read_at_equal_distances(n, length, most):
    tokens = replace(numbers(n), ids=np.arange(n))  # so that windows are told apart
    validation = Validation(tokens, length, most, byte_tokenizer())
    length = min(length, n - 1)
    whole = [tokens.ids[i : i + length + 1].tolist() for i in range(0, n - length, length)]
    rows = validation.windows.tolist()
    assert [row for row in whole if row in rows] == rows
    assert len(rows) == max(1, min(len(whole), most // length))
    assert rows[0] == whole[0]
    assert len(rows) == 1 or rows[-1] == whole[-1]
    assert validation.n_tokens == length * len(rows)
