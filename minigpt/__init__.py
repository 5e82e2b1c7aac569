"""GPT-2, written by hand in pure PyTorch: to read, to trust and to use.

>>> import torch, minigpt
>>> model, tokenizer = minigpt.load()              # the bundled model; or load("gpt2"), load("some/dir")
>>> tokens = tokenizer.encode("Once upon a time")
>>> logits = model(torch.tensor([tokens]))         # (1, T, vocab_size)
>>> logits.shape[2] == model.config.vocab_size
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt.config import GPT2Config
    from minigpt.model import GPT2
    from minigpt.pretrained import load
    from minigpt.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["GPT2", "GPT2Config", "Tokenizer", "load"]

_HOMES = {"GPT2": "model", "GPT2Config": "config", "Tokenizer": "tokenizer", "load": "pretrained"}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `--help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
