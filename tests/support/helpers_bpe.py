"""A small vocabulary that the tests own, and the definition of byte-pair encoding to compare with."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import regex

from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

# The pattern as OpenAI published it in gpt-2/src/encoder.py.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CHARACTERS = {byte: character for character, byte in BYTES.items()}
TEXT = """The dog said that it wasn't there, and the other dogs didn't believe it: they'd seen him
    in the garden at 10:45, with the three thieves. "That's the thing," said the théâtre's old owner, "they'll
    all say they've seen nothing!!!" — 東京の犬 and 東京の猫 👍👍 <|endoftext|> in 2024 ... ...
"""


def pieces(text: str) -> list[list[str]]:
    """Each piece of a text in the byte alphabet; no merge crosses from one to the next."""
    return [[CHARACTERS[byte] for byte in piece.encode()] for piece in regex.findall(GPT2_PATTERN, text)]


def join(parts: list[str], left: str, right: str) -> list[str]:
    """Joins every such pair, from the left."""
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == (left, right):
            joined[-1] = left + right
        else:
            joined.append(part)
    return joined


def train(text: str, n_merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Joins the most frequent pair, again and again; ids are in order of merges, <|endoftext|> is the last."""
    words, merges = pieces(text), []
    for _ in range(n_merges):
        counts = Counter(pair for word in words for pair in pairwise(word))
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((left, right))
        words = [join(word, left, right) for word in words]
    tokens = [*BYTES, *(left + right for left, right in merges), END_OF_TEXT]
    return {token: i for i, token in enumerate(tokens)}, merges


def encode(vocab: dict[str, int], merges: Sequence[tuple[str, str]], text: str) -> list[int]:
    """Byte-pair encoding by its definition: join the pair whose merge is earliest, until none is left."""
    tokens: list[int] = []
    for parts in pieces(text):
        while pairs := [pair for pair in pairwise(parts) if pair in merges]:
            first = min(pairs, key=merges.index)
            at = next(i for i, pair in enumerate(pairwise(parts)) if pair == first)
            parts[at : at + 2] = ["".join(first)]
        tokens += [vocab[part] for part in parts]
    return tokens


def shuffled(vocab: dict[str, int], seed: int) -> dict[str, int]:
    """The same tokens with ids that follow no order."""
    ids = random.Random(seed).sample(list(vocab.values()), len(vocab))
    return dict(zip(vocab, ids, strict=True))


def write(directory: Path, vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> Path:
    """Writes vocab.json and merges.txt, not by the code under test."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocab))
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (directory / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    return directory


VOCAB, MERGES = train(TEXT, 120)
OWNED = Tokenizer(VOCAB, MERGES)
