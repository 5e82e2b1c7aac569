"""The same results on a GPU: logits, texts, random numbers, gradients, training, looking inside.

`make test-gpu` runs these where torch can use a GPU, and reports them as not run elsewhere. With MINIGPT_GPU=cpu, the
CPU takes its place: that tries the tests themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainer import flags, learned, metrics, train, well, write_text

from minigpt import GPT2, GPT2Config, Tokenizer
from minigpt.inference.graphed_step import GraphedStep
from minigpt.interp import record_text
from minigpt.sampler import Beam, Greedy, PromptLookup, Sample, Strategy, generate
from minigpt.sampler.engine.random_stream import RandomStream, sample
from minigpt.verify.__main__ import main as verify

WHERE = os.environ.get("MINIGPT_GPU", "cuda")
THERE = WHERE == "cpu" or torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not THERE, reason="needs a GPU that torch can use"),
]

# float32 products are exact to 24 bits on both (torch leaves TF32 off), but cuBLAS adds up in another order.
FLOAT32 = 2e-4
# bfloat16 has 8 bits: each product is rounded by up to 2**-9 of itself, and 12 of them follow each other.
BFLOAT16 = 0.03
PROMPTS = ("Once upon a time", "The king said", "In a small house by the sea there lived an old man who")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained()


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def on_cpu() -> GPT2:
    return GPT2.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def there() -> GPT2:
    return GPT2.from_pretrained(device=WHERE, dtype=torch.float32)


@torch.no_grad()
def logits(model: GPT2, prompt: list[int]) -> Tensor:
    return model(torch.tensor([prompt], device=model.device))[0].float().cpu()


def test_logits_are_those_of_the_cpu(on_cpu: GPT2, there: GPT2, prompts: list[list[int]]) -> None:
    for prompt in prompts:
        assert (logits(there, prompt) - logits(on_cpu, prompt)).abs().max() < FLOAT32


def test_bfloat16_stays_within_its_rounding(on_cpu: GPT2, prompts: list[list[int]]) -> None:
    half = GPT2.from_pretrained(device=WHERE, dtype=torch.bfloat16)
    for prompt in prompts:
        exact = logits(on_cpu, prompt)
        off = (logits(half, prompt) - exact).norm() / exact.norm()
        assert 0 < off < BFLOAT16


@torch.no_grad()
def test_split_and_padded_are_whole(there: GPT2, prompts: list[list[int]]) -> None:
    for prompt in prompts:
        cache = there.new_cache(len(prompt))
        tokens = torch.tensor([prompt], device=there.device)
        first, second = there.next_logits(tokens[:, :2], cache), there.next_logits(tokens[:, 2:], cache)
        whole = there(tokens)[0]
        torch.testing.assert_close(torch.cat([first, second]), whole[[1, -1]], rtol=0, atol=FLOAT32)
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    batch = [[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
    padded = there(torch.tensor(batch, device=there.device), pad=torch.tensor(pads))
    for row, prompt in zip(padded, prompts, strict=True):
        alone = there(torch.tensor([prompt], device=there.device))[0]
        torch.testing.assert_close(row[-len(prompt) :], alone, rtol=0, atol=FLOAT32)


Step = GraphedStep | None


def by_modules(
    model: GPT2, prompts: list[list[int]], news: list[list[list[int]]]
) -> tuple[list[Tensor], Step]:
    """As `by_steps` by the modules: a hook that does nothing keeps all else away."""
    hook = model.blocks[0].register_forward_hook(lambda *_: None)
    try:
        return by_steps(model, prompts, news)
    finally:
        hook.remove()


@torch.no_grad()
def by_steps(model: GPT2, prompts: list[list[int]], news: list[list[list[int]]]) -> tuple[list[Tensor], Step]:
    """The logits after each step as the model computes it by itself; on a GPU, from the third on by replay."""
    longest = max(map(len, prompts))
    pads = torch.tensor([longest - len(prompt) for prompt in prompts], device=model.device)
    cache = model.new_cache(longest + len(news), len(prompts), pads if pads.any() else None)
    batch = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    model.next_logits(torch.tensor(batch, device=model.device), cache)
    logits = [model.next_logits(torch.tensor(new, device=model.device), cache) for new in news]
    return logits, cache.step


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)], ids=["float32", "bfloat16"]
)
def test_a_recorded_step_is_the_plain_one(
    rows: int, activation: str, dtype: torch.dtype, close: float, tmp_path: Path
) -> None:
    """Widths that are no powers of two, prompts of unequal length, and a context that is read in several parts."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=601, n_positions=400, n_embd=144, n_layer=3, n_head=3, activation_function=activation,
        scale_attn_by_inverse_layer_idx=True,
    )  # fmt: skip
    fresh = GPT2(config)
    for parameter in fresh.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    fresh.save_pretrained(tmp_path)
    model = GPT2.from_pretrained(tmp_path, device=WHERE, dtype=dtype)
    prompts = [list(range(5, 5 + length)) for length in (300, 7, 64, 130, 1)[:rows]]
    news = [[[n + row] for row in range(rows)] for n in range(9)]
    found, step = by_steps(model, prompts, news)
    expected, _ = by_modules(model, prompts, news)
    for ours, plain in zip(found, expected, strict=True):
        assert (ours.float() - plain.float()).norm() < close * plain.float().norm()
    if WHERE != "cpu":
        assert step is not None
        assert step.is_recorded
        assert step.is_fused == (rows <= 3 and activation != "relu")


