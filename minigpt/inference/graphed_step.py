"""One new token of each row as a CUDA graph: at shapes and addresses that never change, and replayed without Python.

A step of GPT-2 is some hundred kernels of a few microseconds each: on a GPU, Python takes longer to launch them than they
take to run. A graph is recorded once, and launches them all together. For that the step has to be the same every
time: a tensor names the slot for the new key, and the last one that attention looks at.

`GPT2.next_logits` takes this way by itself, where `step_for` finds one.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from threading import Lock
from typing import Any

import torch
import torch.nn.modules.module as torch_modules
from torch import Tensor

from minigpt.attention import kernels_for_any_length
from minigpt.cache import KVCache
from minigpt.inference import plain_pass

# Steps before the recording, which takes about as long as one. In them libraries reserve what they need, and kernels and
# blocks are compiled.
WARM_UP_STEPS = 1
DEVICES = ("cuda",)  # whose kernels take longer to be launched than to run
OURS = ("minigpt", "torch")  # packages whose modules do nothing but compute
FUSED_ROWS = 3  # up to which `fused_step` is faster than cuBLAS, for all of GPT-2's sizes
FUSED_WIDTH = 8192  # the most inputs of a layer that it was measured with
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # it adds up in float32
RECORDING = Lock()  # torch records one graph at a time in a process

# Shapes below:  B rows · N slots of the cache · H heads · K head dimension · V vocab_size


def step_for(model: Any, tokens: Tensor, cache: object) -> GraphedStep | None:
    """The step that reads these tokens, one of each row; None where the modules are to be called.

    To be asked for every time: hooks come and go, and a step belongs to the cache's memory as it is.
    """
    one_each = tokens.device.type in DEVICES and tokens.dim() == 2 and tokens.size(1) == 1
    if not one_each or not isinstance(cache, KVCache):
        return None
    if torch.is_grad_enabled() or torch._C._is_any_autocast_enabled() or torch.compiler.is_compiling():
        return None
    if torch._C._len_torch_dispatch_stack():  # somebody counts or changes what is computed
        return None
    if cache.step is None or cache.step.model is not model:
        cache.step = GraphedStep(model, cache)
    step: GraphedStep = cache.step
    return step if step.may_be_replayed() else None


class StaticLayer:
    """One layer's share of a `KVCache`, all of it in view: a new token goes to the slot that `new_slot` (1,) names."""

    def __init__(self, slots: Tensor, new_slot: Tensor) -> None:
        self._slots, self._new_slot = slots, new_slot  # (key | value, B, H, N, K)

    def extend(self, kv: Tensor) -> tuple[Tensor, ...]:
        """Shapes: (key | value, B, H, 1, K)  ->  (B, H, N, K) each."""
        self._slots.index_copy_(-2, self._new_slot, kv)
        return self._slots.unbind()


class GraphedStep:
    """`model.next_logits(tokens, cache)` for one new token of each row: on a GPU a graph, elsewhere the same computation.

    It belongs to one cache, whose rows and room stay as they are, and to weights that stay where they are; rewinding
    the cache is fine. Hooks on the model see the recording, not what is replayed.

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
        self.model = model
        # The cache holds this step: so both are gone as soon as it is let go.
        self._cache: KVCache = weakref.proxy(cache)
        with torch.inference_mode(False):  # tensors made in that mode can be written to in no other
            self._tokens = torch.zeros(cache.rows, 1, dtype=torch.long, device=model.device)
            self._new_slot = torch.zeros(1, dtype=torch.long, device=model.device)
            self._pad = torch.zeros(cache.rows, dtype=torch.long, device=model.device)
        self._copied_pad: Tensor | None = None  # what was copied to it; None: zeros
        modules = list(model.modules())
        self._parts = [module.__dict__ for module in modules]
        functions = [part["activation"] for part in self._parts if "activation" in part]
        self._is_ours = all(map(_is_ours, [*map(type, modules), *functions]))
        self.is_fused = can_be_fused(model, cache)
        computation = fused if self.is_fused else by_modules
        self._compute = computation(model, cache, self._tokens, self._new_slot, self._pad)
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    @property
    def is_recorded(self) -> bool:
        return self._graph is not None

    def may_be_replayed(self) -> bool:
        """Whether the model's modules need not be called: they are ours, in evaluation mode, and have no hooks."""
        if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
            return False
        return self._is_ours and not any(
            part["training"] or part["_forward_hooks"] or part["_forward_pre_hooks"] or "forward" in part
            for part in self._parts
        )

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Reads one token of each row into the cache; logits for the token that follows.

        Shapes: (B, 1)  ->  (B, V)

        Raises:
            ValueError: the cache is full. The model's context length is for the caller to see to.
        """
        self._cache.check_room(1)
        self._set(tokens)
        if self._graph is None:
            logits = self._compute_or_record()
        else:
            self._graph.replay()
            logits = self._logits.clone()  # the next step writes to the same memory
        self._cache.advance(1)
        return logits

    def _set(self, tokens: Tensor) -> None:
        """Puts this step's numbers where the computation reads them."""
        self._tokens.copy_(tokens)
        self._new_slot.fill_(self._cache.length)
        if self._copied_pad is not self._cache.pad:
            self._copied_pad = self._cache.pad
            self._pad.copy_(torch.zeros_like(self._pad) if self._copied_pad is None else self._copied_pad)

    def _compute_or_record(self) -> Tensor:
        device = self._tokens.device
        self._calls += 1
        with torch.cuda.device_of(self._tokens), kernels_for_any_length(device):  # type: ignore[no-untyped-call]
            if device.type != "cuda" or self._calls <= WARM_UP_STEPS:
                return self._compute()
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # Other threads may compute meanwhile, but not record.
            with RECORDING, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._logits = self._compute()
        self._graph = graph
        graph.replay()
        return self._logits.clone()


