"""Where the points are: forward hooks on the model's modules, installed while a recording or an edit is open.

All recordings and edits of one model share one `Hooks`, so that they compose: at each point the edits
act in the order in which they were opened, and recordings see what is left, whichever was opened first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minigpt.attention import attention_pattern, causal_mask
from minigpt.cache import LayerCache, NoCache
from minigpt.model import GPT2

# Shapes below:  B rows · T new tokens · S tokens in view (cached + new) · H heads · K head dimension · D n_embd

# Two values that visitors may want beside the points of the table:
MASK = "attn.mask"  # which keys each query may see, as the kernel gets it: bool (T, S) or (B, H or 1, T, S)
KEYS = "attn.keys"  # the keys that the kernel gets, cached ones included: (B, H, S, K)
KEYS_0 = f"blocks.0.{KEYS}"
OUT_OF_PASS = (
    "a layer was called by itself, or by another thread that uses the model: only whole passes, model(tokens), can be "
    "recorded or edited, and a thread needs a copy of the model"
)
INTERRUPTED = "a pass did not finish: an exception was raised in it, and caught inside the `with`"


@dataclass
class Pass:
    """One forward pass: what is read, and what the cache held before it."""

    tokens: Tensor  # (B, T)
    past: LayerCache | NoCache
    finished: bool = False  # all blocks have been computed

    @property
    def start(self) -> int:
        """How many slots were filled before, padding included."""
        return self.past.length

    @cached_property
    def pad(self) -> Tensor:
        """How many of each row's first slots are padding: (B,)."""
        rows = self.tokens.new_zeros(self.tokens.size(0))
        return rows if self.past.pad is None else rows + self.past.pad

    @cached_property
    def positions(self) -> Tensor:
        """The position of each new token, counted from its row's first real one; negative on padding: (B, T)."""
        slots = torch.arange(self.start, self.start + self.tokens.size(1), device=self.tokens.device)
        return slots - self.pad[:, None]


