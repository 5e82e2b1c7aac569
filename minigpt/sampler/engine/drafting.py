"""Lossless speculative decoding: the model verifies all draft tokens of a text in one pass.

A draft token is accepted if and only if it is the one that the model itself chooses there: the most likely
one, or the one sampled by that position's own random number. So the text is the same as without drafts,
token for token; only the number of passes changes. Who drafts is up to the strategy: see `Drafter`.

Source: Leviathan et al. 2023, section 2, for verifying in one pass. Their rule of acceptance keeps the
distribution, but not the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

from minigpt.lazy import Tensor
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.choice import choose, require_possible, top_logprobs
from minigpt.sampler.engine.reader import ModelReader, Prediction, ids, padding
from minigpt.sampler.events import Cache, Event, Finished, LanguageModel, PrefillDone, Request
from minigpt.sampler.strategy import Strategy

# Shapes below:  B rows (texts in progress) · T tokens read at once · V vocabulary


class Drafter(Protocol):
    """What proposes draft tokens."""

    def propose(self, texts: list[ActiveSequence]) -> list[list[int]]:
        """How each text may go on: at most `room` tokens. The draft of a text depends on that text alone."""


class Movable(Cache, Protocol):
    """A memory whose rows can be cut to different lengths; for one prompt any `Cache` will do."""

    def align(self, pad: Sequence[int], length: int) -> None: ...


class RewindingReader(ModelReader):
    """Reads several tokens of each text at once, and forgets those that a text did not go on with."""

    def read_prompts(self, texts: Sequence[ActiveSequence]) -> Prediction:
        self.pad = padding([text.request.prompt for text in texts])
        return super().read_prompts(texts)

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.pad = [self.pad[row] for row in rows]

    def read(self, texts: list[list[int]], n: int) -> Tensor:
        """Reads the last `n` tokens of each text; all before them must have been read already.

        The texts end together, so a text with fewer unread tokens than others reads some again: that
        costs nothing, and never leaves its window as any filling behind its end could.

        Shapes: the logits of what follows each of these tokens, float32 (B, n, V), at the right for a text
        of fewer tokens
        """
        pad, longest = padding(texts), max(map(len, texts))
        if pad == self.pad:
            self.cache.rewind(longest - n)
        else:
            cast(Movable, self.cache).align(pad, longest - n)
        self.pad = pad
        tokens = ids([([0] * n + text)[-n:] for text in texts], self.model)
        return self.model.unembed(self.model.hidden_states(tokens, self.cache)).float()


def drafted(
    model: LanguageModel,
    requests: Sequence[Request],
    strategy: Strategy,
    drafter: Callable[[list[ActiveSequence]], Drafter],
) -> Iterator[Event]:
    """Continues every prompt by whatever its drafts have right and one token more, until all are finished.

    All texts are in one pass, though they differ in how many draft tokens they have and how many are accepted; a
    finished text leaves the batch.

    Args:
        drafter: makes the drafter, from the texts that are to be continued.
    """
    running = [ActiveSequence.begin(strategy, request, i) for i, request in enumerate(requests)]
    reader = RewindingReader(model)
    logits = reader.read_prompts(running).logits[:, None]  # (B, T, V)
    drafts: list[list[int]] = [[] for _ in running]
    drafting = drafter(running)
    yield PrefillDone()
    while True:
        for text, row, draft in zip(running, logits, drafts, strict=True):
            yield from _write(text, row[-len(draft) - 1 :], draft)
        going = [i for i, text in enumerate(running) if text.finish_reason is None]
        if not going:
            return
        if len(going) < len(running):
            running = [running[i] for i in going]
            reader.select(going)
        drafts = drafting.propose(running)
        sequences = [[*text.token_ids, *draft] for text, draft in zip(running, drafts, strict=True)]
        logits = reader.read(sequences, 1 + max(map(len, drafts)))


def _write(text: ActiveSequence, logits: Tensor, draft: list[int]) -> Iterator[Event]:
    """Adds to a text the draft tokens that are accepted, and one token more; ends where the text does.

    Each position is processed when the text has come to it, so a processor sees what it would without drafts.

    Shapes: logits (draft tokens + 1, V)
    """
    logprobs = logits.log_softmax(-1)  # the model's own, whatever the processors do
    tops = top_logprobs(logprobs, text.request.top_logprobs)
    for i, drafted_token in enumerate([*draft, None]):
        scores = text.processed(logits[i])
        require_possible([scores.max().item()], [text.request])
        token = int(choose(scores[None], [text]))
        text.add(token, logits[i], logprobs[i, token].item(), tops[i])
        yield text.last_event()
        if text.finish_reason:
            yield Finished(text.prompt_index, [text.completion()])
        if text.finish_reason or token != drafted_token:
            return


def room(text: ActiveSequence, num_draft_tokens: int) -> int:
    """How many draft tokens a text has use for: a pass adds one token more than are accepted."""
    return min(num_draft_tokens, text.request.max_new_tokens - len(text.tokens) - 1)
