"""Watching must not change the model, nor putting in what is there already: the logits against those without."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from minigpt.interp.interventions import patch
from minigpt.interp.record import record_text
from minigpt.interp.recording import Recording
from minigpt.model import GPT2
from minigpt.verify.report import Check, failed, not_checked, passed

NAME = "logits while every point is recorded, and patched with its own value, to the bit"
# The kernel never stores patterns: what puts one in computes the formula, which rounds otherwise.
PATTERN = "attn.pattern"


def check_recording(model: GPT2, tokens: list[int]) -> Check:
    """One pass without hooks, one that is recorded, and one in which the recording takes the place of what it is of."""
    with torch.no_grad():
        plain = model(torch.tensor([tokens], device=model.device))
    try:
        seen = record_text(model, tokens)
    except ValueError as error:  # compiled, or a layer that does not compute a point
        return not_checked(NAME, str(error))
    for what, logits in (("recorded", seen["logits"]), ("patched", patched_with_itself(model, seen, tokens))):
        differing = (logits != plain).any(-1)[0].nonzero().flatten().tolist()
        if differing:
            return failed(NAME, f"{what}, token {differing[0]} has others")
    return passed(NAME)


def patched_with_itself(model: GPT2, seen: Recording, tokens: list[int]) -> Tensor:
    """The logits while all points but patterns are given the values that they have."""
    with ExitStack() as stack:
        for name in seen:
            if not name.endswith(PATTERN) and name != "logits":
                stack.enter_context(patch(model, name, seen))
        return record_text(model, tokens, "logits")["logits"]
