"""Watching the model must not change it: the logits while every point is recorded, against those without."""

from __future__ import annotations

import torch

from minigpt.interp.record import record_text
from minigpt.model import GPT2
from minigpt.verify.report import Check, failed, not_checked, passed

NAME = "logits while every point is recorded, to the bit"


def check_recording(model: GPT2, tokens: list[int]) -> Check:
    """One pass without hooks and one with all of them."""
    with torch.no_grad():
        plain = model(torch.tensor([tokens], device=model.device))
    try:
        seen = record_text(model, tokens)
    except ValueError as error:  # compiled, or a layer that does not compute a point
        return not_checked(NAME, str(error))
    differing = (seen["logits"] != plain).any(-1)[0].nonzero().flatten().tolist()
    return failed(NAME, f"token {differing[0]} has others") if differing else passed(NAME)
