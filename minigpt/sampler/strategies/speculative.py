"""Speculative decoding: a small model guesses, the large one checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from minigpt.sampler.choosing import Choosing
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.options import REQUIRED, option
from minigpt.sampler.strategies.sample import SAMPLING

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt.sampler.engine.decode_loop import Text


@dataclass(frozen=True, kw_only=True)
class Speculative(Choosing):
    """Greedy or sampled text, unchanged but faster: a small model guesses ahead, the model checks.

    The draft model writes a few tokens, the model checks them all in one pass, and goes on where they part.
    It pays off where the draft model is much faster and often right. It must share the model's vocabulary.
    Where a text outgrows the draft model's window, it goes on without.

    The text is that of `Greedy`, or if an option of sampling is given that of `Sample` with the same seed.
    The draft samples by the same random numbers as the model, so the more alike their predictions are, the
    more of its guesses hold.

    Source: Leviathan et al. 2023 (Fast Inference from Transformers via Speculative Decoding).
    """

    implied_by = frozenset({"draft"}) | SAMPLING

    draft: LanguageModel = option(
        REQUIRED, "a smaller model of the same vocabulary, which guesses ahead",
        group="strategy", parse=str, resolve=lambda name, loaded: loaded.other_model(name), metavar="NAME_OR_DIR",
    )  # fmt: skip
    num_draft_tokens: int = option(
        4, "the most tokens guessed ahead, to be checked in one pass",
        group="strategy", parse=int, metavar="N",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_draft_tokens < 1:
            raise ValueError(f"num_draft_tokens must be at least 1, got {self.num_draft_tokens}")

    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        from minigpt.sampler.engine.decode_loop import without_training
        from minigpt.sampler.engine.drafting import drafted

        theirs, ours = self.draft.config.vocab_size, model.config.vocab_size
        if theirs != ours:
            raise ValueError(
                f"the draft model (--draft) knows {theirs} tokens, the model {ours}: they must share one"
                " vocabulary; take a draft model of the same tokenizer"
            )
        return without_training(self.draft, drafted(model, requests, self, partial(DraftModel, self)))


class DraftModel:
    """Guesses by a model of its own."""

    def __init__(self, strategy: Speculative, texts: list[Text]) -> None:
        from minigpt.sampler.engine.drafting import RewindingReader
        from minigpt.sampler.processors import chain

        self._strategy = strategy
        self._reader = RewindingReader(strategy.draft)
        self._texts = [text for text in texts if self._room(text) > 0]
        # Processors of its own, since those of the texts may keep in mind what they have seen; and unwatched.
        options = replace(strategy, watch=None)
        self._processors = {text.prompt_index: chain(options, text.request) for text in self._texts}
        if self._texts:
            self._reader.prompts([text.request for text in self._texts])

    def propose(self, texts: list[Text]) -> list[list[int]]:
        self._drop_those_done()
        drafts = dict(zip((text.prompt_index for text in self._texts), self._drafts(), strict=True))
        return [drafts.get(text.prompt_index, []) for text in texts]

    def _drop_those_done(self) -> None:
        """A text without room for a guess will have none later either."""
        going = [i for i, text in enumerate(self._texts) if not text.finish_reason and self._room(text) > 0]
        if 0 < len(going) < len(self._texts):
            self._reader.select(going)
        self._texts = [self._texts[i] for i in going]

    def _room(self, text: Text) -> int:
        """How many tokens to guess: the last guess is not read, so it may lie outside the window."""
        from minigpt.sampler.engine.drafting import room

        in_window = self._strategy.draft.config.n_positions - len(text.token_ids) + 1
        return min(room(text, self._strategy.num_draft_tokens), in_window)

    def _drafts(self) -> list[list[int]]:
        """A draft for each text; those with fewer guesses begin later, so that all end together."""
        imagined = [
            replace(text, tokens=[*text.tokens], processors=self._processors[text.prompt_index])
            for text in self._texts
        ]
        drafts: list[list[int]] = [[] for _ in imagined]
        rooms = [self._room(text) for text in imagined]
        longest = max(rooms, default=0)
        for step in range(longest):
            waiting = [max(0, longest - room - step) for room in rooms]
            known = [text.token_ids[: -wait or None] for text, wait in zip(imagined, waiting, strict=True)]
            # At first two tokens are unread where all guesses held, else one.
            logits = self._reader.read(known, 1 if step else 2)[:, -1]
            for text, row, wait, draft in zip(imagined, logits, waiting, drafts, strict=True):
                if not wait:
                    self._guess(text, row, draft)
        return drafts

    def _guess(self, text: Text, logits: Tensor, draft: list[int]) -> None:
        """Adds a token to the draft, unless it has come to an end."""
        from minigpt.sampler.engine.decode_loop import choose

        scores = logits if text.finish_reason else text.processed(logits)
        if text.finish_reason or not scores.max().isfinite():
            text.finish_reason = text.finish_reason or "nothing to guess"
            text.tokens.append(0)  # any: its row stays in the batch and is read on, but not written
            return
        token = int(choose(scores[None], [text]))
        draft.append(token)
        text.tokens.append(token)
        text.finish_reason = text.request.finish_reason(text.tokens)
