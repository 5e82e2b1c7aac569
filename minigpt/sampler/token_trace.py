"""Why each token was written: what the model thought of it, and what every step on the logits made of that.

explainer = Explainer(requests)
for event in run(model, requests, replace(strategy, watch=explainer.watch)):
    explainer.take(event)
explainer.explanations(prompt_index=0, index=0)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from minigpt.sampler.events import BeamsExtended, Event, Finished, Request, TokenGenerated
from minigpt.sampler.registry import find, names

if TYPE_CHECKING:
    from torch import Tensor

    Text = tuple[int, ...]

# Shapes below:  V vocabulary

UNCHANGED = "unchanged"  # the stage that is told before those of all processors


@dataclass(frozen=True)
class Standing:
    """Where a token stands in a distribution.

    `rank` is 1 for the likeliest. `entropy` is the distribution's own, in bits: 2 ** entropy equally likely
    tokens would leave as much open.
    """

    probability: float
    rank: int
    entropy: float


@dataclass(frozen=True)
class Stage:
    """One step on the logits: how many tokens it ruled out, and how much probability they had before it."""

    stage: str
    removed: int
    mass: float


@dataclass(frozen=True)
class Explanation:
    """One token, before all steps and after the last; what they leave is renormalised."""

    before: Standing
    after: Standing
    stages: list[Stage]


def standing(logits: Tensor, token: int) -> Standing:
    """Where a token stands in the distribution that the logits (V,) mean.

    >>> import torch
    >>> third = standing(torch.tensor([0.5, 0.25, 0.25]).log(), 2)
    >>> round(third.probability, 3), third.rank, round(third.entropy, 3)
    (0.25, 2, 1.5)
    """
    logprobs = logits.float().log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).nansum().item() / math.log(2)  # 0 * -inf counts nothing
    rank = 1 + int((logits > logits[token]).sum())
    return Standing(logprobs[token].exp().item(), rank, abs(entropy))  # -0.0 would look odd


def removal(stage: str, before: Tensor, after: Tensor) -> Stage:
    """What a step ruled out: (V,) both."""
    gone = (before > float("-inf")) & (after == float("-inf"))
    return Stage(stage, int(gone.sum()), before.float().softmax(-1)[gone].sum().item())


@dataclass
class Steps:
    """Steps on one text's logits, one after the other."""

    stages: list[Stage] = field(default_factory=list)
    before: Tensor | None = None  # all steps
    after: Tensor | None = None

    def add(self, stage: str, before: Tensor, after: Tensor) -> None:
        # Cloned, for what is told is one row of a whole batch, which it would keep in memory.
        if self.before is None:
            self.before = before.clone()
        self.after = self.before if stage == UNCHANGED else after.clone()
        if stage != UNCHANGED:
            self.stages.append(removal(stage, before, after))


@dataclass
class Told:
    """What was told of one text: first a strategy's own steps, the same for all texts alike, ..."""

    own: dict[str, Steps] = field(default_factory=dict)
    processed: list[Steps] = field(default_factory=list)  # ... then the processors', once for each of them

    def add(self, stage: str, before: Tensor, after: Tensor) -> None:
        if stage == UNCHANGED:
            self.processed.append(Steps())
        elif not self.processed:
            self.own[stage] = Steps()
        steps = self.processed[-1] if self.processed else self.own[stage]
        steps.add(stage, before, after)

    def explain(self, tokens: Sequence[int]) -> list[Explanation]:
        """Of tokens that one text may go on with. The next of several texts alike has its own turn."""
        steps = self.processed.pop(0) if len(self.processed) > 1 else self.processed[0]
        before = next(iter(self.own.values()), steps).before
        assert before is not None
        assert steps.after is not None
        stages = [stage for own in self.own.values() for stage in own.stages] + steps.stages
        return [
            Explanation(standing(before, token), standing(steps.after, token), stages) for token in tokens
        ]


@dataclass(frozen=True, eq=False)
class Written:
    """A text by its last token. Texts share what they have in common, and one that nobody holds is gone."""

    before: Written | None
    token: int
    explanation: Explanation | None

    @staticmethod
    def path(last: Written | None) -> list[Written]:
        """All tokens, from the first."""
        tokens = []
        while last:
            tokens.append(last)
            last = last.before
        return tokens[::-1]


