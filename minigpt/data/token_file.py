"""Text as a memory-mapped file of token ids: made once, by all cores, and found again by its fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minigpt.atomic import whole_folder
from minigpt.cli.progress import bar
from minigpt.data.documents import documents, fingerprint
from minigpt.json_files import read_object
from minigpt.tokenizer import Tokenizer

IDS, INDEX, FACTS = "tokens.bin", "documents.npy", "facts.json"
FORMAT = 2  # goes up when the files come to mean something else, so that older ones are not taken for them
AT_ONCE = 256  # documents; bounds what is in memory


@dataclass(frozen=True)
class TokenFile:
    """The documents of a text, or some of them, as token ids in a file that is mapped, not read.

    Each begins with the end token, if the tokenizer has one: what a model is given when it is to begin.
    """

    folder: Path
    ids: np.ndarray  # (tokens,), uint16 or uint32: all documents of the file, one after the other
    spans: np.ndarray  # (documents, 2): where each of these documents begins and ends
    digests: np.ndarray  # (documents,), uint64, of each document's text
    text_sha256: str

    @classmethod
    def open(cls, folder: Path) -> TokenFile:
        """Maps a folder that `tokenise` wrote.

        Raises:
            ValueError: its files do not fit each other.
        """
        try:
            facts = read_object(folder / FACTS)
            index = np.load(folder / INDEX)
            ids = np.memmap(folder / IDS, dtype=facts["dtype"], mode="r")
            borders = np.concatenate([[0], index["end"]]).astype(np.int64)
            if len(ids) != borders[-1]:
                raise ValueError(f"{len(ids):,} of {borders[-1]:,} tokens")
            spans = np.stack([borders[:-1], borders[1:]], axis=1)
            return cls(folder, ids, spans, index["digest"], facts["text_sha256"])
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{folder} is damaged ({error}): delete it, and it is made again") from None

    @property
    def n_tokens(self) -> int:
        """Tokens in these documents, which may be fewer than in the file."""
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())


def default_cache() -> Path:
    """Where token files are kept, for all runs: $XDG_CACHE_HOME/minigpt/tokens."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigpt" / "tokens"


def tokenise(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    cache: Path,
    text_field: str = "text",
    separator: str | None = None,
) -> TokenFile:
    """The token file of some text: the one made before if text and tokenizer are unchanged, else a new one.

    Raises:
        ValueError: as for `documents`, the tokenizer has no token for a character, the text changes while it is
            read, or the disk is full.
    """
    text_sha256 = fingerprint(paths)
    key = f"{FORMAT} {text_sha256} {tokenizer.fingerprint()} {tokenizer.end_token} {text_field}"
    if separator is not None:
        key += f" {separator}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:16]
    if not folder.exists():
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        facts = {"text_sha256": text_sha256, "dtype": dtype.name, "files": list(map(str, paths))}
        try:
            with whole_folder(folder) as aside:
                _write(aside, _encoded(documents(paths, text_field, separator), tokenizer), dtype)
                (aside / FACTS).write_text(json.dumps(facts, indent=2))
                if fingerprint(paths) != text_sha256:
                    names = ", ".join(facts["files"])
                    raise ValueError(f"{names} changed while it was read: start again once it is complete")
        except OSError as error:
            if not folder.exists():  # else another run has made it in the meantime
                reason = f"{cache} cannot be written to ({error.strerror})"
                raise ValueError(f"{reason}: give another folder as --token-cache") from error
    return TokenFile.open(folder)


def _write(folder: Path, encoded: Iterable[tuple[list[int], int]], dtype: np.dtype[Any]) -> None:
    ends, digests = [], []
    with (folder / IDS).open("wb") as file:
        for ids, digest in bar(encoded, unit=" documents"):
            file.write(np.array(ids, dtype).tobytes())
            ends.append(len(ids))
            digests.append(digest)
    index = np.zeros(len(ends), dtype=[("end", np.int64), ("digest", np.uint64)])
    index["end"] = np.cumsum(ends, dtype=np.int64)  # by itself numpy would sum in 32 bits on Windows
    index["digest"] = digests
    np.save(folder / INDEX, index)


def _encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """Each document's ids and the digest of its text, in order."""
    start = [] if tokenizer.end_token is None else [tokenizer.end_token]

    def encode(text: str) -> tuple[list[int], int]:
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
        return start + tokenizer.encode(text), int.from_bytes(digest)

    # Threads will do: the work is done in tiktoken, which lets other threads run meanwhile.
    texts = iter(texts)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(islice(texts, AT_ONCE)):
            yield from pool.map(encode, some)
