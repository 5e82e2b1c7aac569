"""What is measured on a GPU: minigpt and transformers, decoding and training, each for a process of its own.

A side is made for a shape with random weights in bfloat16, right on the device, and gives the seconds that a piece of
work takes. Making it includes the warm-up, and with that all compiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minigpt import GPT2, GPT2Config
from minigpt.config import PUBLISHED
from minigpt.data.token_file import TokenFile
from minigpt.data.windows import Windows
from minigpt.linear import Linear
from minigpt.sampler import Greedy, generate
from minigpt.training.distributed import Processes
from minigpt.training.hardware import autocast
from minigpt.training.learner import MAX_GRAD_NORM, Learner
from minigpt.training.settings import Settings

Work = Callable[[int, int], float]  # rows and new tokens of each, or steps of training and 0; seconds


@dataclass(frozen=True)
class Sizes:
    """How much is measured: the full size, or a tiny one that tries this script on a CPU."""

    device: str = "cuda"
    tiny: bool = False
    prompt: int = 32
    new: int = 128
    batch_new: int = 64
    rows: tuple[int, ...] = (1, 8, 32, 128)
    steps: int = 5
    batch_size: int = 8
    rounds: int = 3

    @classmethod
    def for_trying(cls, device: str) -> Sizes:
        return cls(device, True, 8, 6, 6, (1, 2, 33), 2, 2, 2)

    def config(self, shape: str) -> GPT2Config:
        """The shape without dropout."""
        config = PUBLISHED[shape]
        if self.tiny:
            config = replace(config, vocab_size=512, n_positions=64, n_embd=64, n_layer=2, n_head=2)
            config = replace(config, bos_token_id=0, eos_token_id=0)
        return replace(config, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


@contextmanager
def made_there(device: str, dtype: torch.dtype) -> Iterator[None]:
    """New modules are on the device and of that type from the start."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes, the device's work included."""
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def prompts(rows: int, length: int) -> list[list[int]]:
    numbers = np.random.default_rng(0).integers(500, size=(rows, length))
    return [[int(token) for token in row] for row in numbers]


# ------------------------------------------------------------------------------ decoding


def new_model(shape: str, sizes: Sizes) -> GPT2:
    """Its weights lie in memory as `from_pretrained` lays them on a GPU."""
    with made_there(sizes.device, torch.bfloat16):
        model = GPT2(sizes.config(shape)).eval()
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return model


def compile_blocks(model: GPT2) -> None:
    """What --compile does; see `minigpt.cli.model_flags`."""
    torch._dynamo.config.recompile_limit += model.config.n_layer
    for block in model.blocks:
        block.compile()


def minigpt_side(shape: str, sizes: Sizes, compiled: bool = False) -> Work:
    """`generate` as it is, or with blocks compiled as --compile does it."""
    model = new_model(shape, sizes)
    if compiled:
        compile_blocks(model)

    def work(rows: int, n_new: int) -> float:
        ids = prompts(rows, sizes.prompt)
        return seconds(partial(generate, model, ids, Greedy(), max_new_tokens=n_new, end_tokens=[]))

    return work


def new_transformers(shape: str, sizes: Sizes, dtype: torch.dtype) -> Any:
    import transformers  # an optional package

    transformers.logging.set_verbosity_error()
    known = transformers.GPT2Config().to_dict().keys()
    config = {name: value for name, value in asdict(sizes.config(shape)).items() if name in known}
    with made_there(sizes.device, dtype):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config))


def transformers_side(shape: str, sizes: Sizes, **how: Any) -> Work:
    """Its `generate`: as it is, or with a static cache, which it then compiles with CUDA graphs (reduce-overhead)."""
    model = new_transformers(shape, sizes, torch.bfloat16).eval()

    def work(rows: int, n_new: int) -> float:
        ids = torch.tensor(prompts(rows, sizes.prompt), device=sizes.device)
        call = partial(
            model.generate, ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new, do_sample=False,
            eos_token_id=None, pad_token_id=0, **how,
        )  # fmt: skip
        return seconds(call)

    return work


# ------------------------------------------------------------------------------ training


def minigpt_training(shape: str, sizes: Sizes, compiled: bool = False) -> Work:
    """What `minigpt train` does in each step."""
    config = sizes.config(shape)
    n = 2_000_000
    ids = np.random.default_rng(0).integers(config.vocab_size, size=n).astype(np.uint16)
    tokens = TokenFile(Path(), ids, np.array([[0, n]]), np.zeros(1, np.uint64), "")
    settings = Settings(
        optimizer="adamw", lr=1e-4, warmup=0, steps=10**6, batch_size=sizes.batch_size, compile=compiled
    )
    with made_there(sizes.device, torch.float32):
        model = GPT2(config)
    windows = Windows(tokens, config.n_positions, seed=0)
    learner = Learner(model, windows, settings, "bfloat16", Processes())
    return partial(_train, lambda step: learner.step(step))


def transformers_training(shape: str, sizes: Sizes) -> Work:
    """Its loss, under the same autocast, with the same optimiser and clipping of gradients."""
    config = sizes.config(shape)
    model = new_transformers(shape, sizes, torch.float32).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    random = torch.Generator().manual_seed(0)

    def step(number: int) -> None:
        rows = torch.randint(config.vocab_size, (sizes.batch_size, config.n_positions), generator=random)
        rows = rows.to(sizes.device)
        with autocast(torch.device(sizes.device), "bfloat16"):
            loss = model(rows, labels=rows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimiser.step()
        optimiser.zero_grad()

    return partial(_train, step)


def _train(step: Callable[[int], object], steps: int, _: int) -> float:
    """Seconds of some steps; one before them takes back the memory that other processes had meanwhile."""
    step(0)
    taken = seconds(lambda: [step(number) for number in range(1, steps + 1)])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return taken


# name -> maker; "decoding" and "training" are measured apart
MAKE_DECODING: dict[str, Callable[[str, Sizes], Work]] = {
    "minigpt": minigpt_side,
    "minigpt --compile": partial(minigpt_side, compiled=True),
    "transformers": transformers_side,
    "transformers, static cache, compiled": partial(transformers_side, cache_implementation="static"),
}
MAKE_TRAINING: dict[str, Callable[[str, Sizes], Work]] = {
    "minigpt": minigpt_training,
    "minigpt --compile": partial(minigpt_training, compiled=True),
    "transformers": transformers_training,
}