class RowTracker:
    """Notices when the rows of a cache were moved between two passes: no length shows that, but the keys do."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None

    def moved(self, keys: Tensor, start: int) -> bool:
        """Whether the first layer's keys of the `start` slots before a pass are not those that were there.

        Shapes: (B, H, S, K)
        """
        before, self._keys = self._keys, keys.detach().clone()
        if before is None or start == 0:
            return False
        known = min(start, before.size(2))
        return not keys[:, :, :known].equal(before[:, :, :known])


def never_fired(names: Sequence[str], last: Pass) -> str:
    """Why points were never reached, as far as the last pass shows it."""
    listed = ", ".join(names[:5])
    if not last.finished:
        return f"{INTERRUPTED}, so {listed} never fired"
    return f"{listed} never fired: this model's layers do not compute it"


class Visitor(Protocol):
    """What is shown the values of a pass: a recording, or an edit."""

    @property
    def names(self) -> frozenset[str]:
        """The points that it wants."""

    @property
    def changes(self) -> bool:
        """Whether it edits; edits come before recordings."""

    def begin(self, current: Pass) -> None:
        """A pass begins."""

    def visit(self, name: str, value: Tensor, current: Pass) -> Tensor:
        """The value with which the pass goes on: the same object, unless it is to be another."""


class Hooks:
    """The hooks on one model, and the visitors that they serve."""

    def __init__(self, model: GPT2) -> None:
        self.model = model
        self.visitors: list[Visitor] = []
        self.current: Pass | None = None
        self._tokens: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def update(self, visitors: list[Visitor]) -> None:
        """Removes the hooks that there are, and installs what these visitors need."""
        while self._handles:
            self._handles.pop().remove()
        self.visitors = sorted(visitors, key=lambda visitor: not visitor.changes)  # stable: else as opened
        self.current = self._tokens = None
        if visitors:
            self._install()

    def wants(self, name: str) -> bool:
        return any(name in visitor.names for visitor in self.visitors)

    def show(self, name: str, value: Tensor) -> Tensor:
        """Shows a value to all who want it, edits first; returns that with which the pass goes on."""
        if self.current is None:
            raise ValueError(OUT_OF_PASS)
        for visitor in self.visitors:
            if name in visitor.names:
                value = visitor.visit(name, value, self.current)
        return value

    def _install(self) -> None:
        model, keep = self.model, self._handles.append
        keep(model.token_embedding.register_forward_hook(self._read))
        keep(model.blocks[0].register_forward_pre_hook(self._begin))
        for layer, block in enumerate(model.blocks):
            for register, hook, points in BlockHooks(self, layer).sites(block):
                if any(self.wants(f"blocks.{layer}.{point}") for point in points):
                    keep(register(hook))
        keep(model.blocks[-1].register_forward_hook(self._end))
        if self.wants("final_norm"):
            keep(model.final_norm.register_forward_hook(self._final_norm))
        if self.wants("logits"):
            keep(model.head.register_forward_hook(self._logits))

    def _read(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        self._tokens = args[0]

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, past, mask = args
        if self._tokens is None:
            raise ValueError(OUT_OF_PASS)
        _refuse_dropout(self.model)
        self.current = Pass(self._tokens, past)
        for visitor in self.visitors:
            visitor.begin(self.current)
        return self.show("embed", x), past, mask

    def _end(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self.current is not None:
            self.current.finished = True

    def _final_norm(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self._show_last("final_norm", output)

    def _logits(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.dim() == 2:  # while generating: of the newest token only, (B, V)
            return self._show_last("logits", output[:, None])[:, 0]
        return self._show_last("logits", output)

    def _show_last(self, name: str, value: Tensor) -> Tensor:
        """Shows what comes after the blocks, which may also be called by itself, as DoLa does for every layer."""
        rows, n_new = (0, 0) if self.current is None else self.current.tokens.shape
        if value.dim() != 3 or value.size(0) != rows or value.size(1) not in (1, n_new):
            raise ValueError(
                f"{name} was computed for something else than what the model has read (shape {tuple(value.shape)}): "
                "it can be watched or edited only where it ends a pass"
            )
        return self.show(name, value)


class BlockHooks:
    """The points of one block, in the order in which a pass computes them."""

    def __init__(self, hooks: Hooks, layer: int) -> None:
        self.hooks, self.at = hooks, f"blocks.{layer}."
        self._middle: Tensor | None = None  # an edited stream between attention and MLP, until the block ends
        self._mlp_out: Tensor | None = None  # what is to be added to it

    def sites(self, block: Any) -> list[tuple[Callable[..., RemovableHandle], Any, tuple[str, ...]]]:
        """Each hook with the method that registers it and the points that it serves."""
        attn, mlp = block.attn, block.mlp
        return [
            (block.register_forward_pre_hook, self.enter, ("resid_pre",)),
            (attn.qkv.register_forward_hook, self.qkv, ("attn.q", "attn.k", "attn.v")),
            (attn.sdpa.register_forward_pre_hook, self.scores, (MASK, KEYS)),
            (attn.sdpa.register_forward_hook, self.heads, ("attn.pattern", "attn.z")),
            (attn.register_forward_hook, self.output("attn.out"), ("attn.out",)),
            (block.mlp_norm.register_forward_pre_hook, self.middle, ("resid_mid",)),
            (mlp.up.register_forward_hook, self.output("mlp.pre"), ("mlp.pre",)),
            (mlp.down.register_forward_pre_hook, self.mlp_post, ("mlp.post",)),
            (mlp.register_forward_hook, self.mlp_out, ("mlp.out", "resid_mid")),
            (block.register_forward_hook, self.leave, ("resid_post", "resid_mid")),
        ]

    def show(self, point: str, value: Tensor) -> Tensor:
        return self.hooks.show(self.at + point, value)

    def output(self, point: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda module, args, output: self.show(point, output)

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, past, mask = args
        return self.show("resid_pre", x), past, mask

    def qkv(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Here, before the cache stores them: what is changed in keys and values stays changed later."""
        rows, n_new, _ = output.shape
        parts = (
            output.view(rows, n_new, 3, self.hooks.model.config.n_head, -1).permute(2, 0, 3, 1, 4).unbind()
        )
        shown = [self.show(f"attn.{name}", part) for name, part in zip("qkv", parts, strict=True)]
        if all(new is old for new, old in zip(shown, parts, strict=True)):
            return output
        return torch.stack(shown).permute(1, 3, 0, 2, 4).reshape(output.shape)

    def scores(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        q, k, v, mask = args
        self.show(KEYS, k)
        if self.hooks.wants(self.at + MASK):
            full = causal_mask(q.size(2), k.size(2), q.device) if mask is None else mask
            new = self.show(MASK, full)
            mask = mask if new is full else new
        return q, k, v, mask

    def heads(self, module: Any, args: tuple[Any, ...], z: Tensor) -> Tensor:
        """The fused kernel's result stands, unless an edit changes the pattern that it never stores."""
        q, k, v, mask = args
        if self.hooks.wants(self.at + "attn.pattern"):
            pattern = wide_pattern(q, k, mask, module.scale)
            new = self.show("attn.pattern", pattern)
            if new is not pattern:
                with torch.autocast(q.device.type, enabled=False):
                    z = (new @ v.to(new.dtype)).to(z.dtype)
        return self.show("attn.z", z)

    def middle(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        new = self.show("resid_mid", args[0])
        self._middle = None if new is args[0] else new
        return (new,)

    def mlp_post(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (self.show("mlp.post", args[0]),)

    def mlp_out(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self._mlp_out = self.show("mlp.out", output)
        return self._mlp_out

    def leave(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The block itself goes on with the stream that it had: an edited one takes its place here, as exactly."""
        if self._middle is not None and self._mlp_out is not None:
            output = self._middle + self._mlp_out
        self._middle = self._mlp_out = None
        return self.show("resid_post", output)


def wide_pattern(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """`attention_pattern`, in float32 at least: in float16, long rows would not sum to 1."""
    wide = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        return attention_pattern(q.to(wide), k.to(wide), mask, scale)


_OPEN: WeakKeyDictionary[GPT2, Hooks] = WeakKeyDictionary()  # of the models that are being watched


@contextmanager
def attached(model: GPT2, visitor: Visitor) -> Iterator[None]:
    """Shows every pass of the model to a visitor, for as long as the block lasts.

    Raises:
        ValueError: when a pass begins, the model is in training mode with dropout.
    """
    hooks = _OPEN.setdefault(model, Hooks(model))
    hooks.update([*hooks.visitors, visitor])
    try:
        yield
    finally:
        hooks.update([other for other in hooks.visitors if other is not visitor])
        if not hooks.visitors:
            del _OPEN[model]


def require_watchable(model: GPT2) -> None:
    """Raises ValueError for what is no GPT2, and for one that is compiled: it would skip our hooks."""
    if not isinstance(model, GPT2):
        raise ValueError(f"only a minigpt.GPT2 can be watched, got {type(model).__name__}")
    for name, module in model.named_modules():
        if module._compiled_call_impl is not None:
            raise ValueError(
                f"{name or 'the model'} is compiled and would skip hooks that are added now: load the model "
                "without compiling it (--compile) to record or edit"
            )


def _refuse_dropout(model: GPT2) -> None:
    parts = any(part.training and getattr(part, "dropout", 0.0) > 0 for part in model.modules())
    if parts or (model.training and model.config.embd_pdrop > 0):
        raise ValueError(
            "the model is in training mode and drops values at random, so that no pass is like another: "
            "call model.eval() first"
        )
