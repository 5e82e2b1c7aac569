"""Beam search: several hypotheses are kept, and the best as a whole wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from minigpt.errors import InvalidRequest
from minigpt.options import option
from minigpt.sampler.engine.beam_search import Choose, Search
from minigpt.sampler.engine.choice import top_k_ids
from minigpt.sampler.engine.reader import ids, read_prompts
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
from minigpt.sampler.strategies.greedy import Greedy
from minigpt.sampler.strategy import MOST_TEXTS, Strategy, num_return_sequences_option

Other = TypeVar("Other", bound=Strategy)


def num_beams_option(default: int) -> Any:
    """The option that every kind of beam search has, with a default of its own."""
    return option(
        default,
        "number of beams: the cost grows in proportion; 4 to 10 is usual",
        group="beams",
        least=1,
        most=MOST_TEXTS,
    )


@dataclass(frozen=True, kw_only=True)
class Beam(Strategy):
    """Keeps the `num_beams` most likely hypotheses: likelier texts than greedy, less diverse, slower.

    A text's score is the sum of its tokens' log-probabilities / length ** length_penalty, the end token
    counted. The processors act on the log-probabilities, and what they leave is not renormalised. A single beam is
    greedy decoding: there they act on the logits, and the score is the sum of the model's own log-probabilities.

    `early_stopping`: True ends with `num_beams` finished texts; False when the best text in progress, at its
    present length, cannot win any more; "never" asks the same at the greatest possible length, where a
    positive `length_penalty` favours long texts.

    Source: Graves 2012; the details are those of transformers 5.23.
    """

    num_beams: int = num_beams_option(5)
    num_return_sequences: int = num_return_sequences_option()
    # Beyond its limits, length ** length_penalty leaves the floats.
    length_penalty: float = option(
        1.0, "exponent of the length that divides a hypothesis' score: above 0 favours long texts, below 0 short ones",
        group="beams", least=-10, most=10, metavar="A",
    )  # fmt: skip
    early_stopping: bool | Literal["never"] = option(
        False, "stopping criterion, as in transformers: true: stop with N finished hypotheses; false: stop when a heuristic"
        " judges that no better hypothesis remains; never: stop only when none can",
        group="beams", choices=(True, False, "never"), metavar="{true,false,never}",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_return_sequences > self.num_beams:
            raise InvalidRequest(
                f"num_return_sequences (--num-return-sequences) must be at most num_beams (--num-beams), {self.num_beams},"
                f" got {self.num_return_sequences}"
            )

    def score(self, total: float, length: int) -> float:
        """What a text of this total and length is worth."""
        penalised: float = total / length**self.length_penalty
        return penalised

    def new_search(self, prompt_index: int, request: Request) -> Search:
        """The search for the texts of one prompt."""
        return Search(self, prompt_index, request)

    def chooser(self, request: Request) -> Choose:
        """How one prompt's search chooses among all continuations of its beams."""
        return lambda totals, n, position: top_k_ids(totals, n)

    def alone(self) -> Strategy:
        """The strategy that a single beam is: greedy decoding."""
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
                beam = BeamExtension(0, event.token, score, reason or "", trace=event.trace)
                yield BeamsExtended(event.prompt_index, [beam])
            elif isinstance(event, Finished):
                (done,) = event.completions
                done = replace(done, score=self.score(done.score, len(done.tokens)))
                event = Finished(event.prompt_index, [done])
            yield event

    def _search(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
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
