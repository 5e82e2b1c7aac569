"""What a page of `minigpt explore` shows: its file is read back and compared with what it was made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from minigpt.interp.page.data import FORMAT
from minigpt.interp.page.document import document
from minigpt.interp.page.observed import observe
from minigpt.interp.page.patterns import unpack_patterns
from minigpt.interp.page.reading import read
from minigpt.interp.record import record_text
from minigpt.model import GPT2
from minigpt.verify.logits import Reference
from minigpt.verify.points import distance
from minigpt.verify.report import Check, not_checked

SURPRISAL = "surprisal on a page (bits), with the formula in float64"
ATTENTION = "attention on a page, with that of the model"
# of a weight in 8 bits, and of its row's largest in 16; and rounding
HALF_A_STEP = 1 / 510 + 1 / 131070 + 1e-6


def check_page(model: GPT2, reference: Reference) -> Iterator[Check]:
    """Makes a page of the fixed text, and reads it."""
    tokens = reference.tokens
    try:
        run = run_of_page(model, tokens)
        truth = record_text(model, tokens, "blocks.*.attn.pattern").stack("blocks.*.attn.pattern")[:, 0]
    except ValueError as error:  # compiled, or a layer that does not compute a point
        yield not_checked(SURPRISAL, str(error))
        yield not_checked(ATTENTION, str(error))
        return
    logprobs = reference.exact["logits"].log_softmax(-1)
    following = torch.tensor(tokens[1:])[:, None]
    exact = -logprobs[:-1].gather(-1, following)[:, 0] / math.log(2)
    # A log-probability is a logit less the logarithm of all: two errors.
    yield _compared(SURPRISAL, run["surprisal"][1:], exact, 2 * reference.bound["logits"] / math.log(2))
    yield _compared(ATTENTION, unpack_patterns(run["attention"]), truth, HALF_A_STEP)


def run_of_page(model: GPT2, tokens: list[int]) -> dict[str, Any]:
    """What a page's file says of a text: attention in full, lens and surprisal."""
    seen = observe(model, tokens, kept=len(tokens))
    predictions, _ = seen.predictions()
    page = document({"format": FORMAT, "title": "", "runs": [{"attention": seen.attention(), **predictions}]})
    run: dict[str, Any] = read(page)["runs"][0]
    return run


def _compared(name: str, ours: Tensor, theirs: Tensor, bound: float) -> Check:
    if not theirs.numel():
        return not_checked(name, "the text is too short")
    difference = distance(ours, theirs.cpu())
    if difference <= bound:
        return Check(name, "ok", "", difference, bound)
    return Check(name, "failed", "the page shows other numbers", difference, bound)
