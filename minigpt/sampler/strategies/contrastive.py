"""Contrastive search: likely tokens whose hidden states differ from those of the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.lazy import Tensor, torch
from minigpt.options import option
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.decode_loop import decode_loop
from minigpt.sampler.engine.look_ahead import Candidates, LookAhead
from minigpt.sampler.engine.reader import Prediction
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.strategy import Strategy

# Shapes below:  B rows (texts) · F those with room for a token more · K candidates · S tokens read · D n_embd


@dataclass(frozen=True, kw_only=True)
class Contrastive(Strategy):
    """Of the most likely tokens, takes the least similar to the context: deterministic, little repetition.

    Each of the `top_k` most likely candidates v is read, and the one with the best

        (1 - penalty_alpha) * p(v) - penalty_alpha * max over earlier tokens t of cosine(h_v, h_t)

    is kept: p after the processors, h the model's last hidden state (after the final norm), the prompt's
    tokens among the earlier ones. The pass that reads the candidates also predicts what follows, so a
    token costs one pass of `top_k` rows. `penalty_alpha=0` and `top_k=1` are greedy decoding.

    A candidate can only be weighed where the context has room to read it. So where prompt and new tokens
    exceed the context length by the one token that need not be read, that last token is the most likely one.

    Source: Su et al. 2022, "A Contrastive Framework for Neural Text Generation", section 3.2.
    """

    penalty_alpha: float = option(
        0.6, "degeneration penalty alpha: weight of the maximum cosine similarity to the context",
        group="strategy", least=0, most=1, metavar="A",
    )  # fmt: skip
    top_k: int = option(
        4,
        "number of candidates to choose from; 4 to 10 is usual",
        group="sampling",
        least=1,
        most=1024,
        metavar="K",
    )

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        reader = DissimilarityReader(model, self)
        return decode_loop(model, requests, self, pick=reader.pick, reader=reader)


class DissimilarityReader(LookAhead):
    """Weighs each candidate by its probability, less its likeness to the text so far."""

    def __init__(self, model: LanguageModel, strategy: Contrastive) -> None:
        super().__init__(model, strategy, strategy.top_k)
        self.alpha = strategy.penalty_alpha

    def read_prompts(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        prediction = super().read_prompts(sequences)
        self.past = directions(self.prompt_states)  # of all tokens so far: (B, S, D)
        for i, sequence in enumerate(sequences):
            # In the place of padding the last token once more, for that changes no maximum.
            self.past[i, : self.past.size(1) - len(sequence.request.prompt)] = self.past[i, -1]
        return prediction

    def weigh(self, candidates: Candidates) -> Tensor:
        likeness = (directions(candidates.states) @ self.past[list(candidates.rows)].mT).amax(-1)  # (F, K)
        probabilities = candidates.scores.softmax(-1).gather(1, candidates.tokens)
        return (1 - self.alpha) * probabilities - self.alpha * likeness

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.past = self.past[list(rows)]

    def read_next(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        self.past = torch.cat([self.past, directions(self.chosen_states())[:, None]], 1)
        return super().read_next(sequences)


def directions(x: Tensor) -> Tensor:
    """Vectors of length 1, whose products are cosines: (..., D)  ->  (..., D), float32."""
    return torch.nn.functional.normalize(x.float(), dim=-1)
