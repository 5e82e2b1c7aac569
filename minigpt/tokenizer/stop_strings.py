"""Where a text ends because it contains a stop string: the one place that knows, for tokens and for text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from minigpt.json_files import shown


class Decoder(Protocol):
    """What stop strings need of a tokenizer."""

    def decode_bytes(self, tokens: Iterable[int]) -> bytes: ...


class StopStrings:
    """Texts that end a completion; what comes before the earliest of them is kept.

    Args:
        decoder: a tokenizer.
        texts: the stop strings; none at all never stops.

    Raises:
        ValueError: a stop string is empty, or no text.

    >>> from minigpt.tokenizer import Tokenizer
    >>> from minigpt.tokenizer.bpe import BYTES
    >>> stop = StopStrings(Tokenizer(BYTES, merges=[]), ["END", "."])
    >>> stop.completed(list(b"one.")), stop.cut("one. two END"), stop.held_back("the EN")
    (True, 'one', 'EN')
    """

    def __init__(self, decoder: Decoder, texts: Sequence[str]) -> None:
        if isinstance(texts, str):
            raise ValueError(f"stop is a list of strings: write [{texts!r}], not {texts!r}")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"a stop string must be a text, got {shown(wrong[0])}")
        if "" in texts:
            raise ValueError(f"a stop string must not be empty, got {list(texts)!r}: every text contains it")
        self.texts = tuple(texts)
        self._decoder = decoder
        self._bytes = [text.encode() for text in texts]
        self._longest = max(map(len, self._bytes), default=0)

    def completed(self, tokens: Sequence[int], skip: int = 0) -> bool:
        """Whether the last of these generated tokens completes a stop string.

        It looks at the last few tokens only, so asking after every token costs the same for any length.

        Args:
            tokens: the generated tokens.
            skip: how many bytes at their beginning belong to the prompt, where nothing is looked for.
        """
        last = self._decoder.decode_bytes(tokens[-1:])
        tail, unread = last, len(tokens) - 1
        while unread > 0 and len(tail) < self._longest - 1 + len(last):
            unread -= 1
            tail = self._decoder.decode_bytes([tokens[unread]]) + tail
        before = len(tail) - len(last)
        # So many tokens are at least as many bytes: what is skipped ends among them, or not within the tail.
        prompt = skip - len(self._decoder.decode_bytes(tokens[: min(unread, skip)]))
        # A stop string that starts any earlier ends before the last token: it was reported for that one.
        return any(tail.find(stop, max(0, prompt, before + 1 - len(stop))) >= 0 for stop in self._bytes)

    def cut(self, text: str) -> str:
        """The part of a text before the earliest stop string, or all of it."""
        return text[: min((text.find(stop) for stop in self.texts if stop in text), default=len(text))]

    def held_back(self, text: str) -> str:
        """The longest end of a text that may be the beginning of a stop string, and so is not shown yet."""
        ends = (text[start:] for start in range(len(text)))
        return next((end for end in ends if any(stop.startswith(end) for stop in self.texts)), "")
