"""One run of a strategy: its events are shown while they happen, and collected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from minigpt.errors import InvalidRequest
from minigpt.generate.clock import Clock
from minigpt.generate.screen import EventObserver
from minigpt.sampler.engine.sliding_window import Sliding
from minigpt.sampler.events import (
    Completion,
    Event,
    Finished,
    LanguageModel,
    PrefillDone,
    Request,
    TokenGenerated,
)
from minigpt.sampler.running import run
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.text import StopTest, TextTokenizer, with_text


@dataclass(frozen=True)
class Result:
    """One completion with its text: of which prompt it is, and its place among that prompt's texts, best first."""

    prompt_index: int
    index: int
    completion: Completion

    @property
    def text(self) -> str:
        assert self.completion.text is not None
        return self.completion.text


@dataclass
class Session:
    """A strategy at work on some requests, and what has come of it so far."""

    model: LanguageModel
    tokenizer: TextTokenizer
    stops: StopTest
    strategy: Strategy
    requests: Sequence[Request]
    clock: Clock = field(default_factory=Clock)
    interrupted: bool = False
    failures: dict[int, InvalidRequest] = field(default_factory=dict)  # by prompt: why it has no text
    _generated: dict[tuple[int, int], list[TokenGenerated]] = field(default_factory=dict)
    _finished: dict[int, list[Completion]] = field(default_factory=dict)

    def decode(self, observers: Sequence[EventObserver], bars: Sequence[EventObserver] = ()) -> None:
        """Runs the strategy to its end, or until Ctrl-C; what was generated until then stays.

        A prompt that fails does not take the others along: their texts do not depend on it, so they are
        generated without it.

        Args:
            observers: they show what is generated, or save it.
            bars: they say how far it is, and no more; once a prompt has failed, they stand still.

        Raises:
            InvalidRequest: every prompt failed, or one did while observers were watching.
        """
        try:
            self._run_together(observers, bars)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.clock.stop()
            for observer in (*observers, *bars):
                observer.close()

    def _run_together(self, observers: Sequence[EventObserver], bars: Sequence[EventObserver]) -> None:
        """Runs the strategy on all requests at once; where one of them fails, on each alone."""
        try:
            self._run(range(len(self.requests)), (*observers, *bars))
        except InvalidRequest:
            if observers or len(self.requests) == 1:
                raise
            self._run_one_by_one()

    def _run(self, prompt_indices: Sequence[int], observers: Sequence[EventObserver]) -> None:
        """Runs the strategy on some of the requests."""
        requests = [self.requests[i] for i in prompt_indices]
        for event in run(self.model, requests, self.strategy):
            if not isinstance(event, PrefillDone):
                event = replace(event, prompt_index=prompt_indices[event.prompt_index])
            self._take(event)
            for observer in observers:
                observer.take(event)

    def _run_one_by_one(self) -> None:
        """Runs the strategy on each request that is not finished, alone."""
        for i in [i for i in range(len(self.requests)) if i not in self._finished]:
            self._forget(i)
            try:
                self._run([i], [])
            except InvalidRequest as error:
                self._forget(i)
                self.failures[i] = error
        if len(self.failures) == len(self.requests):
            raise self.failures[0]

    def _forget(self, prompt_index: int) -> None:
        """Drops what was generated for a prompt that is not finished."""
        for place in [place for place in self._generated if place[0] == prompt_index]:
            del self._generated[place]

    def _take(self, event: Event) -> None:
        if isinstance(event, TokenGenerated):
            self.clock.token()
            self._generated.setdefault((event.prompt_index, event.index), []).append(event)
        elif isinstance(event, Finished):
            self._finished[event.prompt_index] = event.completions
        elif isinstance(event, PrefillDone):
            self.clock.prompts_read()

    def results(self) -> list[Result]:
        """All texts, prompt by prompt, best first; unfinished ones as they stand."""
        return [
            Result(prompt_index, index, with_text(completion, self.tokenizer, self.stops))
            for prompt_index in range(len(self.requests))
            for index, completion in enumerate(self._completions(prompt_index))
        ]

    def _completions(self, prompt_index: int) -> list[Completion]:
        if prompt_index in self._finished:
            return self._finished[prompt_index]
        return [self._begun(i, events) for (i, _), events in self._generated.items() if i == prompt_index]

    def _begun(self, prompt_index: int, events: list[TokenGenerated]) -> Completion:
        tokens, logprobs = [event.token for event in events], [event.logprob for event in events]
        reason = self.requests[prompt_index].finish_reason(tokens) or "interrupted"
        traces = [event.trace for event in events if event.trace]
        taken_back = self.requests[prompt_index].taken_back
        return Completion(tokens, logprobs, sum(logprobs), reason, traces=traces, taken_back=taken_back)

    def n_read(self) -> int:
        """How many tokens of the prompts the model reads."""
        return sum(len(request.prompt) - self.n_beyond_window(request) for request in self.requests)

    def n_beyond_window(self, request: Request) -> int:
        """How many of a prompt's tokens a sliding window leaves out."""
        return self.model.start(len(request.prompt)) if isinstance(self.model, Sliding) else 0

    def lengths(self) -> list[int]:
        """How many new tokens each text has."""
        return [len(result.completion.tokens) for result in self.results()]
