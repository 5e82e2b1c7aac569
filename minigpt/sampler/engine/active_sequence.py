"""A text in progress: its tokens, its processors, its random numbers, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.events import Completion, Request, TokenGenerated
from minigpt.sampler.processors import Processor, chain, name_of_stage
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.token_trace import TokenTrace, explain

# Shapes below:  B rows · V vocabulary


@dataclass
class ActiveSequence:
    """One text in progress."""

    request: Request
    prompt_index: int
    index: int  # which of its prompt's texts
    processors: list[Processor]
    random_stream: RandomStream | None = None  # None takes the most likely tokens
    tokens: list[int] = field(default_factory=list)  # new ones only
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    traces: list[TokenTrace] = field(default_factory=list)  # of each token, if the request asks for them
    stages: list[tuple[str, Tensor]] = field(default_factory=list)  # for the next token's trace
    finish_reason: str | None = None

    @classmethod
    def begin(cls, strategy: Strategy, request: Request, prompt_index: int, index: int = 0) -> ActiveSequence:
        """A text of which nothing is written yet."""
        processors = chain(strategy, request, index)
        return cls(request, prompt_index, index, processors, strategy.random_stream(request, index))

    @property
    def token_ids(self) -> list[int]:
        """Prompt and new tokens."""
        return [*self.request.prompt, *self.tokens]

    def imagine(self, *tokens: int) -> ActiveSequence:
        """The text as it would be with these tokens added: for strategies that look ahead."""
        new = [*self.tokens, *tokens]
        reason = self.request.finish_reason(new) if new else None
        return replace(self, request=replace(self.request, trace=False), tokens=new, finish_reason=reason)

    def process(self, logits: Tensor) -> Tensor:
        """The logits after this text's processors: (V,)  ->  (V,)."""
        stages: list[tuple[str, Tensor]] | None = [] if self.request.trace else None
        scores = apply(self.processors, logits[None], [self.token_ids], stages)[0]
        self.stages += [(name, rows[0]) for name, rows in stages or ()]
        return scores

    def record(self, stage: str, scores: Tensor) -> None:
        """Keeps what a stage made of the scores (V,), for the trace of the token that is chosen next."""
        if self.request.trace:
            self.stages.append((stage, scores.clone()))

    def add(self, token: int, logits: Tensor, logprob: float, top: list[tuple[int, float]]) -> None:
        """Adds the chosen token; `logits` (V,) are the model's own."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.top_logprobs.append(top)
        if self.request.trace:
            self.traces.append(explain(logits, self.stages, token))
            self.stages.clear()
        self.finish_reason = self.request.finish_reason(self.tokens)

    def last_event(self) -> TokenGenerated:
        """The event that reports the last token."""
        trace = self.traces[-1] if self.traces else None
        return TokenGenerated(self.prompt_index, self.index, self.tokens[-1], self.logprobs[-1], trace)

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        top = self.top_logprobs if self.request.top_logprobs else []
        score = sum(self.logprobs)
        return Completion(
            self.tokens, self.logprobs, score, self.finish_reason, top,
            traces=self.traces, taken_back=self.request.taken_back,
        )  # fmt: skip


def apply(
    processors: Sequence[Processor],
    logits: Tensor,
    rows: list[list[int]],
    stages: list[tuple[str, Tensor]] | None,
) -> Tensor:
    """The logits after all processors; `rows` are all tokens so far, equally many in each.

    Padding never gets here: prompts of unequal length are processed each by itself.

    Args:
        stages: gets the name of each stage, and a copy of the logits that it left; None if no trace is asked for.
    """
    if processors:
        tokens = torch.tensor(rows, device=logits.device)
        for processor in processors:
            logits = processor(logits, tokens)
            if stages is not None:
                stages.append((name_of_stage(processor), logits.clone()))
    return logits
