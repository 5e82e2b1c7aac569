"""Looking ahead: the most likely continuations of every text are read before one of them is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.decode_loop import (
    Prediction,
    Text,
    first_likeliest,
    left_padded_batch,
    require_possible,
)
from minigpt.sampler.events import LanguageModel

RULED_OUT = float("-inf")
# Values this close are equal, and the first wins: the same candidate computed in another row of a batch may
# differ in its last bits, and by how much depends on the processor. Float32 keeps values around 1 to 1e-6.
EQUAL = 1e-5

# Shapes below:  B rows (texts) · F those with room for a token more · K candidates · D n_embd · V vocabulary


@dataclass(frozen=True)
class Candidates:
    """The K most likely next tokens of F texts, which have been read.

    Shapes: scores (F, V) after the processors; tokens (F, K), most likely first; states (F, K, D), the
    model's last hidden states at the candidates
    """

    model: LanguageModel
    texts: Sequence[Text]
    scores: Tensor
    tokens: Tensor
    states: Tensor

    def chosen_scores(self) -> Tensor:
        """The candidates' own scores: (F, K)."""
        return self.scores.gather(1, self.tokens)

    def extended(self) -> list[list[Text]]:
        """Each text as it would be with each of its candidates: F lists of K."""
        return [
            [text.imagine(token) for token in tokens]
            for text, tokens in zip(self.texts, self.tokens.tolist(), strict=True)
        ]

    def next_scores(self) -> Tensor:
        """What would follow each candidate, after the processors: (F, K, V)."""
        logits = self.model.unembed(self.states).float()
        return torch.stack(
            [
                torch.stack([text.processed(row) for text, row in zip(texts, rows, strict=True)])
                for texts, rows in zip(self.extended(), logits, strict=True)
            ]
        )


class LookAhead(ABC):
    """A reader that picks: every text has K rows in the cache, alike until each reads a candidate of its own.

    A candidate can be read only where the context has room for it. So where prompt and new tokens exceed it
    by the one token that need not be read, that last token is the most likely. How much room a text has
    depends on that text alone.

    Args:
        model: reads texts and candidates.
        k: how many candidates each text has; no more than there are tokens.
        name: what the step is called in a trace.
    """

    def __init__(self, model: LanguageModel, k: int, name: str) -> None:
        self.model, self.name = model, name
        self.k = min(k, model.config.vocab_size)

    @abstractmethod
    def weigh(self, candidates: Candidates, rows: Sequence[int]) -> Tensor:
        """How good each candidate is; the best is chosen, of equals the most likely.

        `rows` says which of the running texts these are.

        Shapes: (F, K)
        """

    def read_prompts(self, texts: Sequence[Text]) -> Prediction:
        # Even the last new token is read, for only then can it be weighed.
        tokens, self.cache = left_padded_batch(self.model, [text.request for text in texts], spare=1)
        self.prompt_states = self.model.hidden_states(tokens, self.cache)  # (B, S, D)
        return self._predict(self.prompt_states[:, -1], range(len(texts)))

    def pick(self, scores: Tensor, texts: Sequence[Text]) -> Tensor:
        """The best candidate of each text, or where none can be read the most likely.

        Shapes: (B, V) processed, B texts  ->  (B,)
        """
        require_possible(scores.amax(-1).tolist(), [text.request for text in texts])
        likely = torch.stack([self._likely(row) for row in scores])  # (B, K)
        chosen = likely[:, 0].clone()
        n_positions = self.model.config.n_positions
        rows = [i for i, text in enumerate(texts) if len(text.token_ids) < n_positions]
        if rows:  # the others end with this token
            self.cache.select([i * self.k + j for i in rows for j in range(self.k)])
            states = self.model.hidden_states(likely[rows].flatten()[:, None], self.cache)[:, 0]
            self.states = states.view(len(rows), self.k, -1)
            candidates = Candidates(
                self.model, [texts[i] for i in rows], scores[rows], likely[rows], self.states
            )
            values = self.weigh(candidates, rows).masked_fill(
                candidates.chosen_scores() == RULED_OUT, RULED_OUT
            )
            best = (values >= values.amax(-1, keepdim=True) - EQUAL).float().argmax(-1)  # the first of these
            chosen[rows] = likely[rows, best]
            self.places = {i: (at, j) for at, (i, j) in enumerate(zip(rows, best.tolist(), strict=True))}
            self._record(candidates, values)
        return chosen

    def _likely(self, scores: Tensor) -> Tensor:
        """The K candidates of one text: (V,)  ->  (K,)."""
        return first_likeliest(scores, self.k)

    def _record(self, candidates: Candidates, values: Tensor) -> None:
        left = torch.full_like(candidates.scores, RULED_OUT).scatter(1, candidates.tokens, values)
        for text, row in zip(candidates.texts, left, strict=True):
            text.record(self.name, row)

    def select(self, rows: Sequence[int]) -> None:
        self.places = {i: self.places[row] for i, row in enumerate(rows)}

    def read_next(self, texts: Sequence[Text]) -> Prediction:
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
