"""Beam search: several texts are carried along, and the best as a whole wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from minigpt.sampler.events import (
    BeamExtension,
    BeamsExtended,
    Event,
    Finished,
    LanguageModel,
    PrefillDone,
    Request,
    TokenGenerated,
)
from minigpt.sampler.options import option
from minigpt.sampler.strategies.greedy import Greedy
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.sampler.engine.beam_search import Choose, Search


Other = TypeVar("Other", bound=Strategy)


def _early_stopping(text: str) -> bool | Literal["never"]:
    return {"true": True, "false": False, "never": "never"}[text.lower()]  # type: ignore[return-value]


def num_beams_option(default: int) -> Any:
    """The option that every relative of beam search has, with a default of its own."""
    return option(
        default, "texts carried along, at N times the work (4 to 10)",
        group="beams", parse=int, metavar="N",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Beam(Strategy):
    """Carries the `num_beams` likeliest texts along: likelier as a whole than greedy, blander, slower.

    A text's score is the sum of its tokens' log-probabilities / length ** length_penalty, the end token
    counted. The processors act on the log-probabilities, and what they leave is not renormalised.

    `early_stopping`: True ends with `num_beams` finished texts; False when the best text in progress, at its
    present length, cannot win any more; "never" asks the same at the greatest possible length, where a
    positive `length_penalty` favours long texts.

    Source: Graves 2012; the details are those of transformers 5.23.
    """

    implied_by = frozenset({"num_beams"})

    num_beams: int = num_beams_option(5)
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
        if self.num_beams < 1:
            raise ValueError(f"num_beams (--num-beams) must be at least 1, got {self.num_beams}")
        if not 1 <= self.num_return_sequences <= self.num_beams:
            raise ValueError(
                f"num_return_sequences must be from 1 to the {self.num_beams} beams, got {self.num_return_sequences}"
            )
        if not -10 <= self.length_penalty <= 10:  # beyond, length ** length_penalty leaves the floats
            raise ValueError(f"length_penalty must be from -10 to 10, got {self.length_penalty}")
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise ValueError(f'early_stopping must be True, False or "never", got {self.early_stopping!r}')

    def score(self, total: float, length: int) -> float:
        """What a text of this total and length is worth."""
        penalised: float = total / length**self.length_penalty
        return penalised

    def new_search(self, prompt_index: int, request: Request) -> Search:
        """The search for the texts of one prompt."""
        from minigpt.sampler.engine.beam_search import Search

        return Search(self, prompt_index, request)

    def chooser(self, request: Request) -> Choose:
        """How one prompt's search chooses among all continuations of its beams."""
        from minigpt.sampler.engine.decode_loop import first_likeliest

        return lambda totals, n, position: first_likeliest(totals, n)

    def alone(self) -> Strategy:
        """What a single beam does: with nothing to weigh against each other, greedy decoding."""
        return same_options(self, Greedy)

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        events = self._search if self.num_beams > 1 else self._single
        return events(model, requests)

    def _single(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        texts: list[list[TokenGenerated]] = [[] for _ in requests]
        for event in self.alone().decode(model, requests):
            if isinstance(event, TokenGenerated):
                text = texts[event.prompt_index]
                text.append(event)
                score = self.score(sum(token.logprob for token in text), len(text))
                reason = requests[event.prompt_index].finish_reason([token.token for token in text])
                yield BeamsExtended(event.prompt_index, [BeamExtension(0, event.token, score, reason or "")])
            elif isinstance(event, Finished):
                (done,) = event.completions
                done = replace(done, score=self.score(done.score, len(done.tokens)))
                event = Finished(event.prompt_index, [done])
            yield event

    def _search(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.engine.decode_loop import ids, read_prompts

        searches = [self.new_search(i, request) for i, request in enumerate(requests)]
        logits, cache = read_prompts(model, requests)  # one row a prompt: every beam starts from it
        yield PrefillDone()
        while True:
            rows: list[int] = []  # for each beam that goes on, the row it grew out of
            first = 0
            for search in searches:
                size = len(search.live)
                search.step(logits[first : first + size])
                rows += [first + beam.parent for beam in search.live]
                first += size
                yield from search.events()
            searches = [search for search in searches if not search.done]
            if not searches:
                return
            last = [[beam.tokens[-1]] for search in searches for beam in search.live]
            cache.select(rows)
            logits = model.next_logits(ids(last, model), cache).float()


def same_options(strategy: Strategy, other: type[Other]) -> Other:
    """The `other` strategy with those of its options that this one has too."""
    shared = {option.name for option in fields(other)} & {option.name for option in fields(strategy)}
    return other(**{name: getattr(strategy, name) for name in shared})
