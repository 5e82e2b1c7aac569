"""Lossless speculative decoding: the model verifies all draft tokens of a text in one pass.

A draft token is accepted if and only if it is the one that the model itself chooses there: the most likely
one, or the one sampled by that position's own random number. So the text is the same as without drafts,
token for token; only the number of passes changes. Who drafts is up to the strategy: see `Drafter`.

Source: Leviathan et al. 2023, section 2, for verifying in one pass. Their rule of acceptance keeps the
distribution, but not the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from minigpt.lazy import Tensor, torch
from minigpt.options import HUGE, option
from minigpt.sampler.choosing import Choosing
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.choice import choose
from minigpt.sampler.engine.decode_loop import add_and_report, apply_processors_checked
from minigpt.sampler.engine.draft_length import DraftLength, matching
from minigpt.sampler.engine.reader import ModelReader, Prediction, ids, padding
from minigpt.sampler.events import Cache, Event, LanguageModel, PrefillDone, Request
from minigpt.sampler.strategy import Strategy

# Shapes below:  B rows (texts in progress) · T tokens of a pass · V vocabulary


@dataclass(frozen=True, kw_only=True)
class DraftOptions(Choosing):
    """How many tokens are drafted, for strategies that draft."""

    num_draft_tokens: int = option(
        4,
        "maximum number of draft tokens per step, verified in one pass",
        group="strategy",
        least=1,
        below=HUGE,
    )
    draft_schedule: Literal["adaptive", "constant"] = option(
        "adaptive", "number of draft tokens: adaptive drafts as many as pay off, constant always the maximum",
        group="strategy", choices=("adaptive", "constant"), metavar="{adaptive,constant}",
    )  # fmt: skip


class Drafter(Protocol):
    """What proposes draft tokens."""

    costly: bool  # whether proposing takes time worth saving

    def propose(self, sequences: list[ActiveSequence], n: int) -> list[list[int]]:
        """How each text may go on: at most n tokens, and at most `room`. A text's draft depends on it alone."""


class Movable(Cache, Protocol):
    """A memory whose rows can be cut to different lengths; for one prompt any `Cache` will do."""

    def align(self, pad: Sequence[int], length: int) -> None: ...


class RewindingReader(ModelReader):
    """Reads several tokens of each text at once, and forgets those that a text did not go on with."""

    def read_prompts(self, sequences: Sequence[ActiveSequence]) -> Prediction:
        self.pad = padding([sequence.request.prompt for sequence in sequences])
        return super().read_prompts(sequences)

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.pad = [self.pad[row] for row in rows]

    def read(self, rows: list[list[int]], n: int) -> Tensor:
        """Reads the last `n` tokens of each text; all before them must have been read already.

        The texts end together, so a text with fewer unread tokens than others reads some again: that
        costs nothing, and never leaves its window as any filling behind its end could.

        Shapes: the logits of what follows each of these tokens, float32 (B, n, V), at the right for a text
        of fewer tokens
        """
        pad, longest = padding(rows), max(map(len, rows))
        if pad == self.pad:
            self.cache.rewind(longest - n)
        else:
            cast(Movable, self.cache).align(pad, longest - n)
        self.pad = pad
        tokens = ids([([0] * n + row)[-n:] for row in rows], self.model)
        if n == 1:  # as fast as without drafts
            return self.model.next_logits(tokens, self.cache)[:, None].float()
        return self.model.unembed(self.model.hidden_states(tokens, self.cache)).float()


def decode_with_drafts(
    model: LanguageModel,
    requests: Sequence[Request],
    strategy: DraftOptions,
    drafter: Callable[[list[ActiveSequence]], Drafter],
) -> Iterator[Event]:
    """Continues every prompt by whatever its drafts have right and one token more, until all are finished.

    All texts are in one pass, though they differ in how many draft tokens they have and how many are accepted; a
    finished text leaves the batch.

    Args:
        drafter: makes the drafter, from the texts that are to be continued.
    """
    running = [ActiveSequence.begin(strategy, request, i) for i, request in enumerate(requests)]
    reader = RewindingReader(model)
    logits = reader.read_prompts(running).logits[:, None]  # (B, T, V)
    drafts: list[list[int]] = [[] for _ in running]
    proposals = drafts
    drafting, length = drafter(running), DraftLength(strategy.num_draft_tokens)
    yield PrefillDone()
    while True:
        lengths = [len(sequence.tokens) for sequence in running]
        yield from _verify(running, logits, drafts, strategy)
        for sequence, proposal, n in zip(running, proposals, lengths, strict=True):
            length.acceptance(sequence.prompt_index).add(*matching(proposal, sequence.tokens[n:]))
        going = [i for i, sequence in enumerate(running) if sequence.finish_reason is None]
        if not going:
            return
        if len(going) < len(running):
            running = [running[i] for i in going]
            reader.select(going)
        start = length.clock()
        proposals, n = _proposals(running, drafting, length, strategy)
        drafts = [proposal[:n] for proposal in proposals]
        longest = max(map(len, drafts))
        rows = [[*sequence.token_ids, *draft] for sequence, draft in zip(running, drafts, strict=True)]
        logits = reader.read(rows, 1 + longest)
        length.record_step(len(running), longest, length.clock() - start)


def _proposals(
    sequences: list[ActiveSequence], drafter: Drafter, length: DraftLength, strategy: DraftOptions
) -> tuple[list[list[int]], int]:
    """Draft tokens for each text, and how many of them are worth verifying.

    What costs nothing is proposed in any case: so it is known how often it would have been accepted.
    """
    most = strategy.num_draft_tokens
    if strategy.draft_schedule == "constant":
        return drafter.propose(sequences, most), most
    names = [sequence.prompt_index for sequence in sequences]
    if not drafter.costly:
        proposals = drafter.propose(sequences, most)
        return proposals, length.choose(names, list(map(len, proposals)), untried=False)
    n = length.choose(names, [room(sequence) for sequence in sequences], untried=True)
    return drafter.propose(sequences, n) if n else [[] for _ in sequences], n


def _verify(
    sequences: Sequence[ActiveSequence], logits: Tensor, drafts: Sequence[list[int]], strategy: Strategy
) -> Iterator[Event]:
    """Adds to each text the draft tokens that are accepted, and one token more; ends where the text does.

    Each position is processed when the text has come to it, so a processor sees what it would without drafts.

    Shapes: logits (B, T, V), those of texts with fewer draft tokens at the right
    """
    going, n = list(range(len(sequences))), 0
    while going:
        rows = torch.stack([logits[i, n - len(drafts[i]) - 1] for i in going])
        some = [sequences[i] for i in going]
        chosen = choose(apply_processors_checked(Prediction(rows, rows), some, strategy), some)
        yield from add_and_report(chosen, rows, some, some)
        accepted = {
            i for i, token in zip(going, chosen.tolist(), strict=True) if drafts[i][n : n + 1] == [token]
        }
        going = [i for i in going if i in accepted and sequences[i].finish_reason is None]
        n += 1


def room(sequence: ActiveSequence) -> int:
    """How many draft tokens a text has use for: a pass adds one token more than are accepted."""
    return sequence.request.max_new_tokens - len(sequence.tokens) - 1
