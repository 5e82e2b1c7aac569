"""Contrastive decoding: what a large model knows that a small one does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt.options import REQUIRED, option
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.contrast import ContrastMixin, contrast
from minigpt.sampler.engine.decode_loop import decode_loop
from minigpt.sampler.engine.reader import ModelReader, Prediction, SharedPrefix
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.option_values import MODEL
from minigpt.sampler.strategy import SecondModel


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

    def models(self) -> Sequence[SecondModel]:
        return [SecondModel("amateur", self.amateur)]

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        return decode_loop(model, requests, self, reader=self.row_reader(model))

    def row_reader(self, model: LanguageModel) -> TwoReaders:
        return TwoReaders(model, self)


class TwoReaders:
    """Reads the texts side by side with both models, and subtracts the amateur's prediction."""

    def __init__(self, model: LanguageModel, strategy: ContrastiveDecoding) -> None:
        self.expert, self.amateur, self.strategy = ModelReader(model), ModelReader(strategy.amateur), strategy

    def read_prompts(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        return self._contrast(self.expert.read_prompts(sequences), self.amateur.read_prompts(sequences))

    def read_next(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        return self._contrast(self.expert.read_next(sequences), self.amateur.read_next(sequences))

    def select(self, rows: Sequence[int]) -> None:
        self.expert.select(rows)
        self.amateur.select(rows)

    def reserve(self, n_max: int, rows: int) -> None:
        self.expert.reserve(n_max, rows)
        self.amateur.reserve(n_max, rows)

    def bytes_per_token(self) -> int:
        return self.expert.bytes_per_token() + self.amateur.bytes_per_token()

    def replace(
        self, rows: Sequence[int], sequences: Sequence[ActiveSequence], known: Sequence[SharedPrefix]
    ) -> Prediction:
        expert, amateur = (reader.replace(rows, sequences, known) for reader in (self.expert, self.amateur))
        return self._contrast(expert, amateur)

    def make_room(self) -> None:
        self.expert.make_room()
        self.amateur.make_room()

    def _contrast(self, expert: Prediction, amateur: Prediction) -> Prediction:
        better = expert.logits.log_softmax(-1)
        cooled = amateur.logits.to(better.device) / self.strategy.amateur_temperature
        return contrast(expert.logits, better, cooled.log_softmax(-1), self.strategy.relative_top)