class Explainer:
    """Collects what a strategy's `watch` is told, and explains the tokens that come of it.

    A token is explained as soon as an event tells of it, so that no more than one step's logits are kept.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._prompts = [request.prompt for request in requests]
        self._told: dict[Text, Told] = {}
        self._heard = False  # of an event, since something was told
        self._emitted: dict[tuple[int, int], Written] = {}  # the last token of each text
        self._beams: dict[int, list[Written | None]] = {}  # of each prompt, those that go on
        self._ended: dict[int, list[Written]] = {}
        self._finished: dict[int, list[list[Explanation | None]]] = {}

    def watch(self, text: Text, stage: str, before: Tensor, after: Tensor) -> None:
        """Told by a strategy: text so far, name of the step, logits before it (V,), after it (V,)."""
        if self._heard:  # all that came of what was told before has been explained
            self._told.clear()
            self._heard = False
        self._told.setdefault(text, Told()).add(stage, before, after)

    def take(self, event: Event) -> None:
        """Explains the tokens that an event tells of."""
        self._heard = True
        if isinstance(event, BeamsExtended):
            self._grow(event)
        elif isinstance(event, TokenGenerated):
            place = event.prompt_index, event.index
            self._emitted[place] = self._next(event, self._emitted.get(place))
        elif isinstance(event, Finished):
            i = event.prompt_index
            self._finished[i] = [self._of(i, completion.tokens) for completion in event.completions]

    def explanations(self, prompt_index: int, index: int) -> list[Explanation | None]:
        """One for each token of a text, finished ones counted from the best; None where nothing was told."""
        if prompt_index in self._finished:
            return self._finished[prompt_index][index]
        emitted = Written.path(self._emitted[prompt_index, index])
        return self._of(prompt_index, [written.token for written in emitted])

    def _next(self, event: TokenGenerated, last: Written | None) -> Written:
        """The token that was emitted; beams have been explained when they grew."""
        if event.prompt_index in self._beams:
            return Written(last, event.token, None)
        return self._after(event.prompt_index, last, [event.token])[0]

    def _grow(self, event: BeamsExtended) -> None:
        parents = self._beams.get(event.prompt_index, [None])
        children = {
            parent: self._after(
                event.prompt_index,
                parents[parent],
                [beam.token for beam in event.beams if beam.parent == parent],
            )
            for parent in {beam.parent for beam in event.beams}
        }
        grown = [(children[beam.parent].pop(0), beam.finish_reason) for beam in event.beams]
        self._beams[event.prompt_index] = [written for written, reason in grown if not reason]
        self._ended.setdefault(event.prompt_index, []).extend(written for written, reason in grown if reason)

    def _after(self, prompt_index: int, last: Written | None, tokens: Sequence[int]) -> list[Written]:
        """Each of these tokens as the one after a text."""
        text = (*self._prompts[prompt_index], *(written.token for written in Written.path(last)))
        told = self._told.get(text)
        explanations = told.explain(tokens) if told else [None] * len(tokens)
        return [Written(last, token, why) for token, why in zip(tokens, explanations, strict=True)]

    def _of(self, prompt_index: int, tokens: list[int]) -> list[Explanation | None]:
        """Those of the text that begins with these tokens."""
        emitted = [last for (i, _), last in self._emitted.items() if i == prompt_index]
        for last in [*self._ended.get(prompt_index, []), *self._beams.get(prompt_index, []), *emitted]:
            begins = Written.path(last)[: len(tokens)]
            if [written.token for written in begins] == tokens:
                return [written.explanation for written in begins]
        raise AssertionError("every text was emitted, or is a beam")


@cache  # every token of a table asks again, and finding the strategies reads their folder
def spelled(stage: str) -> str:
    """A step's name as the command line would write it.

    >>> spelled("TopNSigma"), spelled("XTC"), spelled("my_own_step")
    ('top-n-sigma', 'xtc', 'my-own-step')
    """
    strategies = {find(name).__name__: name for name in names()}
    hyphens = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", "-", stage).lower()
    return strategies.get(stage, hyphens)


def table(strings: Sequence[str], explanations: Sequence[Explanation | None]) -> str:
    """Explanations to be read: one line for each token.

    >>> sure, likely = Standing(1.0, 1, 0.0), Standing(0.6, 1, 1.52)
    >>> print(table([" cat"], [Explanation(likely, sure, [Stage("TopK", 4095, 0.4)])]), end="")
    token   probability  rank    bits of entropy  removed (their probability)
    " cat"  0.6 -> 1     1 -> 1  1.52 -> 0.00     top-k -4095 (0.4)
    """
    rows = [("token", "probability", "rank", "bits of entropy", "removed (their probability)")]
    for string, told in zip(strings, explanations, strict=True):
        name = json.dumps(string, ensure_ascii=False)
        rows.append((name, *_cells(told)) if told else (name, "not told", "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _cells(told: Explanation) -> tuple[str, str, str, str]:
    before, after = told.before, told.after
    removed = (
        f"{spelled(stage.stage)} -{stage.removed} ({stage.mass:.2g})"
        if stage.removed
        else spelled(stage.stage)
        for stage in told.stages
    )
    return (
        f"{before.probability:.3g} -> {after.probability:.3g}",
        f"{before.rank} -> {after.rank}",
        f"{before.entropy:.2f} -> {after.entropy:.2f}",
        ", ".join(removed),
    )