def _is_ours(code: Any) -> bool:
    """Whether a class or function does nothing but compute."""
    home = getattr(code, "func", code).__module__ or "torch"  # torch's functions in C++ may have none
    return home.partition(".")[0] in OURS


# Two ways to compute a step from the tensors that hold its numbers: tokens (B, 1), new_slot (1,) and pad (B,).


def by_modules(
    model: Any, cache: KVCache, tokens: Tensor, new_slot: Tensor, pad: Tensor
) -> Callable[[], Tensor]:
    """By the model's own modules; attention looks at all slots under a mask."""
    cache.slots[..., cache.length :, :] = 0  # a masked value is multiplied by zero, which must not be NaN
    slots = torch.arange(cache.n_max, device=model.device)
    layers = [StaticLayer(of_layer, new_slot) for of_layer in cache.slots]
    upcast = model.config.reorder_and_upcast_attn
    dtype = torch.float32 if upcast else model.position_embedding.weight.dtype  # of attention's scores

    def compute() -> Tensor:
        seen = (slots <= new_slot) & (slots >= pad[:, None]) | (slots == new_slot)  # (B, N)
        # Kernels want it as numbers to add to the scores: made here, it is not made in every layer.
        mask = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, float("-inf"))[:, None, None]
        x = model.token_embedding(tokens) + model.position_embedding((new_slot - pad).clamp_min(0)[:, None])
        for block, layer in zip(model.blocks, layers, strict=True):
            x = block(x, layer, mask)
        logits: Tensor = model.unembed(model.final_norm(x)[:, -1])
        return logits

    return compute


def can_be_fused(model: Any, cache: KVCache) -> bool:
    """Whether `fused_step` computes what the model computes, and faster."""
    slots, config = cache.slots, model.config
    if not slots.is_cuda or slots.dtype not in FUSED_DTYPES or cache.rows > FUSED_ROWS:
        return False
    if max(config.n_embd, config.mlp_dim) > FUSED_WIDTH or not model.is_plain():
        return False
    embeddings = (model.token_embedding.weight, model.position_embedding.weight)
    lie_well = all(weight.is_contiguous() for weight in embeddings) and all(
        layer.weight is not None and layer.weight.stride(0) == 1  # each output's weights lie together
        for block in plain_pass.weights(model.blocks)
        for layer in (block.qkv, block.attn_out, block.mlp_up, block.mlp_down)
    )
    return lie_well and triton_works(slots.device)


@functools.cache
def triton_works(device: torch.device) -> bool:
    """Whether Triton can compile for this GPU: it needs a C compiler, and a folder to keep what it has compiled."""
    if find_spec("triton") is None:
        return False
    from minigpt.inference import fused_step  # imports triton, which is not everywhere

    ones = torch.ones(16, 16, device=device)
    try:
        with torch.cuda.device(device):
            fused_step.product(ones, ones)
    except Exception as error:  # whatever it is, there is another way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"Triton cannot be used ({reason:.200}): texts take longer", stacklevel=2)
        return False
    return True


def fused(model: Any, cache: KVCache, tokens: Tensor, new_slot: Tensor, pad: Tensor) -> Callable[[], Tensor]:
    """By a few large kernels, to which the weights are given as they lie."""
    from minigpt.inference import fused_step

    return partial(fused_step.next_logits, fused_step.Weights.of(model), cache.slots, tokens, new_slot, pad)
