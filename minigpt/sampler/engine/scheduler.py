"""Continuous batching: many prompts side by side in the rows of one memory, where a finished text is replaced at once.

A plain batch lasts as long as its longest text. Here the rows stay full as long as there are prompts: step by step
every text gets a token, and one that is finished gives its row to the next prompt. What a new prompt shares
with a text in progress, such as instructions that all prompts begin with, is copied instead of read again.

Source: Yu et al. 2022, "Orca", section 3, scheduling by iterations; Kwon et al. 2023, "vLLM", for prefixes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from minigpt.errors import InvalidRequest
from minigpt.lazy import torch
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.choice import choose, require_possible
from minigpt.sampler.engine.decode_loop import add_tokens, apply_processors, finished_events
from minigpt.sampler.engine.prefix import common_prefix
from minigpt.sampler.engine.reader import Prediction, RowReader, SharedPrefix
from minigpt.sampler.events import Failed, Finished, Request
from minigpt.sampler.strategy import Strategy

CPU_ROWS, GPU_ROWS = 32, 128  # texts at once; with more, each step takes as much longer
CPU_MEMORY = 2 << 30  # bytes for the keys and values of all rows; on a GPU half of what is free
SLACK = 128  # tokens of room beyond the longest text, after which all move to the front
SHARED = 8  # tokens that a prompt must share with a text for it to be worth while
PASS = 32  # tokens of padding that cost no more than one pass more
AT_ONCE = 4096  # tokens of prompts that are read in one pass

Tokens = tuple[int, ...]


class Scheduler:
    """Texts in progress, each in a row of the reader's memory.

    Args:
        reader: reads the texts; its memory is empty.
        strategy: chooses the tokens.
        rows: how many texts at once, at most.
        memory: how many bytes their keys and values may take; one row is taken in any case.
    """

    def __init__(self, reader: RowReader, strategy: Strategy, rows: int, memory: int) -> None:
        self.reader, self.strategy, self.rows, self.memory = reader, strategy, rows, memory
        self.sequences: list[ActiveSequence] = []  # text i is in row i
        self._groups: dict[int, list[ActiveSequence]] = {}  # the texts of every prompt that is not finished
        self._room = 0

    def run(self, requests: Iterable[tuple[int, Request | InvalidRequest]]) -> Iterator[Finished | Failed]:
        """Continues prompts, each of which has a number; they are asked for when there is a row for them.

        One that is an error already has failed with it.
        """
        waiting = self._waiting(requests)
        new, rows = list[ActiveSequence | Failed](), 0
        for item in waiting:
            if isinstance(item, Failed):
                yield item
                continue
            rows = rows or self._rows_that_fit(_length(item))  # the longest come first
            new.append(item)
            if len(new) == rows:
                break
        yield from self._begin(new, range(len(new)))
        while True:
            yield from self._replace(waiting)
            if not self.sequences:
                return
            self.reader.make_room()
            yield from self._add(self.reader.read_next(self.sequences), self.sequences)

    def _waiting(
        self, requests: Iterable[tuple[int, Request | InvalidRequest]]
    ) -> Iterator[ActiveSequence | Failed]:
        """The texts that are to be written: of each prompt as many as the strategy returns."""
        for number, request in requests:
            if isinstance(request, InvalidRequest):
                yield Failed(number, request)
                continue
            group = [
                ActiveSequence.begin(self.strategy, request, number, j) for j in range(self.strategy.n_texts)
            ]
            self._groups[number] = group
            for sequence in group:
                if sequence.finish_reason is None:  # one before it may have failed
                    yield sequence

    def _rows_that_fit(self, n_tokens: int) -> int:
        a_row = (n_tokens + SLACK) * self.reader.bytes_per_token()
        return max(1, min(self.rows, self.memory // a_row))

    def _reserve(self, new: Sequence[ActiveSequence]) -> None:
        longest = max(map(_length, new))
        if longest > self._room:
            self._room = longest
            self.reader.reserve(longest + SLACK, len(self.sequences) or len(new))

    def _replace(self, waiting: Iterator[ActiveSequence | Failed]) -> Iterator[Finished | Failed]:
        """Gives the rows of finished texts to new ones; where no prompt is left, there are fewer rows."""
        while free := [i for i, sequence in enumerate(self.sequences) if sequence.finish_reason]:
            new = list(islice(waiting, len(free)))
            if not new:
                self._drop_finished()
                return
            yield from self._begin(new, free)

    def _drop_finished(self) -> None:
        """Texts from the last rows move into the rows that are free."""
        going = [i for i, sequence in enumerate(self.sequences) if sequence.finish_reason is None]
        last = [i for i in going if i >= len(going)]
        rows = [i if self.sequences[i].finish_reason is None else last.pop() for i in range(len(going))]
        self.sequences = [self.sequences[i] for i in rows]
        if rows:
            self.reader.select(rows)

    def _begin(
        self, new: Sequence[ActiveSequence | Failed], free: Sequence[int]
    ) -> Iterator[Finished | Failed]:
        """Reads the prompts of new texts into free rows, and chooses their first tokens."""
        yield from (failed for failed in new if isinstance(failed, Failed))
        left = [sequence for sequence in new if isinstance(sequence, ActiveSequence)]
        if left:
            self._reserve(left)
        rows = iter(free)
        while left:
            prompts = [sequence.request.prompt for sequence in left]
            texts = [tuple(sequence.token_ids[:-1]) for sequence in self.sequences]  # as far as they are read
            known = [_known(prompt, texts) for prompt in prompts]
            chosen = in_one_pass(prompts, known)
            group, places = [left[i] for i in chosen], list(islice(rows, len(chosen)))
            seen = self.reader.replace(places, group, [known[i] for i in chosen])
            for row, sequence in zip(places, group, strict=True):
                self.sequences[row : row + 1] = [sequence]  # appends it while the rows fill up
            yield from self._add(seen, group)
            left = [sequence for i, sequence in enumerate(left) if i not in chosen]

    def _add(self, seen: Prediction, sequences: Sequence[ActiveSequence]) -> Iterator[Finished | Failed]:
        """Chooses a token for each text; which prompts are finished by it, or have failed."""
        scores = apply_processors(seen, sequences, self.strategy)
        best = scores.amax(-1).tolist()
        if not all(map(math.isfinite, best)):
            for sequence, score in zip(sequences, best, strict=True):
                yield from self._fail(sequence, score)
            going = [i for i, sequence in enumerate(sequences) if sequence.finish_reason is None]
            if not going:
                return
            sequences, scores, seen = [sequences[i] for i in going], scores[going], seen.select(going)
        for sequence in add_tokens(choose(scores, sequences), seen.logits, sequences):
            if sequence.finish_reason:
                for event in finished_events(self._groups[sequence.prompt_index]):
                    del self._groups[sequence.prompt_index]
                    yield event

    def _fail(self, sequence: ActiveSequence, best: float) -> Iterator[Failed]:
        """Ends all texts of a prompt if this one has no token to go on with."""
        try:
            require_possible([best], [sequence.request])
        except InvalidRequest as error:
            if group := self._groups.pop(sequence.prompt_index, None):
                for other in group:
                    other.finish_reason = "failed"
                yield Failed(sequence.prompt_index, error)


def rows_and_memory(device: torch.device) -> tuple[int, int]:
    """How many texts at once pay off on a device, and the bytes that their keys and values may take."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return GPU_ROWS, free // 2
    return CPU_ROWS, CPU_MEMORY


