"""Looking ahead: the most likely continuations of every text are read before one of them is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.choice import argmax_within_rounding, require_possible, top_k_ids
from minigpt.sampler.engine.reader import Prediction, left_padded_batch
from minigpt.sampler.events import LanguageModel
from minigpt.sampler.registry import name_of
from minigpt.sampler.strategy import Strategy

RULED_OUT = float("-inf")

# Shapes below:  B rows (texts) · F those with room for a token more · K candidates · D n_embd · V vocabulary


@dataclass(frozen=True)
class Candidates:
    """The K most likely next tokens of F texts, which have been read.

    `rows` says which of all running texts these are.

    Shapes: scores (F, V) after the processors; tokens (F, K), most likely first; states (F, K, D), the
    model's last hidden states at the candidates
    """

    model: LanguageModel
    rows: Sequence[int]
    sequences: Sequence[ActiveSequence]
    scores: Tensor
    tokens: Tensor
    states: Tensor

    def own_scores(self) -> Tensor:
        """The candidates' own scores: (F, K)."""
        return self.scores.gather(1, self.tokens)

    def finished(self) -> Tensor:
        """Whether the text would end with the candidate: bool, (F, K)."""
        ends = [
            [sequence.finish_reason is not None for sequence in sequences] for sequences in self.extended()
        ]
        return torch.tensor(ends, device=self.tokens.device)

    def extended(self) -> list[list[ActiveSequence]]:
        """Each text as it would be with each of its candidates: F lists of K."""
        return [
            [sequence.imagine(token) for token in tokens]
            for sequence, tokens in zip(self.sequences, self.tokens.tolist(), strict=True)
        ]

    def next_scores(self) -> Tensor:
        """What would follow each candidate, after the processors: (F, K, V)."""
        logits = self.model.unembed(self.states).float()
        return torch.stack(
            [
                torch.stack([sequence.process(row) for sequence, row in zip(sequences, rows, strict=True)])
                for sequences, rows in zip(self.extended(), logits, strict=True)
            ]
        )


class LookAhead(ABC):
    """A reader that picks: every text has K rows in the cache, alike until each reads a candidate of its own.

    A candidate can be read only where the context has room for it. So where prompt and new tokens exceed it
    by the one token that need not be read, that last token is the most likely. How much room a text has
    depends on that text alone.

    Args:
        model: reads texts and candidates.
        strategy: gives the step its name in a trace.
        k: how many candidates each text has; no more than there are tokens.
    """

    def __init__(self, model: LanguageModel, strategy: Strategy, k: int) -> None:
        self.model, self.name = model, name_of(type(strategy))
        self.k = min(k, model.config.vocab_size)

    @abstractmethod
    def weigh(self, candidates: Candidates) -> Tensor:
        """How good each candidate is; the best is chosen, of equals the most likely.

        Shapes: (F, K); -inf or NaN for one that cannot be chosen
        """

    def read_prompts(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        # Even the last new token is read, for only then can it be weighed.
        tokens, self.cache = left_padded_batch(
            self.model, [sequence.request for sequence in sequences], spare=1
        )
        self.prompt_states = self.model.hidden_states(tokens, self.cache)  # (B, S, D)
        return self._predict(self.prompt_states[:, -1], range(len(sequences)))

    def pick(self, scores: Tensor, sequences: Sequence[ActiveSequence]) -> Tensor:
        """The best candidate of each text, or where none can be read the most likely.

        Shapes: (B, V) processed, B texts  ->  (B,)
        """
        require_possible(scores.amax(-1).tolist(), [sequence.request for sequence in sequences])
        likely = torch.stack([top_k_ids(row, self.k) for row in scores])  # (B, K)
        chosen = likely[:, 0].clone()
        n_positions = self.model.config.n_positions
        rows = [i for i, sequence in enumerate(sequences) if len(sequence.token_ids) < n_positions]
        if rows:  # the others end with this token
            self.cache.select([i * self.k + j for i in rows for j in range(self.k)])
            states = self.model.hidden_states(likely[rows].flatten()[:, None], self.cache)[:, 0]
            self.states = states.view(len(rows), self.k, -1)
            some = [sequences[i] for i in rows]
            candidates = Candidates(self.model, rows, some, scores[rows], likely[rows], self.states)
            values = self.weigh(candidates)
            values = values.masked_fill(values.isnan() | (candidates.own_scores() == RULED_OUT), RULED_OUT)
            best = argmax_within_rounding(values)
            chosen[rows] = likely[rows, best]
            self.places = {i: (at, j) for at, (i, j) in enumerate(zip(rows, best.tolist(), strict=True))}
            self._record(candidates, values)
        return chosen

    def _record(self, candidates: Candidates, values: Tensor) -> None:
        left = torch.full_like(candidates.scores, RULED_OUT).scatter(1, candidates.tokens, values)
        for sequence, row in zip(candidates.sequences, left, strict=True):
            sequence.record(self.name, row)

    def select(self, rows: Sequence[int]) -> None:
        self.places = {i: self.places[row] for i, row in enumerate(rows)}

    def read_next(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        """What follows the tokens that were picked, and so have been read."""
        return self._predict(self.chosen_states(), [at * self.k + j for at, j in self.places.values()])

    def chosen_states(self) -> Tensor:
        """The hidden states at the tokens that were picked: (B, D)."""
        return torch.stack([self.states[place] for place in self.places.values()])

    def _predict(self, x: Tensor, rows: Sequence[int]) -> Prediction:
        """What follows the texts that now are in these rows of the cache, each of which becomes K."""
        self.cache.select([row for row in rows for _ in range(self.k)])
        logits = self.model.unembed(x).float()
        return Prediction(logits, logits)
