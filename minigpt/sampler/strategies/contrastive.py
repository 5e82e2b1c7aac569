"""Contrastive search: likely tokens whose hidden states differ from those of the context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.lazy import Tensor, torch
from minigpt.options import option
from minigpt.sampler.engine.decode_loop import (
    Prediction,
    Text,
    decode_loop,
    first_likeliest,
    left_padded_batch,
    require_possible,
)
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.strategy import Strategy

RULED_OUT = float("-inf")
# Shapes below:  B rows (texts) · F those with room in the window · K candidates · S tokens read · D n_embd


@dataclass(frozen=True, kw_only=True)
class Contrastive(Strategy):
    """Of the most likely tokens, takes the least similar to the context: deterministic, little repetition.

    Each of the `top_k` likeliest candidates v is read, and the one with the best

        (1 - penalty_alpha) * p(v) - penalty_alpha * max over earlier tokens t of cosine(h_v, h_t)

    is kept: p after the processors, h the model's last hidden state (after the final norm), the prompt's
    tokens among the earlier ones. The pass that reads the candidates also predicts what follows, so a
    token costs one pass of `top_k` rows. `penalty_alpha=0` and `top_k=1` are greedy decoding.

    A candidate can only be weighed where the window has room to read it. So where prompt and new tokens
    exceed the window by the one token that need not be read, that last token is the likeliest.

    Source: Su et al. 2022, "A Contrastive Framework for Neural Text Generation", section 3.2.
    """

    penalty_alpha: float = option(
        0.6, "degeneration penalty alpha: weight of the maximum cosine similarity to the context",
        group="strategy", least=0, most=1, metavar="A",
    )  # fmt: skip
    top_k: int = option(
        4, "number of candidates to choose from; 4 to 10 is usual", group="sampling", least=1, metavar="K"
    )

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        reader = Candidates(model, self)
        return decode_loop(model, requests, self, reader.pick, reads=lambda model: reader)


class Candidates:
    """Reads the likeliest continuations of every text, to choose one of them: a reader that picks.

    Every text has K rows in the cache, all alike until each reads a candidate of its own.
    """

    def __init__(self, model: LanguageModel, strategy: Contrastive) -> None:
        self.model, self.strategy = model, strategy
        self.k = min(strategy.top_k, model.config.vocab_size)

    def prompts(self, requests: Sequence[Request]) -> Prediction:
        # Even the last new token is read, for only then can it be weighed.
        tokens, self.cache = left_padded_batch(self.model, requests, spare=1)
        x = self.model.hidden_states(tokens, self.cache)  # (B, S, D)
        self.past = directions(x)
        for i, request in enumerate(requests):
            # In the place of padding the last token once more, for that changes no maximum.
            self.past[i, : tokens.size(1) - len(request.prompt)] = self.past[i, -1]
        return self._predict(x[:, -1], list(range(len(requests))))

    def pick(self, scores: Tensor, texts: list[Text]) -> Tensor:
        """The best candidate of each text, or where none can be read the likeliest.

        Shapes: (B, V) processed, B texts  ->  (B,)
        """
        require_possible(scores.amax(-1).tolist(), [text.request for text in texts])
        likely = torch.stack([first_likeliest(row, self.k) for row in scores])  # (B, K)
        chosen = likely[:, 0].clone()
        window = self.model.config.n_positions
        readable = [i for i, text in enumerate(texts) if len(text.request.prompt) + len(text.tokens) < window]
        if readable:  # the others end with this token
            self.cache.select([i * self.k + j for i in readable for j in range(self.k)])
            values = self._weigh(scores[readable], likely[readable], self.past[readable])  # (F, K)
            best = values.max(-1).indices
            chosen[readable] = likely[readable, best]
            self.rows = {
                i: at * self.k + j for at, (i, j) in enumerate(zip(readable, best.tolist(), strict=True))
            }
            self._tell(scores[readable], likely[readable], values, [texts[i] for i in readable])
        return chosen

    def _weigh(self, scores: Tensor, likely: Tensor, past: Tensor) -> Tensor:
        """Reads the candidates; their probability less the penalty: (F, V), (F, K), (F, S, D)  ->  (F, K)."""
        self.read = self.model.hidden_states(likely.flatten()[:, None], self.cache)[:, 0]  # (F * K, D)
        likeness = (directions(self.read).view(*likely.shape, -1) @ past.mT).amax(-1)
        alpha = self.strategy.penalty_alpha
        values = (1 - alpha) * scores.softmax(-1).gather(1, likely) - alpha * likeness
        return values.masked_fill(scores.gather(1, likely) == RULED_OUT, RULED_OUT)

    def _tell(self, scores: Tensor, likely: Tensor, values: Tensor, texts: list[Text]) -> None:
        if self.strategy.watch:
            after = scores.new_full(scores.shape, RULED_OUT).scatter(1, likely, values)
            for text, *seen in zip(texts, scores, after, strict=True):
                self.strategy.watch(tuple(text.token_ids), type(self.strategy).__name__, *seen)

    def select(self, rows: Sequence[int]) -> None:
        self.rows = {i: self.rows[row] for i, row in enumerate(rows)}
        self.past = self.past[list(rows)]

    def next(self, tokens: Tensor) -> Prediction:
        """What follows the tokens that were picked, and so have been read."""
        rows = list(self.rows.values())
        x = self.read[rows]  # (B, D)
        self.past = torch.cat([self.past, directions(x)[:, None]], 1)
        return self._predict(x, rows)

    def _predict(self, x: Tensor, rows: Sequence[int]) -> Prediction:
        """What follows the texts that now are in these rows of the cache, each of which becomes K."""
        self.cache.select([row for row in rows for _ in range(self.k)])
        logits = self.model.unembed(x).float()
        return Prediction(logits, logits)


def directions(x: Tensor) -> Tensor:
    """Vectors of length 1, whose products are cosines: (..., D)  ->  (..., D), float32."""
    return torch.nn.functional.normalize(x.float(), dim=-1)
