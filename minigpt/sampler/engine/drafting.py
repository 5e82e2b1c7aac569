"""Lossless drafting: tokens are guessed ahead, and the model checks all guesses of a text in one pass.

What is written has the same distribution as without drafts, and is the same text if the likeliest token is
always taken; only the number of passes changes. Who guesses is up to the strategy: see `Drafter`.

Source: Leviathan et al. 2023 (speculative decoding), section 2 and appendix A.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from minigpt.sampler.choosing import Choosing
from minigpt.sampler.engine.decode_loop import (
    Prediction,
    Reader,
    Text,
    ids,
    likeliest,
    padding,
    require_possible,
)
from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.events import Cache, Event, Finished, LanguageModel, PrefillDone, Request, TokenGenerated
from minigpt.sampler.processors import chain

# Shapes below:  B rows (texts in progress) · T tokens read at once · V vocabulary


@dataclass(frozen=True)
class DraftToken:
    """A token that may come next, and the probabilities it was drawn from: float64 (V,).

    One that was not drawn but looked up has none: it was certain to be proposed.
    """

    token: int
    odds: Tensor | None = None


class Choice(Protocol):
    """How a token is chosen from a text's processed scores (V,)."""

    def pick(self, text: Text, scores: Tensor) -> DraftToken: ...
    def check(self, text: Text, scores: Tensor, guess: DraftToken) -> int:
        """The token to go on with: the guess, if it holds."""


class Drafter(Protocol):
    """Whoever guesses."""

    def propose(self, texts: list[Text]) -> list[list[DraftToken]]:
        """How each text may go on: at most `room` tokens. What is guessed for one text depends on it alone."""


class GreedyAcceptance:
    """Always the likeliest token: a guess holds if it is that."""

    def pick(self, text: Text, scores: Tensor) -> DraftToken:
        return DraftToken(int(scores.max(-1).indices))

    def check(self, text: Text, scores: Tensor, guess: DraftToken) -> int:
        return self.pick(text, scores).token


class SampledAcceptance:
    """Draws each token; every text has a stream of chance of its own."""

    def __init__(self, seed: int, texts: list[Text]) -> None:
        self._chances = {text.prompt_index: RandomStream(seed, text.index) for text in texts}

    def pick(self, text: Text, scores: Tensor) -> DraftToken:
        odds = _probabilities(scores)
        return DraftToken(self._draw(text, odds), odds)

    def check(self, text: Text, scores: Tensor, guess: DraftToken) -> int:
        """A token with the probabilities p that the scores stand for, whatever the guess was drawn from (q).

        A guess x holds with probability min(1, p(x) / q(x)), so it is chosen min(p(x), q(x)) of the time.
        What that leaves of p, max(0, p - q), is made up for where a guess does not hold.
        """
        p, x = _probabilities(scores), guess.token
        q = torch.zeros_like(p).index_fill(0, torch.tensor(x), 1.0) if guess.odds is None else guess.odds
        if self._chances[text.prompt_index].uniform(1) * q[x] < p[x]:
            return x
        return self._draw(text, (p - q).clamp_min(0))

    def _draw(self, text: Text, odds: Tensor) -> int:
        return int(RandomStream.draw(odds.log()[None], [self._chances[text.prompt_index]]))


def _probabilities(scores: Tensor) -> Tensor:
    """In float64, on the CPU, for not every device has it: (V,)."""
    return scores.cpu().double().softmax(-1)


class Movable(Cache, Protocol):
    """A memory whose rows can be cut to different lengths; for one prompt any `Cache` will do."""

    def align(self, pad: Sequence[int], length: int) -> None: ...


class RewindingReader(Reader):
    """Reads several tokens of each text at once, and forgets those that a text did not go on with."""

    def prompts(self, requests: Sequence[Request]) -> Prediction:
        self.pad = padding([request.prompt for request in requests])
        return super().prompts(requests)

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
    strategy: Choosing,
    drafter: Callable[[list[Text], Choice], Drafter],
) -> Iterator[Event]:
    """Continues every prompt by whatever its drafts have right and one token more, until all are finished.

    All texts are in one pass, though they differ in how many guesses they have and how many hold; a
    finished text leaves the batch.

    Args:
        drafter: makes the drafter, from the texts that are to be continued and the way to choose.
    """
    running = [
        Text(request, i, 0, chain(strategy, len(request.prompt), request.end_tokens))
        for i, request in enumerate(requests)
    ]
    choice = (
        SampledAcceptance(strategy.seed, running)
        if strategy.draws and strategy.seed is not None
        else GreedyAcceptance()
    )
    reader = RewindingReader(model)
    logits = reader.prompts(requests).logits[:, None]  # (B, T, V)
    drafts: list[list[DraftToken]] = [[] for _ in running]
    drafting = drafter(running, choice)
    yield PrefillDone()
    while True:
        for text, row, guesses in zip(running, logits, drafts, strict=True):
            yield from _write(text, row[-len(guesses) - 1 :], guesses, choice)
        going = [i for i, text in enumerate(running) if text.finish_reason is None]
        if not going:
            return
        if len(going) < len(running):
            running = [running[i] for i in going]
            reader.select(going)
        drafts = drafting.propose(running)
        sequences = [
            [*text.token_ids, *(guess.token for guess in guesses)]
            for text, guesses in zip(running, drafts, strict=True)
        ]
        logits = reader.read(sequences, 1 + max(map(len, drafts)))


def _write(text: Text, logits: Tensor, guesses: list[DraftToken], choice: Choice) -> Iterator[Event]:
    """Adds to a text the guesses that hold, and one token more; ends where the text does.

    Each position is processed when the text has come to it, so a processor sees what it would without drafts.

    Shapes: logits (guesses + 1, V)
    """
    logprobs = logits.log_softmax(-1)  # the model's own, whatever the processors do
    tops = likeliest(logprobs, text.request.top_logprobs)
    for i, guess in enumerate([*guesses, None]):
        scores = scores_of(text, logits[i])
        token = choice.check(text, scores, guess) if guess else choice.pick(text, scores).token
        text.add(token, logprobs[i, token].item(), tops[i])
        yield TokenGenerated(text.prompt_index, text.index, token, text.logprobs[-1])
        if text.finish_reason:
            yield Finished(text.prompt_index, [text.completion()])
        if text.finish_reason or not guess or token != guess.token:
            return


def scores_of(text: Text, logits: Tensor) -> Tensor:
    """The logits after the text's processors, which must leave something to choose: (V,)  ->  (V,)."""
    scores = text.processed(logits)
    require_possible([scores.max().item()], [text.request])
    return scores


def room(text: Text, num_draft_tokens: int) -> int:
    """How many guesses a text has use for: a pass adds one token more than hold."""
    return min(num_draft_tokens, text.request.max_new_tokens - len(text.tokens) - 1)
