"""The search for the texts of one prompt: what beam search does at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from minigpt.lazy import Tensor
from minigpt.sampler.engine.active_sequence import apply
from minigpt.sampler.engine.choice import require_possible, top_logprobs
from minigpt.sampler.events import (
    BeamExtension,
    BeamsExtended,
    Completion,
    Event,
    Finished,
    Request,
    TokenGenerated,
)
from minigpt.sampler.processors import Processor, chain
from minigpt.sampler.token_trace import TokenTrace, explain

if TYPE_CHECKING:
    from minigpt.sampler.strategies.beam import Beam

# (totals (R * V,), n, new tokens so far) -> the indices of n candidates, in order
Choose = Callable[["Tensor", int, int], "Tensor"]

# Shapes below:  R live beams of one prompt · V vocabulary


@dataclass(frozen=True)
class Hypothesis:
    """One text in progress, or finished."""

    parent: int = 0  # which live beam it grew out of
    tokens: tuple[int, ...] = ()
    total: float = 0.0  # of the processed log-probabilities
    logprobs: tuple[float, ...] = ()  # of the unprocessed model
    top_logprobs: tuple[list[tuple[int, float]], ...] = ()
    score: float = 0.0  # the total after the length penalty
    finish_reason: str = ""
    group: int = 0  # of diverse beam search
    traces: tuple[TokenTrace, ...] = ()  # of each token, if the request asks for them

    def extension(self) -> BeamExtension:
        """The event that reports the last step."""
        trace = self.traces[-1] if self.traces else None
        return BeamExtension(self.parent, self.tokens[-1], self.score, self.finish_reason, self.group, trace)


@dataclass
class Search:
    """The search for one prompt's texts; strategies vary it by what they replace."""

    beam: Beam
    prompt_index: int
    request: Request
    group: int = 0  # of diverse beam search
    first: tuple[Processor, ...] = ()  # processors that act before those of the options
    live: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    finished: list[Hypothesis] = field(default_factory=list)  # the best `num_beams`, best first
    ended: list[Hypothesis] = field(default_factory=list)  # those that the last step finished
    done: bool = False
    shown: int = 0  # tokens reported as final
    stages: list[tuple[str, Tensor]] | None = None  # what each processor left, if traces are asked for

    @cached_property
    def processors(self) -> list[Processor]:
        """One chain from the first step to the last, for some processors remember."""
        keep = max(2, len(self.request.end_tokens) + 1)  # so that some text can always go on
        return [*self.first, *chain(self.beam, self.request, keep=keep)]

    @cached_property
    def choose(self) -> Choose:
        return self.beam.chooser(self.request)

    def step(self, logits: Tensor) -> None:
        """Lets every live beam grow by one token.

        Shapes: (R, V)
        """
        logprobs = logits.log_softmax(-1)  # (R, V)
        self.stages = [] if self.request.trace else None
        rows = [[*self.request.prompt, *beam.tokens] for beam in self.live]
        scores = apply(self.processors, logprobs, rows, self.stages)
        totals = scores + scores.new_tensor([[beam.total] for beam in self.live])
        best = totals.max().item()
        if not (self.finished and best == float("-inf")):  # else nothing goes on: what is finished stands
            require_possible([best], [self.request])
        # An end token takes a candidate's place, so there are enough for `num_beams` texts to go on.
        n = max(2, 1 + len(self.request.end_tokens)) * self.beam.num_beams
        grown = self._grow(self.candidates(totals, n), totals.flatten(), logprobs)
        self.ended = self.ending(grown)
        self.finished = sorted([*self.finished, *self.ended], key=lambda hypothesis: -hypothesis.score)[
            : self.beam.num_beams
        ]
        self.live = self.going_on([hypothesis for hypothesis in grown if not hypothesis.finish_reason])
        if not self.live or not self._can_improve():
            self.live, self.done = [], True

    def candidates(self, totals: Tensor, n: int) -> Tensor:
        """The continuations to look at, by their place among all, in order.

        Shapes: (R, V)  ->  about (n,)
        """
        return self.choose(totals.flatten(), n, len(self.live[0].tokens))

    def ending(self, grown: list[Hypothesis]) -> list[Hypothesis]:
        """Of the candidates in order, those that are finished; candidates beyond the first `num_beams` may only continue."""
        return [hypothesis for hypothesis in grown[: self.beam.num_beams] if hypothesis.finish_reason]

    def going_on(self, unfinished: list[Hypothesis]) -> list[Hypothesis]:
        """Of the candidates that are not finished, those that live on, best first."""
        return sorted(unfinished, key=lambda hypothesis: -hypothesis.total)[: self.beam.num_beams]

    def _grow(self, best: Tensor, totals: Tensor, logprobs: Tensor) -> list[Hypothesis]:
        """The chosen candidates as texts."""
        parents, tokens = best // logprobs.size(1), best % logprobs.size(1)
        tops = top_logprobs(logprobs, self.request.top_logprobs)
        own = logprobs[parents, tokens].tolist()  # the model's own, whatever the processors did
        chosen = zip(parents.tolist(), tokens.tolist(), totals[best].tolist(), own, strict=True)
        return [
            replace(
                self._child(parent, token, total, logprob),
                top_logprobs=(*self.live[parent].top_logprobs, tops[parent]),
                traces=self._traces(logprobs[parent], parent, token),
            )
            for parent, token, total, logprob in chosen
            if total > float("-inf")
        ]

    def _traces(self, logprobs: Tensor, parent: int, token: int) -> tuple[TokenTrace, ...]:
        """Those of the parent and one more, if traces are asked for.  Shape: (V,)"""
        if self.stages is None:
            return ()
        stages = [(name, scores[parent]) for name, scores in self.stages]
        return (*self.live[parent].traces, explain(logprobs, stages, token))

    def _child(self, parent: int, token: int, total: float, logprob: float) -> Hypothesis:
        old = self.live[parent]
        tokens = (*old.tokens, token)
        return Hypothesis(
            parent=parent,
            tokens=tokens,
            total=total,
            logprobs=(*old.logprobs, logprob),
            score=self.beam.score(total, len(tokens)),
            finish_reason=self.request.finish_reason(tokens) or "",
            group=self.group,
        )

    def _can_improve(self) -> bool:
        if len(self.finished) < self.beam.num_beams:
            return True
        if self.beam.early_stopping is True or self.beam.num_beams == 1:  # a single beam is greedy
            return False
        length = len(self.live[0].tokens)
        if self.beam.early_stopping == "never" and self.beam.length_penalty > 0:
            length = self.request.max_new_tokens
        return self.beam.score(self.live[0].total, length) > self.finished[-1].score

    def events(self) -> Iterator[Event]:
        """What the last step did: the beams, the tokens that are settled now, and at the end the texts."""
        yield BeamsExtended(
            self.prompt_index, [hypothesis.extension() for hypothesis in (*self.live, *self.ended)]
        )
        yield from self._settled()
        if self.done:
            yield Finished(self.prompt_index, [self._completion(hypothesis) for hypothesis in self.winners()])

    def winners(self) -> list[Hypothesis]:
        """The finished texts that are returned, best first."""
        return self.finished[: self.beam.num_return_sequences]

    def _settled(self) -> Iterator[Event]:
        """The tokens on which every text agrees that may still be the best."""
        # A text in progress always may, for processors may raise what the model finds unlikely.
        contenders = [*self.finished[:1], *self.live]
        first, *others = (hypothesis.tokens for hypothesis in contenders)
        while self.shown < len(first) and all(first[: self.shown + 1] == t[: self.shown + 1] for t in others):
            best, n = contenders[0], self.shown
            trace = best.traces[n] if best.traces else None
            yield TokenGenerated(self.prompt_index, 0, first[n], best.logprobs[n], trace)
            self.shown += 1

    def _completion(self, hypothesis: Hypothesis) -> Completion:
        top = list(hypothesis.top_logprobs) if self.request.top_logprobs else []
        tokens, logprobs, traces = list(hypothesis.tokens), list(hypothesis.logprobs), list(hypothesis.traces)
        return Completion(
            tokens, logprobs, hypothesis.score, hypothesis.finish_reason, top,
            traces=traces, taken_back=self.request.taken_back,
        )  # fmt: skip
