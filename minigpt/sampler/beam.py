"""Beam search: several texts are carried along, and the best as a whole wins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

from minigpt.sampler.greedy import Greedy
from minigpt.sampler.strategy import (
    Completion,
    Emitted,
    Event,
    Finished,
    LanguageModel,
    PromptsRead,
    Request,
    Strategy,
    option,
)

if TYPE_CHECKING:
    from torch import Tensor

    Choose = Callable[[Tensor, int], Tensor]  # (totals (R * V,), n) -> the indices of n candidates, in order

# Shapes below:  R live beams of one prompt · V vocabulary


def _early_stopping(text: str) -> bool | Literal["never"]:
    return {"true": True, "false": False, "never": "never"}[text.lower()]  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Beam(Strategy):
    """Carries the `width` likeliest texts along: likelier as a whole than greedy, blander, slower.

    A text's score is the sum of its tokens' log-probabilities / length ** length_penalty, the end token
    counted. The processors act on the log-probabilities, and what they leave is not renormalised.

    `early_stopping`: True ends with `width` finished texts; False when the best text in progress, at its
    present length, cannot win any more; "never" asks the same at the greatest possible length, where a
    positive `length_penalty` favours long texts.

    Source: Graves 2012; the details are those of transformers 5.23.
    """

    implied_by = frozenset({"width"})

    width: int = option(
        5, "texts carried along, at N times the work (4 to 10)",
        group="beams", flag="num-beams", parse=int, metavar="N",
    )  # fmt: skip
    num_return_sequences: int = option(
        1, "how many texts for each prompt", group="beams", parse=int, metavar="N"
    )
    length_penalty: float = option(
        1.0, "above 0 favours long texts, below 0 short ones", group="beams", metavar="A"
    )
    early_stopping: bool | Literal["never"] = option(
        False, "when to stop looking: true is soonest, never is exact",
        group="beams", parse=_early_stopping, metavar="{true,false,never}",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise ValueError(f"width (--num-beams) must be at least 1, got {self.width}")
        if not 1 <= self.num_return_sequences <= self.width:
            raise ValueError(
                f"num_return_sequences must be from 1 to the {self.width} beams, got {self.num_return_sequences}"
            )
        if not -10 <= self.length_penalty <= 10:  # beyond, length ** length_penalty leaves the floats
            raise ValueError(f"length_penalty must be from -10 to 10, got {self.length_penalty}")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(f'early_stopping must be True, False or "never", got {self.early_stopping!r}')

    def chooser(self) -> Choose:
        """How one prompt's search chooses among all continuations of its beams."""
        return lambda totals, n: totals.topk(min(n, totals.numel())).indices

    def alone(self) -> Strategy:
        """What a single beam does: with nothing to weigh against each other, greedy decoding."""
        return same_options(self, Greedy)

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        events = self._search if self.width > 1 else self._single
        return events(model, requests)

    def _single(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        for event in self.alone().decode(model, requests):
            if isinstance(event, Finished):
                (text,) = event.completions
                penalised = text.score / len(text.tokens) ** self.length_penalty
                event = Finished(event.prompt_index, [replace(text, score=penalised)])
            yield event

    def _search(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.steps import ids, read_prompts

        searches = [Search(self, i, request, self.chooser()) for i, request in enumerate(requests)]
        logits, cache = read_prompts(model, requests)  # one row a prompt: every beam starts from it
        yield PromptsRead()
        while True:
            rows: list[int] = []  # for each beam that goes on, the row it grew out of
            first = 0
            sizes = [len(search.live) for search in searches]
            for search, size in zip(searches, sizes, strict=True):
                rows += [first + parent for parent in search.step(logits[first : first + size])]
                first += size
                yield from search.settled()
            searches = [search for search in searches if not search.done]
            if not searches:
                return
            last = [[beam.tokens[-1]] for search in searches for beam in search.live]
            cache.select(rows)
            logits = model.next_logits(ids(last, model), cache).float()


def same_options(strategy: Strategy, other: type[Strategy]) -> Strategy:
    """The `other` strategy with those of its options that this one has too."""
    shared = {option.name for option in fields(other)} & {option.name for option in fields(strategy)}
    return other(**{name: getattr(strategy, name) for name in shared})


@dataclass(frozen=True)
class Hypothesis:
    """One text in progress, or finished."""

    tokens: tuple[int, ...] = ()
    total: float = 0.0  # of the processed log-probabilities
    logprobs: tuple[float, ...] = ()  # of the unprocessed model
    top_logprobs: tuple[list[tuple[int, float]], ...] = ()
    score: float = 0.0
    finish_reason: str = ""


@dataclass
class Search:
    """The search for one prompt's texts."""

    beam: Beam
    prompt_index: int
    request: Request
    choose: Choose
    live: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    finished: list[Hypothesis] = field(default_factory=list)  # the best `width`, best first
    done: bool = False
    shown: int = 0

    def step(self, logits: Tensor) -> list[int]:
        """Lets every beam grow by one token; returns, for each that lives on, which one it grew out of.

        Shapes: (R, V)
        """
        from minigpt.sampler.steps import require_possible

        logprobs = logits.log_softmax(-1)  # (R, V)
        scores = self._processed(logprobs)
        totals = (scores + scores.new_tensor([[beam.total] for beam in self.live])).flatten()
        if self.finished and bool((totals == float("-inf")).all()):
            self.done = True  # nothing can go on: what is finished stands
            return []
        require_possible([totals.max().item()], [self.request])
        # An end token takes a candidate's place, so there are enough for `width` texts to go on.
        n = max(2, 1 + len(self.request.end_tokens)) * self.beam.width
        best = self.choose(totals, n)
        return self._sort(self._grow(best, totals[best].tolist(), logprobs))

    def _processed(self, logprobs: Tensor) -> Tensor:
        from minigpt.sampler.processors import chain
        from minigpt.sampler.steps import apply

        keep = max(2, len(self.request.end_tokens) + 1)  # so that some text can always go on
        processors = chain(self.beam, len(self.request.prompt), self.request.end_tokens, keep)
        return apply(processors, logprobs, [[*self.request.prompt, *beam.tokens] for beam in self.live])

    def _grow(self, best: Tensor, totals: list[float], logprobs: Tensor) -> list[tuple[int, Hypothesis]]:
        """The chosen candidates as texts, each with the beam that it grew out of."""
        from minigpt.sampler.steps import likeliest

        parents, tokens = best // logprobs.size(1), best % logprobs.size(1)
        tops = likeliest(logprobs, self.request.top_logprobs)
        told = logprobs[parents, tokens].tolist()  # the model's own, whatever the processors did
        grown = []
        for parent, token, total, logprob in zip(
            parents.tolist(), tokens.tolist(), totals, told, strict=True
        ):
            if total > float("-inf"):
                old = self.live[parent]
                text = Hypothesis(
                    tokens=(*old.tokens, token),
                    total=total,
                    logprobs=(*old.logprobs, logprob),
                    top_logprobs=(*old.top_logprobs, tops[parent]),
                )
                grown.append((parent, text))
        return grown

    def _sort(self, grown: list[tuple[int, Hypothesis]]) -> list[int]:
        """Sorts candidates, best first, into finished texts and those that live on."""
        going = []
        for rank, (parent, text) in enumerate(grown):
            reason = self.request.finish_reason(text.tokens)
            if reason is None:
                going.append((parent, text))
            elif rank < self.beam.width:  # those behind are there to go on, not to finish
                score = text.total / len(text.tokens) ** self.beam.length_penalty
                self.finished.append(replace(text, score=score, finish_reason=reason))
        self.finished.sort(key=lambda text: -text.score)
        del self.finished[self.beam.width :]
        going = sorted(going, key=lambda pair: -pair[1].total)[: self.beam.width]
        self.live = [text for _, text in going]
        self.done = not going or not self._can_improve()
        return [] if self.done else [parent for parent, _ in going]

    def _can_improve(self) -> bool:
        if len(self.finished) < self.beam.width:
            return True
        if self.beam.early_stopping is True:
            return False
        length = len(self.live[0].tokens)
        if self.beam.early_stopping == "never" and self.beam.length_penalty > 0:
            length = self.request.max_new_tokens
        best_possible: float = self.live[0].total / length**self.beam.length_penalty
        return best_possible > self.finished[-1].score

    def settled(self) -> Iterator[Event]:
        """The tokens on which every text that may still win agrees; at the end, the texts."""
        contenders = self.finished[:1] if self.done else [*self.live, *self.finished]
        first, *others = (text.tokens for text in contenders)
        while self.shown < len(first) and all(first[: self.shown + 1] == t[: self.shown + 1] for t in others):
            logprob = contenders[0].logprobs[self.shown]
            yield Emitted(self.prompt_index, 0, first[self.shown], logprob)
            self.shown += 1
        if self.done:
            winners = self.finished[: self.beam.num_return_sequences]
            yield Finished(self.prompt_index, [self._completion(text) for text in winners])

    def _completion(self, text: Hypothesis) -> Completion:
        top = list(text.top_logprobs) if self.request.top_logprobs else []
        return Completion(list(text.tokens), list(text.logprobs), text.score, text.finish_reason, top)
