"""GPT-2 from scratch in PyTorch: to read, to trust and to use.

>>> import torch, minigpt
>>> model, tokenizer = minigpt.load()              # the bundled model; or load("gpt2"), load("some/dir")
>>> tokens = tokenizer.encode("Once upon a time")
>>> logits = model(torch.tensor([tokens]))         # (1, T, vocab_size)
>>> logits.shape[2] == model.config.vocab_size
True
>>> best = minigpt.complete(model, tokenizer, "Once upon a time", max_new_tokens=20)
>>> len(best.tokens)                               # print(best) shows the text
20
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from minigpt.lazy import NamesElsewhere, imported_when_used
from minigpt.legacy.moved_modules import MovedModules

if TYPE_CHECKING:
    from minigpt import interp as interp
    from minigpt import sampler as sampler
    from minigpt import training as training
    from minigpt.config import GPT2Config
    from minigpt.data.prompt_rows import PromptRow
    from minigpt.errors import InvalidRequest
    from minigpt.interp.attention_map import attention_map
    from minigpt.model import GPT2
    from minigpt.pretrained import load
    from minigpt.sampler.next_tokens import top
    from minigpt.sampler.text import complete
    from minigpt.tokenizer import Tokenizer

__version__ = "0.2.0"
__all__ = [
    "GPT2",
    "GPT2Config",
    "InvalidRequest",
    "PromptRow",
    "Tokenizer",
    "attention_map",
    "complete",
    "load",
    "top",
]

_HOMES = {
    "GPT2": "model",
    "GPT2Config": "config",
    "InvalidRequest": "errors",
    "PromptRow": "data.prompt_rows",
    "Tokenizer": "tokenizer",
    "attention_map": "interp.attention_map",
    "complete": "sampler.text",
    "load": "pretrained",
    "top": "sampler.next_tokens",
}
_COMMANDS = {
    "explore": "from minigpt.interp.page import explore",
    "generate": "minigpt.complete(model, tokenizer, prompt), or for token ids from minigpt.sampler import generate",
    "quantize": 'minigpt.load(quantize="int8")',
    "train": "from minigpt.training import train",
}
__getattr__ = imported_when_used(__name__, _HOMES, ("interp", "sampler", "training"), _COMMANDS)

# An `import` statement asks finders alone, so that only one of them can answer it with where something is.
sys.meta_path += [MovedModules(), NamesElsewhere()]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
