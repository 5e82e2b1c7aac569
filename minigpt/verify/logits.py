"""The logits of one text, computed by our model in every way it has, against the formula and transformers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigpt.json_files import counted
from minigpt.sampler import Greedy, generate
from minigpt.verify.formula import Precision, compute
from minigpt.verify.known_mistakes import known_mistake
from minigpt.verify.points import (
    MARGIN,
    MARGIN_OF_FEW_BITS,
    Pass,
    bounds,
    distance,
    first_departure,
    joined,
    largest_difference,
    recording,
)
from minigpt.verify.quantized import RoundedModel
from minigpt.verify.quietly import quietly
from minigpt.verify.report import Check, failed, first_difference, not_checked
from minigpt.verify.stored import StoredModel

if TYPE_CHECKING:
    from minigpt.model import GPT2

N_GREEDY = 20
PADS = (0, 1, 7)


@dataclass(frozen=True)
class Reference:
    """What the formula gives for the text, exactly, and how far rounding may lead away from it."""

    stored: StoredModel
    tokens: list[int]
    kept: torch.dtype
    quantization: str | None = None  # of the model that was loaded

    @classmethod
    def of(cls, model: GPT2, stored: StoredModel, tokens: list[int]) -> Reference:
        if model.quantization and not stored.quantization:
            stored = RoundedModel(stored, model)
        return cls(stored, tokens, model.position_embedding.weight.dtype, model.quantization)

    @cached_property
    def exact(self) -> dict[str, Tensor]:
        return compute(self.stored, self.tokens)

    @cached_property
    def bound(self) -> dict[str, float]:
        rounds_inputs = self.quantization == "int8"
        rounded = compute(self.stored, self.tokens, Precision(torch.float32, self.kept, rounds_inputs))
        few_bits = self.kept != torch.float32 or rounds_inputs
        return bounds(self.exact, rounded, self.kept, MARGIN_OF_FEW_BITS if few_bits else MARGIN)


def check_logits(model: GPT2, reference: Reference) -> Iterator[Check]:
    """One pass, the cache in three parts and a padded batch, each against the formula in float64."""
    for ours in (
        whole(model, reference.tokens),
        cached(model, reference.tokens),
        padded(model, reference.tokens),
    ):
        yield against_formula(model, ours, reference)


def against_formula(model: GPT2, ours: Pass, reference: Reference) -> Check:
    name = f"logits, {ours.name}, with the formula in float64"
    difference, bound = largest_difference(ours, reference.exact), reference.bound["logits"]
    found = first_departure(ours, reference.exact, reference.bound)
    if found is None:
        return Check(name, "ok", "", difference, bound)
    where = f"the first to depart is {found.point}, at token {found.token}"
    if len(ours.pad) > 1:
        where += f" of the row with {ours.pad[found.row]} padding"
    where += f" (by {found.difference:.1e}, allowed {found.bound:.1e})"
    known = known_mistake(ours, found, reference.stored, reference.tokens)
    if model.training:
        where += "; the model is in training mode, so dropout is active"
    elif known is not None:
        where += f"; its numbers are those of {known}"
    return Check(name, "failed", where, difference, bound)


@torch.no_grad()
def whole(model: GPT2, tokens: Sequence[int]) -> Pass:
    with recording(model) as seen:
        logits = model(torch.tensor([tokens], device=model.device))
    return Pass("one pass", joined(seen, [logits]), [len(tokens)], [0])


@torch.no_grad()
def cached(model: GPT2, tokens: Sequence[int]) -> Pass:
    """The tokens read into a cache in three parts: many, one, and the rest."""
    parts = three_parts(len(tokens))
    cache = model.new_cache(len(tokens))
    split = torch.split(torch.tensor([tokens], device=model.device), parts, 1)
    with recording(model) as seen:
        logits = [model.unembed(model.hidden_states(part, cache)) for part in split]
    return Pass("a cache in three parts", joined(seen, logits), parts, [0])


@torch.no_grad()
def padded(model: GPT2, tokens: Sequence[int]) -> Pass:
    """The text and its beginnings as the rows of one batch, padded on the left."""
    pads = sorted({min(pad, len(tokens) - 1) for pad in PADS})
    batch = [[0] * pad + list(tokens[: len(tokens) - pad]) for pad in pads]
    with recording(model) as seen:
        logits = model(torch.tensor(batch, device=model.device), pad=torch.tensor(pads))
    return Pass("a padded batch", joined(seen, [logits]), [len(tokens)], pads)


def three_parts(n: int) -> list[int]:
    """Of unequal lengths; fewer for fewer than three tokens.

    >>> three_parts(9), three_parts(2)
    ([4, 1, 4], [1, 1])
    """
    first = max(1, n // 2)
    return [length for length in (first, min(1, n - first), n - first - 1) if length > 0]


@torch.no_grad()
def check_greedy(model: GPT2, reference: Reference) -> Iterator[Check]:
    """The likeliest next tokens, with the cache and without, and whether the formula finds them likeliest too."""
    room = model.config.n_positions
    n_new = min(N_GREEDY, room // 2)
    prompt = reference.tokens[: room - n_new]
    name = f"greedy text of {counted(n_new, 'tokens')}, with and without the cache"
    try:
        ((best,),) = generate(model, [prompt], Greedy(), max_new_tokens=n_new, end_tokens=[])
    except ValueError as error:  # logits that are not finite
        yield failed(name, str(error))
        return
    text = list(prompt)
    for _ in range(n_new):
        text.append(int(model(torch.tensor([text], device=model.device))[0, -1].argmax()))
    without = text[len(prompt) :]
    step = first_difference(best.tokens, without)
    longer = replace(reference, tokens=[*prompt, *best.tokens])
    logits = longer.exact["logits"][len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(best.tokens)[:, None])
    below = float((logits.amax(1, keepdim=True) - chosen).max())
    # Each of the two logits may be off by the bound, so likeliest tokens this near are as good as equal.
    tie = 2 * longer.bound["logits"]
    if step is not None and not _all_ties(logits, step, tie):
        yield failed(name, f"token {step} is another: {best.tokens} with it, {without} without")
    else:
        yield Check(name, "ok")
    name = "greedy text, its tokens the formula's likeliest"
    detail = "" if below <= tie else f"a token of {best.tokens} is not the likeliest, by {below:.1e}"
    yield Check(name, "failed" if detail else "ok", detail, below, tie)


def _all_ties(logits: Tensor, step: int, tie: float) -> bool:
    """Whether the two likeliest tokens of a step are too close to decide between."""
    first, second = logits[step].topk(2).values
    return float(first - second) <= tie


@torch.no_grad()
def check_transformers(model: GPT2, reference: Reference) -> Check:
    """The logits that transformers computes from the same files, in its plain attention."""
    name = "logits, one pass, with transformers"
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return not_checked(name, "transformers is not installed")
    stored = reference.stored
    if reference.quantization:
        return not_checked(name, "transformers does not know minigpt's quantized weights")
    if stored.is_untied() and stored.field("tie_word_embeddings"):
        return not_checked(name, "transformers would tie a pair that differs in the file")
    with quietly(transformers):
        theirs, notes = transformers.GPT2LMHeadModel.from_pretrained(
            stored.directory, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
    if left := {*notes["missing_keys"], *notes["mismatched_keys"]}:
        return not_checked(
            name, f"transformers does not find {', '.join(sorted(map(str, left))[:3])} in these files"
        )
    expected = theirs.eval()(torch.tensor([reference.tokens])).logits[0].double()
    ours = model(torch.tensor([reference.tokens], device=model.device))[0].double().cpu()
    difference = distance(ours, expected)
    bound = 2 * reference.bound["logits"]  # both are off by their own rounding
    detail = "" if difference <= bound else "both read the same files: see the checks above for the point"
    return Check(name, "failed" if detail else "ok", detail, difference, bound)
