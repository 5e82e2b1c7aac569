"""Contrastive decoding: what a large model knows that a small one does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.errors import InvalidRequest
from minigpt.lazy import Tensor
from minigpt.options import REQUIRED, option
from minigpt.sampler.engine.contrast import ContrastMixin, contrast
from minigpt.sampler.engine.decode_loop import Prediction, Reader, without_training
from minigpt.sampler.events import Event, LanguageModel, PromptTooLong, Request
from minigpt.sampler.option_values import MODEL


@dataclass(frozen=True, kw_only=True)
class ContrastiveDecoding(ContrastMixin):
    """Subtracts the log-probabilities of a weaker model, the amateur: less repetitive than greedy, as coherent.

    The scores are log p_model - log p_amateur of the tokens at least `relative_top` (the paper's alpha)
    times as likely as the model's best; others are written only where the options rule out all of these.
    The amateur's logits are divided by `amateur_temperature` first (the paper's tau: 0.5 for GPT-2, 1 for
    OPT). The processors act on the scores.

    The paper then looks for the best text with beams; here, as in O'Brien and Lewis 2023 ("Contrastive
    Decoding Improves Reasoning in Large Language Models"), the best token is taken, or with `do_sample`
    one is sampled. The amateur reads the whole text, as the model does, so prompt and new
    tokens must fit its window, too.

    Source: Li et al. 2022, "Contrastive Decoding: Open-ended Text Generation as Optimization", section 3.
    """

    amateur: LanguageModel = option(
        REQUIRED, "amateur model of the same vocabulary, whose log-probabilities are subtracted",
        group="strategy", kind=MODEL, resolve=lambda name, loaded: loaded.other_model(name),
    )  # fmt: skip
    amateur_temperature: float = option(
        1.0, "temperature of the amateur's logits; 0.5 to 1 is usual", group="strategy", least=1e-6, most=1e4, metavar="T"
    )  # fmt: skip

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        self._check(model, requests)
        events = self.contrasted(model, requests, lambda model: TwoReaders(model, self))
        return without_training(self.amateur, events)  # `run` sees to the model alone

    def _check(self, model: LanguageModel, requests: Sequence[Request]) -> None:
        ours, theirs = model.config.vocab_size, self.amateur.config.vocab_size
        if ours != theirs:
            raise InvalidRequest(
                f"the amateur (--amateur) has {theirs} tokens and the model {ours}: they must share a vocabulary"
            )
        window = self.amateur.config.n_positions
        longest = max(requests, key=lambda request: len(request.prompt) + request.max_new_tokens)
        if len(longest.prompt) + longest.max_new_tokens - 1 > window:
            raise PromptTooLong(
                f"{len(longest.prompt)} prompt tokens + {longest.max_new_tokens} new ones - 1 exceed the window of"
                f" the amateur (--amateur), {window}: shorten the prompt, or ask for fewer new tokens"
            )


class TwoReaders:
    """Reads the texts side by side with both models, and subtracts the amateur's prediction."""

    def __init__(self, model: LanguageModel, strategy: ContrastiveDecoding) -> None:
        self.expert, self.amateur, self.strategy = Reader(model), Reader(strategy.amateur), strategy

    def prompts(self, requests: Sequence[Request]) -> Prediction:
        return self._contrast(self.expert.prompts(requests), self.amateur.prompts(requests))

    def next(self, tokens: Tensor) -> Prediction:
        there = tokens.to(self.strategy.amateur.device)
        return self._contrast(self.expert.next(tokens), self.amateur.next(there))

    def select(self, rows: Sequence[int]) -> None:
        self.expert.select(rows)
        self.amateur.select(rows)

    def _contrast(self, expert: Prediction, amateur: Prediction) -> Prediction:
        better = expert.logits.log_softmax(-1)
        cooled = amateur.logits.to(better.device) / self.strategy.amateur_temperature
        scores = contrast(better, cooled.log_softmax(-1), self.strategy.relative_top)
        return Prediction(expert.logits, scores)
