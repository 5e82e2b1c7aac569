"""One new token of each row as a CUDA graph: at shapes and addresses that never change, and replayed without Python.

A step of GPT-2 is some hundred kernels of a few microseconds each: on a GPU, Python takes longer to launch them than they
take to run. A graph is recorded once, and launches them all together. For that the step has to be the same every
time: the new key goes to the slot that a tensor names, and attention looks at all slots under a mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minigpt.cache import KVCache

# Passes before a recording, in which libraries reserve what they need and compiled blocks are compiled.
WARM_UP = 3

# Shapes below:  B rows · N slots of the cache · H heads · K head dimension · V vocab_size


class StaticLayer:
    """One layer's share of a `KVCache`, all of it in view: a new token goes to the slot that `place` (1,) names."""

    def __init__(self, slots: Tensor, place: Tensor) -> None:
        self._slots, self._place = slots, place  # (key | value, B, H, N, K)

    def extend(self, kv: Tensor) -> tuple[Tensor, ...]:
        """Shapes: (key | value, B, H, 1, K)  ->  (B, H, N, K) each."""
        self._slots.index_copy_(-2, self._place, kv)
        return self._slots.unbind()


class GraphedStep:
    """`model.next_logits(tokens, cache)` for one new token of each row: on a GPU a graph, elsewhere the same computation.

    It belongs to one cache, whose rows, room and padding stay as they are; rewinding it is fine. Hooks on the model
    see the recording, not what is replayed.

    Args:
        model: a `minigpt.GPT2` in evaluation mode; its blocks may be compiled.
        cache: its cache, with room for a token.

    >>> from minigpt import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()
    >>> cache = model.new_cache(8)
    >>> _ = model.next_logits(torch.tensor([[1, 2, 3]]), cache)
    >>> GraphedStep(model, cache)(torch.tensor([[4]])).shape, cache.length
    (torch.Size([1, 100]), 4)
    """

    def __init__(self, model: Any, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        device = model.device
        self._slots = torch.arange(cache.n_max, device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(cache.rows, 1, dtype=torch.long, device=device)
        cache.slots[..., cache.length :, :] = 0  # a masked value is multiplied by zero, which must not be NaN
        self._layers = [StaticLayer(slots, self._place) for slots in cache.slots]
        # of attention's scores
        upcast = model.config.reorder_and_upcast_attn
        self._dtype = torch.float32 if upcast else model.position_embedding.weight.dtype
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Reads one token of each row into the cache; logits for the token that follows.

        Shapes: (B, 1)  ->  (B, V)

        Raises:
            ValueError: the cache is full.
        """
        self._cache.check_room(1)
        self._tokens.copy_(tokens)
        self._place.fill_(self._cache.length)
        if self._tokens.is_cuda:
            if self._graph is None:
                self._graph = self._record()
            self._graph.replay()
            logits = self._logits.clone()  # the next step writes to the same memory
        else:
            logits = self._compute()
        self._cache.advance(1)
        return logits

    def _record(self) -> torch.cuda.CUDAGraph:
        """Records the step; passes before it write to the slot that the step will write to."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._compute()
        return graph

    def _compute(self) -> Tensor:
        model, pad = self._model, self._cache.pad
        seen, positions = (self._slots <= self._place)[None, :], self._place  # (1, N), (1,)
        if pad is not None:
            seen = (seen & (self._slots >= pad[:, None]))[:, None, None]  # (B, 1, 1, N)
            positions = (positions - pad)[:, None]  # (B, 1)
        x = model.token_embedding(self._tokens) + model.position_embedding(positions)
        # Kernels want it as numbers to add to the scores: made here, it is not made in every layer.
        mask = torch.zeros_like(seen, dtype=self._dtype).masked_fill(~seen, float("-inf"))
        for block, layer in zip(model.blocks, self._layers, strict=True):
            x = block(x, layer, mask)
        logits: Tensor = model.unembed(model.final_norm(x)[:, -1])
        return logits
