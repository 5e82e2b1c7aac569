"""Text to token ids and back, as GPT-2 does it: byte-pair encoding in which no byte is ever lost."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

import tiktoken

from minigpt.atomic import all_or_none
from minigpt.json_files import shown
from minigpt.tokenizer import files
from minigpt.tokenizer.bpe import BYTES, check_ids, makeable, spell
from minigpt.tokenizer.stop_strings import StopStrings
from minigpt.tokenizer.streaming import TextStream

UNKNOWN = "\ufffd".encode()  # what an id without a token decodes to

# Merges never cross the borders of these pieces: contractions, words, numbers, signs, white space. GPT-2's
# own pattern ends in \s+(?!\S)|\s+ for "white space, but leave the last one to the word after it". Here that
# is spelled in strides, because the plain form overflows tiktoken's stack on a million spaces.
SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|(?:\s{1000}(?=\s)|\s(?=\s))++|\s"
)


class Tokenizer:
    """Turns text into token ids and ids back into text.

    Args:
        vocab: the id of every token; tokens are written in the byte alphabet, as in vocab.json. Bytes may
            be missing; text that needs them cannot be encoded.
        merges: the pairs to join, the most urgent first, as in merges.txt.
        special_tokens: ids of tokens such as <|endoftext|>, which text stands for only if it is allowed to.
            Whatever `vocab` holds beyond single bytes and merged pairs is one, too.
        words: ids of whole words added after training, which any text may use.
        settings: further entries of tokenizer_config.json, kept in the saved files; `eos_token` names the end
            token, <|endoftext|> if it does not.

    Raises:
        ValueError: the vocabulary lacks every byte or a merged pair, an id is none or is taken twice, or a merge
            uses a token before it can exist.

    Source: Radford et al. 2019, section 2.2.

    >>> from minigpt.tokenizer.bpe import BYTES
    >>> tokenizer = Tokenizer(BYTES, merges=[])                 # 256 tokens, one for each byte
    >>> tokenizer.encode("Hé")
    [72, 195, 169]
    >>> tokenizer.decode([72, 195, 169])
    'Hé'
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        *,
        special_tokens: Mapping[str, int] | None = None,
        words: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        spelled = spell(vocab, merges)
        self.words = dict(words or {})
        rest = {token: vocab[token] for token in vocab if token not in spelled and token not in self.words}
        self.special_tokens = rest | dict(special_tokens or {})
        self._added = self.words | self.special_tokens
        self._vocab, self._merges, self._settings = dict(vocab), list(merges), dict(settings or {})
        check_ids(vocab, self._added)

        self._bytes = {token: text.encode() for text, token in self._added.items()}
        self._bytes |= {vocab[token]: spelling for token, spelling in spelled.items()}
        self.vocab_size = max(self._bytes) + 1  # ids may have gaps; these decode to U+FFFD
        self.end_token = self.special_tokens.get(files.end_token_text(self._settings))

        # tiktoken's ids say which merge goes first; the vocabulary's are free to be in another order.
        made = makeable(merges)
        # It panics on a byte without a rank, so it has all 256; whether the vocabulary has them is seen later.
        self._ids = [vocab.get(token, -1) for token in made]
        self._missing = frozenset(rank for rank, token in enumerate(made) if token not in vocab)
        ranks = {spelled.get(token) or bytes([BYTES[token]]): rank for rank, token in enumerate(made)}
        self._encoding = tiktoken.Encoding("gpt2", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
        self._find_words, self._find_added = _any_of(self.words), _any_of(self._added)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        offline: bool = False,
    ) -> Tokenizer:
        """The tokenizer of the bundled model, of a directory or of a repository on the Hugging Face hub.

        Raises:
            OSError: there is no such model, it has no tokenizer, or it cannot be fetched.
            ValueError: as for `load`.
        """
        # Here, so that whoever only turns text into ids need not wait for the library of the hub.
        from minigpt.hub import tokenizer_files

        return cls.load(tokenizer_files(name_or_dir, revision=revision, offline=offline))

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Tokenizer:
        """Reads vocab.json and merges.txt, or tokenizer.json where those are absent.

        Added tokens are also looked for in added_tokens.json, tokenizer_config.json and tokenizer.json. Those of
        added_tokens.json are special if special_tokens_map.json or tokenizer_config.json give them a purpose.

        Raises:
            FileNotFoundError: neither is there.
            ValueError: a file cannot be read, or describes something else than GPT-2's byte-level BPE; the
                message names the file, what was found and what is supported.
        """
        found = files.read(Path(directory))
        try:
            return cls(
                found.vocab,
                found.merges,
                special_tokens=found.special_tokens,
                words=found.words,
                settings=found.settings,
            )
        except ValueError as error:
            raise ValueError(f"{found.source}: {error}") from None

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of a text; special tokens in it are plain text, unless `allow_special`.

        Half a surrogate pair, which is no character, becomes U+FFFD.

        Raises:
            ValueError: this is no text, or the vocabulary lacks a byte of some character; the message names the
                first such.

        >>> from minigpt.tokenizer.bpe import BYTES
        >>> tokenizer = Tokenizer(BYTES, [], special_tokens={"<|end|>": 256})
        >>> tokenizer.encode("a<|end|>", allow_special=True)
        [97, 256]
        >>> len(tokenizer.encode("a<|end|>"))
        8
        """
        if not isinstance(text, str):
            raise ValueError(f"encode takes one text, got {shown(text)}: encode several one by one")
        tokens: list[int] = []
        pieces = (self._find_added if allow_special else self._find_words).split(text)
        for i, piece in enumerate(pieces):
            if i % 2:  # `split` returns what it found between the pieces
                tokens.append(self._added[piece])
            else:
                ranks = self._encoding.encode_ordinary(piece)
                if self._missing:
                    self._refuse_missing(ranks)
                tokens.extend(self._ids[rank] for rank in ranks)
        return tokens

    def _refuse_missing(self, ranks: Sequence[int]) -> None:
        if self._missing.isdisjoint(ranks):
            return
        in_doubt = self._encoding.decode(ranks)
        unknown = next(c for c in in_doubt if not self._missing.isdisjoint(self._encoding.encode_ordinary(c)))
        n_known = len(self._ids) - len(self._missing)
        raise ValueError(
            f"this tokenizer has no token for {unknown!r} (a vocabulary of {n_known} characters or bytes): "
            "leave it out, or use a tokenizer that has all 256 bytes"
        )

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; what is not UTF-8, and an id without a token, becomes U+FFFD.

        >>> from minigpt.tokenizer.bpe import BYTES
        >>> Tokenizer(BYTES, []).decode([195, 169, 195, 999])
        'é\ufffd\ufffd'
        """
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes of some tokens, which need not be whole characters.

        Raises:
            ValueError: these are no ids.
        """
        try:
            # `index`, because a tensor of one number would be looked up by its identity, not its value.
            return b"".join([self._bytes.get(index(token), UNKNOWN) for token in tokens])
        except TypeError:
            raise ValueError(
                f"decode takes the ids of one text, got {shown(tokens)}: decode several one by one"
            ) from None

    def token_bytes(self) -> list[bytes | None]:
        """What each id spells; None for special tokens and ids without a token."""
        spelled = self._bytes | dict.fromkeys(self.special_tokens.values())
        return [spelled.get(token) for token in range(self.vocab_size)]

    def token_string(self, token: int) -> str:
        """One token, to be shown by itself: U+FFFD stands for a part of a character."""
        return self.decode([token])

    def stream(self, *stop: str, skip: int = 0) -> TextStream:
        """Decodes tokens one by one as they are generated, up to the first of the stop strings if given.

        The first `skip` bytes are left out: see `Completion.taken_back`.
        """
        return TextStream(self, stop, skip)

    def stop_strings(self, *texts: str) -> StopStrings:
        """Texts that end a completion: pass `.completed` as `stop` to `minigpt.sampler.generate`.

        Raises:
            ValueError: a text is empty.

        >>> from minigpt.tokenizer.bpe import BYTES
        >>> stop = Tokenizer(BYTES, []).stop_strings("aab")
        >>> [stop.completed(list(b"aaabc"[:n])) for n in range(1, 6)]
        [False, False, False, True, False]
        """
        return StopStrings(self, texts)

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes vocab.json, merges.txt, tokenizer.json and tokenizer_config.json, all of them or none.

        `load` and transformers' AutoTokenizer read the same tokenizer from it.
        """
        with all_or_none(directory) as aside:
            files.write(aside, self._vocab, self._merges, self.special_tokens, self.words, self._settings)

    def fingerprint(self) -> str:
        """A sha256 of all that decides which ids a text becomes: that of the tokenizer.json which is saved."""
        whole = files.whole_tokenizer(self._vocab, self._merges, self.special_tokens, self.words)
        return hashlib.sha256(files.as_json(whole).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, special_tokens={self.special_tokens})"


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the texts, and of those that begin at one place the longest."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")  # (?!) is never found
