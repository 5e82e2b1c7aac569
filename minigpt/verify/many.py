"""Prompts that take over each other's rows in the KV cache: each must be continued as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minigpt.model import GPT2
from minigpt.sampler import Greedy, generate
from minigpt.sampler.batches import decode_many
from minigpt.sampler.events import Finished
from minigpt.sampler.requests import prepare
from minigpt.verify.logits import Reference
from minigpt.verify.report import Check, failed, first_difference, passed

NAME = "greedy texts of many prompts side by side, as alone"
N_NEW = (5, 2, 4, 3, 6, 1)  # new tokens of each prompt, decoded two at a time


def check_many(model: GPT2, reference: Reference) -> Check:
    """Parts of the fixed text, some of which begin alike, in two rows that one takes over from another."""
    room = model.config.n_positions
    text = reference.tokens[: max(1, room - max(N_NEW))]
    half = len(text) // 2
    prompts = [text, text[: half + 1], text[half:], text, text[: half + 2], text[-1:]]
    limits = [min(n, room - len(prompt) + 1) for n, prompt in zip(N_NEW, prompts, strict=True)]
    requests = [
        prepare(model, [prompt], max_new_tokens=n, end_tokens=[])[0]
        for n, prompt in zip(limits, prompts, strict=True)
    ]
    try:
        together = {}
        for event in decode_many(model, requests, Greedy(), rows_at_once=2):
            if not isinstance(event, Finished):
                raise event.error
            together[event.prompt_index] = event.completions[0].tokens
        groups = [
            generate(model, [prompt], max_new_tokens=n, end_tokens=[])[0]
            for n, prompt in zip(limits, prompts, strict=True)
        ]
    except ValueError as error:  # logits that are not finite, say
        return failed(NAME, str(error))
    for i, (prompt, (alone,)) in enumerate(zip(prompts, groups, strict=True)):
        if not _same(reference, prompt, together[i], alone.tokens):
            return failed(NAME, f"prompt {i}: {together[i]} side by side, {alone.tokens} alone")
    return passed(NAME)


def _same(reference: Reference, prompt: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two texts are the same up to where two tokens are too near to tell apart."""
    step = first_difference(a, b)
    if step is None:
        return True
    logits = replace(reference, tokens=[*prompt, *b[:step]]).exact["logits"][-1]
    return abs(float(logits[a[step]] - logits[b[step]])) <= 2 * reference.bound["logits"]