def _length(sequence: ActiveSequence) -> int:
    """How many tokens of a text are read at most: the last one is not."""
    return len(sequence.request.prompt) + sequence.request.max_new_tokens - 1


def in_one_pass(prompts: Sequence[Tokens], known: Sequence[SharedPrefix]) -> list[int]:
    """Which of some prompts to read in the next pass: the one that has most to read, and those nearly as long.

    What two of them share is read once only: so one of them waits for the next pass, where it is known.

    >>> in_one_pass([(1,) * 9, (2,) * 70, (3,) * 90, (2,) * 60], [SharedPrefix()] * 4)
    [2, 1]
    """
    unread = [len(prompt) - has.n for prompt, has in zip(prompts, known, strict=True)]
    first, *others = sorted(range(len(prompts)), key=lambda i: -unread[i])
    chosen = [first]
    for i in others:
        fits = unread[first] - unread[i] <= PASS and unread[first] * (len(chosen) + 1) <= AT_ONCE
        if fits and all(shared(prompts[i], prompts[j]) < known[i].n + SHARED for j in chosen):
            chosen.append(i)
    return chosen


def _known(prompt: Tokens, texts: Sequence[Tokens]) -> SharedPrefix:
    """The row whose text begins as a prompt does for longest; the prompt's last token is read in any case."""
    n, row = max(((shared(prompt[:-1], text), row) for row, text in enumerate(texts)), default=(0, 0))
    return SharedPrefix(row, n)


def shared(a: Tokens, b: Tokens) -> int:
    """How many tokens two texts begin with alike; none where it is not worth while.

    >>> shared((1,) * 20, (1,) * 9), shared((1, 2), (1, 2))
    (9, 0)
    """
    if a[:SHARED] != b[:SHARED] or len(a) < SHARED:
        return 0
    return common_prefix(a, b)
