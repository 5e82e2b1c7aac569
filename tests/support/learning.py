"""What the tests of a training step share: a tiny model, random tokens, and a learner of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minigpt import GPT2, GPT2Config
from minigpt.data.token_file import TokenFile
from minigpt.data.windows import Windows
from minigpt.training.distributed import Processes
from minigpt.training.learner import Learner, next_tokens
from minigpt.training.settings import Settings

CONFIG = GPT2Config(vocab_size=257, n_positions=16, n_embd=16, n_layer=2, n_head=2)


def new_model(**config: Any) -> GPT2:
    torch.manual_seed(0)
    return GPT2(replace(CONFIG, **config))


def numbers(n: int = 400, vocab_size: int = 257, n_documents: int = 1) -> TokenFile:
    ids = np.random.default_rng(0).integers(vocab_size, size=n).astype(np.uint16)
    starts = np.linspace(0, n, n_documents + 1).astype(np.int64)
    spans = np.stack([starts[:-1], starts[1:]], axis=1)
    return TokenFile(Path(), ids, spans, np.zeros(n_documents), "")


def learner(
    model: GPT2 | None = None, targets: Callable[[Tensor], Tensor] = next_tokens, **how: Any
) -> Learner:
    how = {"lr": 0.01, "warmup": 0, "steps": 10, "batch_size": 8, **how}
    settings = Settings(**how).with_defaults(CONFIG.n_embd)
    model = model or new_model(
        resid_pdrop=settings.dropout, embd_pdrop=settings.dropout, attn_pdrop=settings.dropout
    )
    tokens = numbers()
    return Learner(model, Windows(tokens, 16, settings.seed), settings, "float32", Processes(), targets)


def weights(of: Learner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in of.model.named_parameters()}


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)
