"""Speculative decoding: a small model drafts, the large one verifies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from minigpt.lazy import Tensor, torch
from minigpt.options import REQUIRED, option
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.choice import choose
from minigpt.sampler.engine.drafting import DraftOptions, RewindingReader, decode_with_drafts, room
from minigpt.sampler.engine.prefix import common_prefix
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.option_values import MODEL
from minigpt.sampler.processors import chain
from minigpt.sampler.strategy import SecondModel


@dataclass(frozen=True, kw_only=True)
class Speculative(DraftOptions):
    """Lossless speculative decoding with a draft model, whose tokens are verified: same text, fewer passes.

    The draft model generates a few tokens, the model verifies them all in one pass, and continues after the
    last accepted one. It pays off where the draft model is much faster and often right. It must share the
    model's vocabulary. Where a text outgrows the draft model's context length, it goes on without.

    The text is that of `Greedy`, or with `do_sample` that of `Sample` with the same seed. The draft samples by
    the same random numbers as the model, so the more alike their predictions are, the more of its tokens are
    accepted.

    Source: Leviathan et al. 2023 (Fast Inference from Transformers via Speculative Decoding).
    """

    draft: LanguageModel = option(
        REQUIRED, "draft model: a smaller model of the same vocabulary",
        in_python='draft model: a smaller model of the same vocabulary, as minigpt.load("gpt2")[0]',
        group="strategy", kind=MODEL, resolve=lambda name, loaded: loaded.other_model(name),
    )  # fmt: skip

    def models(self) -> Sequence[SecondModel]:
        return [SecondModel("draft", self.draft, optional=True)]

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        return decode_with_drafts(model, requests, self, partial(DraftModel, self, model.config.vocab_size))


class DraftModel:
    """Drafts by a model of its own, which reads a text when it is first asked to go on with it."""

    costly = True

    def __init__(self, strategy: Speculative, vocab_size: int, sequences: list[ActiveSequence]) -> None:
        self._draft, self._vocab_size = strategy.draft, vocab_size
        self._reader = RewindingReader(strategy.draft)
        self._sequences = [sequence for sequence in sequences if self._room(sequence) > 0]
        # Processors of its own, since those of the texts may keep in mind what they have seen.
        self._processors = {
            sequence.prompt_index: chain(strategy, sequence.request) for sequence in self._sequences
        }
        self._read: dict[int, list[int]] = {}  # what the draft model has read of each text, and of drafts

    def propose(self, sequences: list[ActiveSequence], n: int) -> list[list[int]]:
        self._drop_those_done()
        if self._sequences and not self._read:
            self._reader.read_prompts(self._sequences)
            self._read = {
                sequence.prompt_index: list(sequence.request.prompt) for sequence in self._sequences
            }
        drafts = dict(
            zip((sequence.prompt_index for sequence in self._sequences), self._drafts(n), strict=True)
        )
        return [drafts.get(sequence.prompt_index, []) for sequence in sequences]

    def _drop_those_done(self) -> None:
        """A text without room for a draft token will have none later either."""
        going = [
            i
            for i, sequence in enumerate(self._sequences)
            if not sequence.finish_reason and self._room(sequence) > 0
        ]
        if self._read and 0 < len(going) < len(self._sequences):
            self._reader.select(going)
        self._sequences = [self._sequences[i] for i in going]

    def _room(self, sequence: ActiveSequence) -> int:
        """How many tokens to draft: the last one is not read, so it may lie beyond the context length."""
        config = self._draft.config
        if max(sequence.token_ids) >= config.vocab_size:  # padding of the vocabulary, which the draft lacks
            return 0
        return min(room(sequence), config.n_positions - len(sequence.token_ids) + 1)

    def _drafts(self, n: int) -> list[list[int]]:
        """A draft of at most n tokens for each text; those with fewer begin later, so that all end together."""
        imagined = [
            replace(sequence.imagine(), processors=self._processors[sequence.prompt_index])
            for sequence in self._sequences
        ]
        drafts: list[list[int]] = [[] for _ in imagined]
        rooms = [min(n, self._room(sequence)) for sequence in imagined]
        longest = max(rooms, default=0)
        for step in range(longest):
            waiting = [max(0, longest - room - step) for room in rooms]
            known = [
                sequence.token_ids[: -wait or None] for sequence, wait in zip(imagined, waiting, strict=True)
            ]
            logits = self._reader.read(known, 1 if step else self._unread(known))[:, -1]
            for sequence, row, wait, draft in zip(imagined, logits, waiting, drafts, strict=True):
                if not wait:
                    self._add(sequence, self._of_shared_vocabulary(row), draft)
        for sequence in imagined:
            self._read[sequence.prompt_index] = sequence.token_ids[:-1]
        return drafts

    def _unread(self, known: list[list[int]]) -> int:
        """How many tokens at the end of these texts some have not been read, at least one to go on from."""
        read = [self._read[sequence.prompt_index] for sequence in self._sequences]
        return max(1, *(len(new) - common_prefix(new, old) for new, old in zip(known, read, strict=True)))

    def _of_shared_vocabulary(self, logits: Tensor) -> Tensor:
        """The draft's logits for the model's tokens; padding that either lacks is never drafted: (V,)."""
        shared = logits[: self._vocab_size]
        return torch.nn.functional.pad(shared, (0, self._vocab_size - len(shared)), value=float("-inf"))

    def _add(self, sequence: ActiveSequence, logits: Tensor, draft: list[int]) -> None:
        """Adds a token to the draft, unless it has come to an end."""
        scores = logits if sequence.finish_reason else sequence.process(logits)
        if sequence.finish_reason or not scores.max().isfinite():
            sequence.finish_reason = sequence.finish_reason or "nothing to draft"
            sequence.tokens.append(0)  # any: its row stays in the batch and is read on, but not written
            return
        token = int(choose(scores[None], [sequence]))
        draft.append(token)
        sequence.tokens.append(token)
        sequence.finish_reason = sequence.request.finish_reason(sequence.tokens)
