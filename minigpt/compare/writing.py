"""Running one decoding method on all prompts, and counting its cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakSet

from minigpt.data.prompts import Prompt
from minigpt.evaluation.diversity import Figures
from minigpt.lazy import Tensor, torch
from minigpt.sampler.events import Finished
from minigpt.sampler.requests import prepare
from minigpt.sampler.running import run
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.cache import KVCache
    from minigpt.config import GPT2Config
    from minigpt.model import GPT2


@dataclass(frozen=True)
class Output:
    """What a method generated after every prompt, and its cost."""

    tokens: list[list[int]]  # new tokens, in the order of the prompts; an end token included
    cost: Figures


def write(
    model: GPT2,
    prompts: Sequence[Prompt],
    strategy: Strategy,
    max_new_tokens: int,
    batch_size: int,
    report: Callable[[int], object] = lambda n_texts: None,
) -> Output:
    """Continues every prompt, some at a time; `report` is called for every finished one.

    Cost: `tokens_per_s`, reading the prompts included; `passes_per_token`, how often a row of tokens went
    through the model for each new token, so that a beam of five counts five times and a batch changes
    nothing; `cache_bytes`, the peak size of the KV cache.

    Raises:
        PromptTooLong: a prompt and its new tokens exceed the model's context length.
        InvalidRequest: the strategy's options rule out every token.
    """
    passes = peak_bytes = 0
    tokens: dict[int, list[int]] = {}
    began = time.perf_counter()
    for first in range(0, len(prompts), batch_size):
        counted = Counted(model)  # one a batch: Python is free to let the caches of the last one linger
        batch = [prompt.tokens for prompt in prompts[first : first + batch_size]]
        for event in run(counted, prepare(counted, batch, max_new_tokens=max_new_tokens), strategy):
            if isinstance(event, Finished):
                tokens[first + event.prompt_index] = event.completions[0].tokens
                report(1)
        passes, peak_bytes = passes + counted.passes, max(peak_bytes, counted.peak_bytes)
    seconds = time.perf_counter() - began
    n_tokens = sum(map(len, tokens.values()))
    cost = {
        "tokens_per_s": n_tokens / seconds,
        "passes_per_token": passes / n_tokens,
        "cache_bytes": float(peak_bytes),
    }
    return Output([tokens[i] for i in range(len(prompts))], cost)


class Counted:
    """A model that counts the rows it reads, and the peak memory of its caches.

    It is what `sampler.strategy.LanguageModel` describes, so every strategy takes it for the model itself.
    """

    def __init__(self, model: GPT2) -> None:
        self.passes = self.peak_bytes = 0
        self._model = model
        self._caches: WeakSet[KVCache] = WeakSet()

    @property
    def config(self) -> GPT2Config:
        return self._model.config

    @property
    def device(self) -> torch.device:
        return self._model.device

    def next_logits(self, tokens: Tensor, cache: KVCache) -> Tensor:
        self._count(tokens)
        return self._model.next_logits(tokens, cache)

    def hidden_states(self, tokens: Tensor, cache: KVCache) -> Tensor:
        self._count(tokens)
        return self._model.hidden_states(tokens, cache)

    def lens_states(self, tokens: Tensor, cache: KVCache) -> Tensor:
        self._count(tokens)
        return self._model.lens_states(tokens, cache)

    def unembed(self, x: Tensor) -> Tensor:
        return self._model.unembed(x)

    def new_cache(self, n_max: int, rows: int = 1, pad: Tensor | None = None) -> KVCache:
        cache = self._model.new_cache(n_max, rows, pad)
        self._caches.add(cache)
        return cache

    def _count(self, tokens: Tensor) -> None:
        self.passes += tokens.size(0)
        slots = sum(cache.rows * cache.n_max for cache in self._caches)
        of_a_slot = 2 * self.config.n_layer * self.config.n_embd  # keys and values
        item = self._model.position_embedding.weight.element_size()
        self.peak_bytes = max(self.peak_bytes, slots * of_a_slot * item)
