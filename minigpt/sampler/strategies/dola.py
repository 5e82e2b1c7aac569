"""DoLa: decoding by contrasting the last layer with an earlier one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from minigpt.errors import InvalidRequest
from minigpt.json_files import counted
from minigpt.lazy import Tensor
from minigpt.options import Kind, option
from minigpt.sampler.engine.contrast import ContrastMixin, contrast
from minigpt.sampler.engine.decode_loop import decode_loop
from minigpt.sampler.engine.reader import ModelReader, Prediction
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.option_values import are_ids

# Shapes below:  B rows (texts) · T new tokens · L candidate layers · D n_embd · V vocabulary


def _layers(text: str) -> str | tuple[int, ...]:
    return text if text in ("high", "low") else tuple(int(number) for number in text.split(","))


def _are_layers(value: Any) -> bool:
    return value in ("high", "low") if isinstance(value, str) else are_ids(value) and len(value) > 0


LAYERS = Kind('"high", "low" or layer numbers', _are_layers, _layers, "{high,low,N,N...}")


@dataclass(frozen=True, kw_only=True)
class DoLa(ContrastMixin):
    """Contrasts the last layer's logits with those of an earlier one: aims at factuality more than at style.

    Of the candidate layers that one is taken, at every step anew, whose prediction, as if the model ended
    there, has the largest Jensen-Shannon divergence from the last layer's. The scores are log p_last -
    log p_layer of the tokens at least `relative_top` times as likely as the best; others are written only
    where the options rule out all of these. The processors act on the scores, and the best token is
    taken, or with `do_sample` one is sampled.

    `dola_layers`: "high" or "low", every second layer of the upper or lower half (beyond 40 layers, of the
    last or first 20), or numbers: 0 is the embeddings, l what comes out of layer l. "low" begins at 2, for
    where the head is tied to the embeddings, as in GPT-2, layer 0 predicts the very token that was read; a
    strategy cannot see whether it is tied. The advice is "high" for short answers, "low" for reasoning,
    and `repetition_penalty=1.2` with both.

    Unlike in transformers' former code, every text has a layer of its own (there the batch shares one), the
    divergence is the paper's (there its terms are the other way round), and all layers pass the final norm.

    Source: Chuang et al. 2023, "DoLa: Decoding by Contrasting Layers Improves Factuality", section 2.
    """

    dola_layers: Literal["high", "low"] | Sequence[int] = option(
        "high", "candidate layers to contrast the last one with: the upper or lower half of the others, or those given",
        group="strategy", kind=LAYERS,
    )  # fmt: skip

    def candidates(self, n_layer: int) -> list[int]:
        """The layers from which one is chosen, for a model that has so many.

        Raises:
            InvalidRequest: a number that was asked for is no layer before the last.

        >>> DoLa().candidates(12), DoLa(dola_layers="low").candidates(12)
        ([6, 8, 10], [2, 4])
        """
        if self.dola_layers == "high":
            return list(range(n_layer // 2 if n_layer <= 40 else n_layer - 20, n_layer, 2))
        if self.dola_layers == "low":
            first = min(2, n_layer - 1)
            return list(range(first, n_layer // 2 if n_layer <= 40 else 20, 2)) or [first]
        outside = [layer for layer in self.dola_layers if not 0 <= layer < n_layer]
        if outside:
            raise InvalidRequest(
                f"dola_layers (--dola-layers) of a model with {counted(n_layer, 'layers')} are from 0 to {n_layer - 1},"
                f" for the last is what they are contrasted with; got {outside}"
            )
        return list(self.dola_layers)

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        return decode_loop(model, requests, self, reader=self.row_reader(model))

    def row_reader(self, model: LanguageModel) -> LayerReader:
        return LayerReader(model, self)


class LayerReader(ModelReader):
    """Reads the texts side by side, and contrasts the last layer's prediction with an earlier one's."""

    def __init__(self, model: LanguageModel, strategy: DoLa) -> None:
        super().__init__(model)
        self.strategy = strategy

    def predict(self, tokens: Tensor, cache: Any) -> Prediction:
        streams = self.model.lens_states(tokens, cache)[:, :, -1]  # (n_layer + 1, B, D)
        candidates = self.strategy.candidates(len(streams) - 1)
        logits = self.model.unembed(streams[[*candidates, -1]]).float()  # (L + 1, B, V)
        logprobs = logits.log_softmax(-1)
        early, last = logprobs[:-1], logprobs[-1]
        farthest = divergence(early, last).max(0).indices  # (B,)
        rows = list(range(len(farthest)))
        return contrast(logits[-1], last, early[farthest, rows], self.strategy.relative_top)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """How far apart two predictions are, from 0 to log 2: their Jensen-Shannon divergence, in nats.

    Shapes: log-probabilities (..., V) twice  ->  (...)

    >>> import torch
    >>> divergence(torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.0, 0.0, 1.0]).log())
    tensor(0.6931)
    """
    middle = p.logaddexp(q) - math.log(2)
    sides = [(side.exp() * (side - middle)).nansum(-1) for side in (p, q)]  # 0 * -inf is NaN; treat as 0
    return (sides[0] + sides[1]) / 2
