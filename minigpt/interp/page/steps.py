"""Each generated token: the alternatives that it had, and what every stage of sampling left of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from minigpt.interp.page import tail
from minigpt.interp.page.budget import LIKELIEST
from minigpt.interp.page.generation import Written
from minigpt.interp.page.observed import Observed
from minigpt.interp.page.packed import id_dtype, pack
from minigpt.interp.page.sliders import Sliders
from minigpt.sampler.choosing import Sampling
from minigpt.sampler.processors import ORDER, Processor, Temperature, chain, name_of_stage
from minigpt.sampler.strategies.beam import Beam
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.token_trace import TokenTrace, flag_style

# Shapes below:  V vocab_size

FROM_TEMPERATURE: tuple[Any, ...] = ORDER[ORDER.index(Temperature) :]
ON_SLIDERS = ("temperature", "top-k", "top-p")
OFF = Sliders()


@dataclass(frozen=True)
class Steps:
    """The generated tokens of a run, as the page has them, and which tokens they name."""

    steps: list[dict[str, Any]]
    sampling: dict[str, Any]
    named: set[int]  # the likeliest alternatives


NO_STEPS = Steps([], {**asdict(OFF), "samples": False, "before": [], "after": []}, set())


def steps_of(written: Written, seen: Observed, strategy: Strategy, all_logits: bool) -> Steps:
    """All that there is to show of the generated tokens.

    Args:
        written: the text.
        seen: the model's pass over it.
        strategy: that wrote it.
        all_logits: whether to keep the logits of all tokens, or of the likeliest.
    """
    assert written.completion is not None
    completion, n_prompt = written.completion, len(written.request.prompt)
    before = processors_before_temperature(strategy, written)
    logits = entering(written, seen, before, log_softmax=isinstance(strategy, Beam))
    named: set[int] = set()
    steps = []
    for i, (token, own) in enumerate(zip(completion.tokens, logits, strict=True)):
        likeliest = ascending(own)[-LIKELIEST:].flip(0)
        named |= set(likeliest.tolist())
        steps.append({
            "position": n_prompt + i,
            "chosen": token,
            "logprob": completion.logprobs[i],
            **_traced(completion.traces[i]),
            "logits": pack(own, "float32") if all_logits else _largest(own, likeliest),
        })  # fmt: skip
    names = [flag_style(name_of_stage(processor)) for processor in before]
    return Steps(steps, sampling(strategy, names, completion.traces), named)


def processors_before_temperature(strategy: Strategy, written: Written) -> list[Processor]:
    """Bias, penalties and bans: the part of the chain that the page's sliders start after."""
    processors = chain(strategy, written.request)
    return list(takewhile(lambda processor: not isinstance(processor, FROM_TEMPERATURE), processors))


def entering(
    written: Written, seen: Observed, before: Sequence[Processor], log_softmax: bool
) -> Iterator[Tensor]:
    """The logits that enter the temperature, for each generated token: (V,) each.

    Beam search's processors act on log-probabilities (`log_softmax`).
    """
    first, n = len(written.request.prompt), len(written.tokens)
    for i, own in enumerate(seen.logits(range(first - 1, n - 1)), start=first):
        rows = own[None].log_softmax(-1) if log_softmax else own[None]
        tokens = torch.tensor([written.tokens[:i]], device=own.device)
        for processor in before:
            rows = processor(rows, tokens)
        yield rows[0].cpu()


def ascending(logits: Tensor) -> Tensor:
    """The tokens from the least to the most likely; of equally likely ones that with the larger id counts as more."""
    return logits.sort(stable=True).indices


def sampling(strategy: Strategy, before: list[str], traces: Sequence[TokenTrace]) -> dict[str, Any]:
    """Where the page's sliders start, what came before them, and which stages of the run they leave out."""
    had = dict.fromkeys(flag_style(stage.stage) for trace in traces for stage in trace.stages)
    start = OFF
    if isinstance(strategy, Sampling) and strategy.samples:
        start = Sliders(strategy.temperature, strategy.top_k, strategy.top_p)
    return {
        **asdict(start),
        "samples": start is not OFF,
        "before": before,
        "after": [stage for stage in had if stage not in {*before, *ON_SLIDERS}],
    }


def _traced(trace: TokenTrace) -> dict[str, Any]:
    facts = asdict(trace)
    facts["stages"] = [{**stage, "stage": flag_style(stage["stage"])} for stage in facts["stages"]]
    return facts


def _largest(logits: Tensor, likeliest: Tensor) -> dict[str, Any]:
    """The logits of the likeliest tokens, and the sum of all others at every temperature."""
    others = logits.clone()
    others[likeliest] = -math.inf
    others = others[others > -math.inf]
    coefficients = tail.fit(others) if len(others) else torch.zeros(0)
    return {
        "ids": pack(likeliest, id_dtype(len(logits))),
        "values": pack(logits[likeliest], "float32"),
        "count": len(others),
        "top": float(others.max()) if len(others) else None,
        "temperatures": list(tail.TEMPERATURES),
        "coefficients": pack(coefficients, "float64"),
    }
