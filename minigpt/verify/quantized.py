"""The matrices of a quantized model: which numbers they stand for, and how far from the file's rounding may bring them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.verify.report import Check, failed, passed
from minigpt.verify.stored import LINEAR, StoredModel
from minigpt.verify.weights import places

if TYPE_CHECKING:
    from minigpt.model import GPT2

HALF = 0.5001  # of a step, to which a number is rounded in float32


class RoundedModel(StoredModel):
    """A model's files in floating point, but with each matrix as a quantized model in memory has rounded it.

    So the model's arithmetic is compared by itself: what rounding the matrices costs is no error of it.
    """

    def __init__(self, stored: StoredModel, model: GPT2) -> None:
        super().__init__(stored.directory)
        self._matrices = matrices(model, stored)

    def tensor(self, name: str) -> Tensor:
        if name not in self._matrices:
            return super().tensor(name)
        return _turned(name, numbers(self._matrices[name]))


def matrices(model: GPT2, stored: StoredModel) -> dict[str, Any]:
    """The modules with quantized weights, by the file's names of their matrices."""
    names = {theirs: ours for theirs, ours in places(stored).items() if theirs.endswith(LINEAR)}
    modules: dict[str, Any] = {
        theirs: model.get_submodule(ours.removesuffix(".weight")) for theirs, ours in names.items()
    }
    head = model.token_embedding if model.config.tie_word_embeddings else model.head
    both = {"wte.weight": model.token_embedding, "lm_head.weight": head}
    return modules | {name: module for name, module in both.items() if name in stored}


def numbers(module: Any) -> Tensor:
    """What a small weight stands for: (out, in)."""
    whole: Tensor = module.matrix.weight.float()
    return whole * module.weight_scale[:, None] * module.input_scale if _has_steps(module) else whole


def check_rounded(model: GPT2, stored: StoredModel) -> Check:
    """Every matrix in memory against the file's, which it must be the nearest to."""
    name = "quantized weights in memory, with the file's"
    wrong = [
        theirs
        for theirs, module in matrices(model, stored).items()
        if not _is_nearest(module, _turned(theirs, stored.tensor(theirs)))
    ]
    return failed(name, f"not the nearest to the file's: {', '.join(wrong[:4])}") if wrong else passed(name)


def _turned(name: str, matrix: Tensor) -> Tensor:
    """A matrix as the file has it from one as a small weight is kept, (out, in); or the other way round."""
    return matrix.mT if name.endswith(LINEAR) else matrix


def _is_nearest(module: Any, exact: Tensor) -> bool:
    """Whether a small weight is the nearest to a matrix (out, in) that its numbers allow."""
    kept = numbers(module)
    if kept.shape != exact.shape:
        return False
    if not _has_steps(module):
        return torch.equal(kept, exact.half().float())
    steps = module.weight_scale[:, None] * module.input_scale
    return bool(((kept - exact.float()).abs() <= HALF * steps).all())


def _has_steps(module: Any) -> bool:
    return hasattr(module, "weight_scale")
