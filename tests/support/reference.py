"""Random tiny GPT-2s of transformers, written to disk and read by us: what the parity tests compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from minigpt import GPT2

TINY: dict[str, Any] = {"vocab_size": 61, "n_positions": 48, "n_layer": 3, "n_head": 4, "n_embd": 32}


def reference(seed: int = 0, spread: float = 0.2, **config: Any) -> GPT2LMHeadModel:
    """A GPT2LMHeadModel with every weight random, norms and biases too, so that no mix-up goes unseen.

    `spread` is wide enough that a wrong activation shows, and narrow enough that the reference's own
    rounding stays far below the tolerance (see test_logits).
    """
    torch.manual_seed(seed)
    values = {**TINY, "attn_implementation": "eager", "bos_token_id": None, "eos_token_id": None, **config}
    model = GPT2LMHeadModel(GPT2Config(**values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn_like(parameter))
    return model


def pair(directory: Path, seed: int = 0, spread: float = 0.2, **config: Any) -> tuple[GPT2, GPT2LMHeadModel]:
    """The same model twice: ours, through real files, and the reference."""
    theirs = reference(seed, spread, **config)
    theirs.save_pretrained(directory)
    return GPT2.from_pretrained(directory), theirs


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference between two tensors."""
    return float((one - other).abs().max())
