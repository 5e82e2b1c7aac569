"""Token healing: the end of a prompt is taken back, and written again in the tokens that fit what follows.

A prompt is encoded before it is known what follows, so its last tokens may be others than the same text has in the
middle of a document: "ti" is other tokens than "time", and a space is one token with the word after it. So the last tokens
are taken back, and the new ones must spell the same bytes first.

Source: Lundberg 2023, "The Art of Prompt Design: Prompt Boundaries and Token Healing". There the last token is taken
back; here the longest end of the prompt with which a longer token begins, for " Y" and "o" both belong to " York".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from minigpt.lazy import Tensor, torch
from minigpt.sampler.events import Request
from minigpt.sampler.processors.processor import RULED_OUT, Processor, TextContext

REMEMBERED = 256  # masks that are kept

# Shapes below:  B rows · S tokens so far · V vocabulary


class Healer:
    """What a vocabulary makes of the end of a prompt.

    Args:
        token_bytes: what each id spells, which may be a part of a character; None for special tokens and ids without
            a token. See `Tokenizer.token_bytes`.

    >>> healer = Healer([b"a", b"b", b"ab", b"abc", b"c", None])
    >>> healer.taken_back([5, 0, 1]), healer.taken_back([5, 0, 4])  # "ab" may go on as "abc"; "ac" may not
    ((0, 1), ())
    >>> healer.mask(b"ab").nonzero()[:, 0].tolist()
    [0, 2, 3]
    """

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self._token_bytes = token_bytes
        known = sorted((spelled, token) for token, spelled in enumerate(token_bytes) if spelled)
        self._spellings, self._ids = [spelled for spelled, _ in known], [token for _, token in known]
        self._longest = max(map(len, self._spellings), default=0)
        self._masks: dict[bytes, Tensor] = {}

    def heal(self, request: Request, stop: Callable[[Sequence[int], int], bool]) -> Request:
        """The request without the end of its prompt, which its new tokens must spell first.

        As many more tokens may be written as were taken back, and a stop string ends a text only beyond them.

        Args:
            request: what `minigpt.sampler.requests.prepare` returns.
            stop: takes the place of its `stop`, if it has one: of the new tokens, and how many of their bytes do not
                count, whether the text is complete. See `StopStrings.completed`.
        """
        taken = self.taken_back(request.prompt)
        if not taken:
            return request
        ending = Ending(self, self.spelled(taken))
        skip = len(ending.text)
        return replace(
            request,
            prompt=request.prompt[: -len(taken)],
            max_new_tokens=request.max_new_tokens + len(taken),
            stop=request.stop and (lambda new_tokens: stop(new_tokens, skip)),
            taken_back=taken,
            may_follow=ending.mask,
        )

    def taken_back(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """The last tokens of a prompt that would be others if the text went on; its first token always stays.

        They are the longest end of the prompt with which a longer token begins, or the last token where that is
        several white-space characters, of which the last belongs to the word that follows.
        """
        text, start = b"", len(prompt)
        for place in range(len(prompt) - 1, 0, -1):
            spelled = self.spelled(prompt[place : place + 1])
            text = spelled + text
            if not spelled or len(text) > self._longest:
                break
            if len(self._beginning_with(text)) > len(self._spelling(text)) or (
                text == spelled and _is_run(text)
            ):
                start = place
        return tuple(prompt[start:])

    def spelled(self, tokens: Iterable[int]) -> bytes:
        """What ids spell; nothing for special tokens and ids without a token."""
        known = self._token_bytes
        return b"".join(known[token] or b"" for token in tokens if token < len(known))

    def mask(self, rest: bytes) -> Tensor:
        """Which tokens may come where `rest` is still to be spelled: bool, (V,).

        Those that begin with it, and its own beginnings after which tokens can spell what then remains.
        """
        if rest not in self._masks:
            ids = self._beginning_with(rest)
            for n in range(1, len(rest)):
                if (parts := self._spelling(rest[:n])) and self.mask(rest[n:]).any():
                    ids = ids + parts
            if len(self._masks) >= REMEMBERED:
                self._masks.clear()
            self._masks[rest] = torch.zeros(len(self._token_bytes), dtype=torch.bool)
            self._masks[rest][ids] = True
        return self._masks[rest]

    def _beginning_with(self, text: bytes) -> list[int]:
        """The tokens that begin with a text, or are all of it."""
        low = bisect_left(self._spellings, text)
        return self._ids[
            low : bisect_right(self._spellings, text, low, key=lambda spelled: spelled[: len(text)])
        ]

    def _spelling(self, text: bytes) -> list[int]:
        """The tokens that are a text: mostly one or none."""
        low = bisect_left(self._spellings, text)
        return self._ids[low : bisect_right(self._spellings, text, low)]


@dataclass(frozen=True)
class Ending:
    """The end of a prompt that was taken back."""

    healer: Healer
    text: bytes

    def mask(self, new_tokens: Sequence[int]) -> Tensor | None:
        """Which tokens may follow these: bool, (V,); None for any, once they spell all that was taken back."""
        # Every token spells something, so these many are enough to look at.
        rest = self.text[len(self.healer.spelled(new_tokens[: len(self.text)])) :]
        return self.healer.mask(rest) if rest else None


def _is_run(text: bytes) -> bool:
    return len(text) > 1 and text.isspace()


@dataclass(frozen=True)
class Healing:
    """Rules out the tokens that do not spell what was taken back of the prompt, until it is spelled."""

    request: Request

    options: ClassVar[type] = object  # the request asks for it, whatever the strategy

    @classmethod
    def for_text(cls, options: object, context: TextContext) -> Iterator[Processor]:
        if context.request.may_follow:
            yield cls(context.request)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        assert self.request.may_follow is not None
        masks = [self.request.may_follow(row) for row in tokens[:, len(self.request.prompt) :].tolist()]
        if all(mask is None for mask in masks):
            return logits
        allowed = torch.ones(logits.shape, dtype=torch.bool)
        for row, mask in zip(allowed, masks, strict=True):
            if mask is not None:
                row[: len(mask)] = mask
                row[len(mask) :] = False  # a model may have more rows than its tokenizer has tokens
        return logits.masked_fill(~allowed.to(logits.device), RULED_OUT)
