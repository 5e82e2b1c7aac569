"""Decoding several texts side by side, one token each at a time: what most strategies have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from minigpt.errors import InvalidRequest
from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.choice import choose, require_possible, top_logprobs
from minigpt.sampler.engine.reader import ModelReader, Prediction, Reader
from minigpt.sampler.events import Event, Finished, LanguageModel, PrefillDone, Request
from minigpt.sampler.registry import name_of
from minigpt.sampler.strategy import Strategy

# Shapes below:  B rows (texts in progress) · T tokens of the longest prompt · V vocabulary

# (processed scores (B, V), B texts) -> the chosen ids (B,)
Pick = Callable[[Tensor, Sequence[ActiveSequence]], Tensor]


def decode_loop(
    model: LanguageModel,
    requests: Sequence[Request],
    strategy: Strategy,
    *,
    pick: Pick = choose,
    reader: Reader | None = None,
    copies: int = 1,
) -> Iterator[Event]:
    """Continues every prompt by the tokens that `pick` chooses, until each of its `copies` is finished.

    Each prompt is read once, however many copies continue it; a finished text leaves the batch.

    Args:
        pick: chooses from the processed scores.
        reader: reads and predicts; the model's own logits are the scores unless there is one.
    """
    reader = reader or ModelReader(model)
    running = sequences = [
        ActiveSequence.begin(strategy, request, i, j)
        for i, request in enumerate(requests)
        for j in range(copies)
    ]
    seen = reader.read_prompts(sequences[::copies])
    yield PrefillDone()
    if copies > 1:
        rows = [sequence.prompt_index for sequence in sequences]
        reader.select(rows)
        seen = seen.select(rows)
    while True:
        chosen = pick(apply_processors_checked(seen, running, strategy), running)
        _check_chosen(chosen, pick, len(running))
        yield from add_and_report(chosen, seen.logits, running, sequences)
        going = [i for i, sequence in enumerate(running) if sequence.finish_reason is None]
        if not going:
            return
        if len(going) < len(running):
            running = [running[i] for i in going]
            reader.select(going)
        seen = reader.read_next(running)


def _check_chosen(chosen: Tensor, pick: Pick, rows: int) -> None:
    """Refuses what a strategy's `pick` may return by mistake; torch's own message would name neither it nor the shape."""
    if chosen.shape != (rows,):
        name = getattr(pick, "__qualname__", "pick")
        raise InvalidRequest(
            f"{name} returned shape {tuple(chosen.shape)}: it must return ({rows},), one token id for each row"
        )


def apply_processors_checked(
    seen: Prediction, sequences: Sequence[ActiveSequence], strategy: Strategy
) -> Tensor:
    """The scores after each text's own processors: (B, V).

    Raises:
        InvalidRequest: no token is left to choose for one of the texts.
    """
    scores = apply_processors(seen, sequences, strategy)
    if scores is not seen.scores:
        require_possible(scores.amax(-1).tolist(), [sequence.request for sequence in sequences])
    return scores


def apply_processors(seen: Prediction, sequences: Sequence[ActiveSequence], strategy: Strategy) -> Tensor:
    """The scores after each text's own processors, for they see its own tokens: (B, V)."""
    if seen.scores is not seen.logits:
        for sequence, scores in zip(sequences, seen.scores, strict=True):
            sequence.record(name_of(type(strategy)), scores)
    if not any(sequence.processors for sequence in sequences):
        return seen.scores
    rows = [sequence.process(scores) for sequence, scores in zip(sequences, seen.scores, strict=True)]
    if seen.fallback_scores is not None:
        for i, sequence in enumerate(sequences):
            if rows[i].max() == float("-inf"):
                sequence.stages.clear()
                rows[i] = sequence.process(seen.fallback_scores[i])
    return torch.stack(rows)


def add_and_report(
    chosen: Tensor, logits: Tensor, running: Sequence[ActiveSequence], sequences: Sequence[ActiveSequence]
) -> Iterator[Event]:
    """Adds the chosen tokens to the running texts; reports them, and the prompts that are done."""
    for sequence in add_tokens(chosen, logits, running):
        yield sequence.last_event()
        if sequence.finish_reason:
            group = [other for other in sequences if other.prompt_index == sequence.prompt_index]
            yield from finished_events(group)


def add_tokens(chosen: Tensor, logits: Tensor, running: Sequence[ActiveSequence]) -> Iterator[ActiveSequence]:
    """Adds the chosen tokens to the running texts; each text, once its token is added."""
    logprobs = logits.log_softmax(-1)  # the model's own, whatever the processors did
    reported = logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
    if any(map(math.isnan, reported)):  # then all of that row's are
        require_possible(reported, [sequence.request for sequence in running])
    tops = top_logprobs(logprobs, running[0].request.top_logprobs)
    for sequence, *token in zip(running, chosen.tolist(), logits.unbind(), reported, tops, strict=True):
        sequence.add(*token)
        yield sequence


def finished_events(group: Sequence[ActiveSequence]) -> Iterator[Finished]:
    """The event that reports a prompt as done, if all its texts are."""
    if all(sequence.finish_reason for sequence in group):
        ranked = sorted((sequence.completion() for sequence in group), key=lambda done: -done.score)
        yield Finished(group[0].prompt_index, ranked)
