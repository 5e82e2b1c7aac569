"""From text to a model: `train` for Python and notebooks; `minigpt.train` is the command.

from minigpt.training import train
model, tokenizer, metrics = train(data="tales.txt", out="tales", steps=500)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minigpt.lazy import imported_when_used

if TYPE_CHECKING:
    from minigpt.training.adapters import load_adapter, save_adapter
    from minigpt.training.api import Trained, run_to_end, train
    from minigpt.training.distributed import Disconnected, report_first_failure
    from minigpt.training.lora import attach, merge
    from minigpt.training.run import CannotWrite, Diverged

_HOMES = {
    "CannotWrite": "run", "Disconnected": "distributed", "Diverged": "run", "Trained": "api", "attach": "lora",
    "load_adapter": "adapters", "merge": "lora", "report_first_failure": "distributed", "run_to_end": "api",
    "save_adapter": "adapters", "train": "api",
}  # fmt: skip
__all__ = [
    "CannotWrite", "Disconnected", "Diverged", "Trained", "attach", "load_adapter", "merge", "report_first_failure",
    "run_to_end", "save_adapter", "train",
]  # fmt: skip
__getattr__ = imported_when_used(__name__, _HOMES)
