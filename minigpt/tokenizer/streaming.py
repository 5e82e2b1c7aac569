"""Text from tokens that arrive one by one."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from minigpt.tokenizer.stop_strings import Decoder, StopStrings


class TextStream:
    """Decodes tokens as they are generated; an incomplete character is held back until it is complete.

    All that it returns, joined, is the text that `Tokenizer.decode` gives for the same tokens. With stop
    strings it ends before the one that is completed first, and holds back what may be the beginning of one.
    With `skip`, so many bytes at the beginning belong to the prompt and are left out.

    Raises:
        ValueError: a stop string is empty.

    >>> from minigpt.tokenizer import Tokenizer
    >>> from minigpt.tokenizer.bpe import BYTES
    >>> stream = Tokenizer(BYTES, []).stream("END")
    >>> [stream.feed(token) for token in "aé EN.END!".encode()], stream.finish()
    (['a', '', 'é', ' ', '', '', 'EN.', '', '', '', ''], '')
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = (), skip: int = 0) -> None:
        self._tokens, self._stop = decoder, StopStrings(decoder, stop)
        self._skip = skip  # bytes that are still to be left out
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self._ended = False

    def feed(self, token: int) -> str:
        """The text that is certain now that this token has come; often "", in the middle of a character."""
        spelled = self._tokens.decode_bytes([token])
        self._held += self._characters.decode(spelled[self._skip :])
        self._skip = max(0, self._skip - len(spelled))
        text = self._up_to_stop()
        self._held = "" if self._ended else self._stop.held_back(text)
        return text[: len(text) - len(self._held)]

    def finish(self) -> str:
        """What was held back; a character that stays incomplete is U+FFFD."""
        self._held += self._characters.decode(b"", final=True)
        text, self._held = self._up_to_stop(), ""
        return text

    def _up_to_stop(self) -> str:
        if self._ended:
            return ""
        text = self._stop.cut(self._held)
        self._ended = text != self._held
        return text
