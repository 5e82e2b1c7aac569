"""Models to test decoding with: one that looks its answers up, and a tiny GPT-2 with random weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minigpt import GPT2, GPT2Config

Text = tuple[int, ...]


class FakeCache:
    """Remembers the tokens themselves, so that a mix-up of rows changes what comes next."""

    def __init__(self, n_max: int, rows: int, pad: Tensor | None) -> None:
        self.n_max, self.length = n_max, 0
        self.texts: list[Text] = [()] * rows
        self.pads = [0] * rows if pad is None else pad.tolist()

    def extend(self, tokens: Tensor) -> None:
        self.texts = [(*old, *new) for old, new in zip(self.texts, tokens.tolist(), strict=True)]
        self.length += tokens.size(1)
        assert self.length <= self.n_max, "more tokens than there was room reserved for"

    def rewind(self, length: int) -> None:
        self.texts, self.length = [text[:length] for text in self.texts], length

    def select(self, rows: Sequence[int]) -> None:
        self.texts, self.pads = [self.texts[row] for row in rows], [self.pads[row] for row in rows]

    def align(self, pad: Sequence[int], length: int) -> None:
        real = [text[old:] for text, old in zip(self.texts, self.pads, strict=True)]
        assert all(length - new <= len(text) for text, new in zip(real, pad, strict=True)), "never read"
        self.texts = [((0,) * new + text)[:length] for text, new in zip(real, pad, strict=True)]
        self.pads, self.length = list(pad), length


class FakeModel:
    """A language model given as a rule from a text, padding left out, to the logits of what follows it."""

    def __init__(
        self,
        rule: Callable[[Text], Sequence[float]],
        end_tokens: Sequence[int] = (),
        n_positions: int = 64,
    ) -> None:
        self.rule = rule
        self.config = GPT2Config(
            vocab_size=len(rule((0,))), n_positions=n_positions, eos_token_id=list(end_tokens)
        )
        self.device = torch.device("cpu")
        self.reads: list[tuple[int, ...]] = []  # the shape of every batch that was read

    def hidden_states(self, tokens: Tensor, cache: FakeCache) -> Tensor:
        assert tokens.size(0) == len(cache.texts)
        self.reads.append(tuple(tokens.shape))
        columns = []
        for i in range(tokens.size(1)):
            cache.extend(tokens[:, i : i + 1])
            texts = [text[pad:] for text, pad in zip(cache.texts, cache.pads, strict=True)]
            assert max(map(len, texts)) <= self.config.n_positions
            columns.append(torch.tensor([self.rule(text) for text in texts]))
        return torch.stack(columns, 1)

    def lens_states(self, tokens: Tensor, cache: FakeCache) -> Tensor:
        """One layer, before which the model knew nothing."""
        x = self.hidden_states(tokens, cache)
        return torch.stack([torch.zeros_like(x), x])

    def unembed(self, x: Tensor) -> Tensor:
        return x

    def next_logits(self, tokens: Tensor, cache: FakeCache) -> Tensor:
        return self.unembed(self.hidden_states(tokens, cache)[:, -1])

    def new_cache(self, n_max: int, rows: int = 1, pad: Tensor | None = None) -> FakeCache:
        return FakeCache(n_max, rows, pad)


def scrambled(vocab_size: int, seed: int = 0, spread: float = 1.0) -> Callable[[Text], list[float]]:
    """A rule without any regularity: every text has random logits of its own."""

    def rule(text: Text) -> list[float]:
        chance = random.Random(f"{seed} {text}")
        return [chance.gauss(0, spread) for _ in range(vocab_size)]

    return rule


def after_last(table: dict[int, Sequence[float]]) -> Callable[[Text], Sequence[float]]:
    """A rule that looks at the last token alone: {token: probabilities of what follows}."""
    logits = {last: torch.tensor(row).log().tolist() for last, row in table.items()}
    return lambda text: logits[text[-1]]


def counting(vocab_size: int) -> Callable[[Text], list[float]]:
    """A rule under which the number after the last token is by far the likeliest, around to 0."""
    return lambda text: [9.0 * (token == (text[-1] + 1) % vocab_size) for token in range(vocab_size)]


def tiny_gpt2(seed: int = 0, **config: Any) -> GPT2:
    """A real GPT-2 whose weights are random and large, so that every token and its place matter."""
    torch.manual_seed(seed)
    values = {"vocab_size": 23, "n_positions": 32, "n_layer": 2, "n_head": 2, "n_embd": 16}
    return GPT2(GPT2Config(**{**values, "initializer_range": 0.5, "eos_token_id": None, **config})).eval()