@torch.no_grad()
def test_hooks_that_come_and_go_see_every_step(there: GPT2, prompts: list[list[int]]) -> None:
    cache = there.new_cache(40)
    there.next_logits(torch.tensor([prompts[0]], device=there.device), cache)
    seen: list[tuple[int, ...]] = []
    for n in range(12):
        if n == 7:
            hook = there.blocks[3].register_forward_hook(lambda _, __, x: seen.append(tuple(x.shape)))
        if n == 10:
            hook.remove()
        there.next_logits(torch.tensor([[n]], device=there.device), cache)
    assert seen == [(1, 1, there.config.n_embd)] * 3


def test_steps_in_and_out_of_inference_mode(there: GPT2, prompts: list[list[int]]) -> None:
    """A cache that was made outside of it may be used in both."""
    prompt, caches = torch.tensor([prompts[0]], device=there.device), [there.new_cache(40) for _ in range(2)]
    for cache in caches:
        there.next_logits(prompt, cache)
    for n in range(9):
        new = torch.tensor([[n]], device=there.device)
        with torch.inference_mode(n % 2 == 0):
            first = there.next_logits(new, caches[0])
        hook = there.blocks[0].register_forward_hook(lambda *_: None)  # so that the modules compute it
        torch.testing.assert_close(first, there.next_logits(new, caches[1]), rtol=0, atol=FLOAT32)
        hook.remove()


def test_rows_that_leave_change_nothing_of_the_others(there: GPT2, prompts: list[list[int]]) -> None:
    """What is recorded belongs to so many rows, and to the cache's memory."""
    whole = [done.tokens for (done,) in generate(there, prompts, max_new_tokens=31)]
    ends = [whole[0][8], whole[1][19]]
    alone = [generate(there, [prompt], max_new_tokens=31, end_tokens=ends)[0][0].tokens for prompt in prompts]
    assert len({len(tokens) for tokens in alone}) > 1
    together = generate(there, prompts, max_new_tokens=31, end_tokens=ends)
    assert [done.tokens for (done,) in together] == alone


@pytest.mark.parametrize(
    "strategy",
    [Greedy(), Sample(temperature=0.8, top_p=0.9, seed=7), Beam(num_beams=3), PromptLookup()],
    ids=lambda strategy: type(strategy).__name__,
)
def test_texts_are_those_of_the_cpu(
    on_cpu: GPT2, there: GPT2, prompts: list[list[int]], strategy: Strategy
) -> None:
    """Random numbers too: they are a function of the seed, and not of the device's generator."""
    expected, found = (generate(model, prompts, strategy, max_new_tokens=24) for model in (on_cpu, there))
    for (ours,), (theirs,) in zip(found, expected, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=FLOAT32)


def test_random_numbers_are_those_of_the_cpu(there: GPT2) -> None:
    logits = 4 * torch.randn(300, 700, generator=torch.Generator().manual_seed(0))
    keys = [RandomStream(0, [1]).key(position) for position in range(300)]
    assert torch.equal(sample(logits.to(there.device), keys).cpu(), sample(logits, keys))


def test_gradients_are_those_of_the_cpu(on_cpu: GPT2, there: GPT2, prompts: list[list[int]]) -> None:
    for model in (on_cpu, there):
        model.zero_grad()
        model.loss(torch.tensor(prompts[-1:], device=model.device)).backward()
    for (name, ours), theirs in zip(there.named_parameters(), on_cpu.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


def test_what_is_recorded_is_what_the_cpu_computes(
    on_cpu: GPT2, there: GPT2, prompts: list[list[int]]
) -> None:
    ours, theirs = (record_text(model, prompts[0]) for model in (there, on_cpu))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name].cpu(), theirs[name], rtol=1e-4, atol=1e-3, msg=str(name))


# ------------------------------------------------------------------------------ training


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_training_goes_as_on_the_cpu(tmp_path: Path, dtype: str, tolerance: float) -> None:
    text = write_text(tmp_path / "tales.txt")
    shape = ("--accumulate", 2, "--optimizer", "adamw")
    well(train(*flags(text, tmp_path / "cpu", *shape, "--device", "cpu")))
    well(train(*flags(text, tmp_path / "there", *shape, "--device", WHERE, "--dtype", dtype)))
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("cpu", "there")]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Up to the order in which a GPU adds up: that of embeddings' gradients is not the same each time."""
    text = write_text(tmp_path / "tales.txt")
    for out, steps in (("whole", (6,)), ("parts", (4, 6))):
        for n in steps:
            # the learning rate of a step must not depend on how many there will be
            how = ("--steps", n, "--device", WHERE, "--warmup", 1000, "--lr", 0.3, "--resume")
            well(train(*flags(text, tmp_path / out, *how)))
    (whole, models), (parts, other_models) = learned(tmp_path / "whole"), learned(tmp_path / "parts")
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in whole], rel=1e-3)
    for name, tensor in models[0].items():
        torch.testing.assert_close(other_models[0][name], tensor, rtol=0, atol=1e-3, msg=name)


def test_verify_proves_the_model_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert verify(["--device", WHERE]) == 0
