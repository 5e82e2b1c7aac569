"""Recording: what the model computes at chosen points, copied while it runs, and nothing of it changed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import InvalidRequest
from minigpt.interp import tensor_file
from minigpt.interp.hooks import (
    INTERRUPTED,
    KEYS_0,
    Pass,
    RowTracker,
    attached,
    never_fired,
    require_watchable,
)
from minigpt.interp.points import as_indices, expand, point_of
from minigpt.interp.recording import Recording
from minigpt.json_files import counted, shown
from minigpt.model import GPT2

CANNOT = "drafts, beams, several texts of one prompt and batches whose rows end or move cannot be recorded while they run"
READ_IT_ONCE = "record the finished text instead: record_text(model, tokens)"


@contextmanager
def record(
    model: GPT2,
    *points: str,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    take: Callable[[Tensor], Tensor] | None = None,
    grad: bool = False,
    to: str | os.PathLike[str] | None = None,
) -> Iterator[Recording]:
    """Records the points of one text, or one batch of texts, that the model reads inside the `with`.

    The model's results are the same to the bit: values are copied, and attention patterns, which the fused
    kernel never stores, are computed once more from q and k. One text may be read in several passes, as
    when it is generated token by token.

    Args:
        model: which is watched until the `with` ends.
        points: names as in `POINTS`, `*` for any part: "blocks.*.attn.pattern". None at all: every point.
        layers: only these.
        heads: only these, at the points that have heads.
        take: makes less of each value, so that it need not be kept whole: `take=lambda pattern: pattern[..., 0]`.
        grad: keeps the graph: after `backward()` each recorded tensor has its `.grad`. Not with heads, take or
            to. Where a pattern is recorded, that layer then computes the formula, which rounds otherwise
            than the kernel does.
        to: a safetensors file to write to instead of memory; whole when the `with` has ended.

    Raises:
        KeyError: there is no such point.
        IndexError: there is no such layer or head.
        ValueError: a point was never reached, or a pass did not finish; or what was read was not one text growing
            token by token (beams that change places, drafts that are taken back, a window that slides, a second text);
            or `grad`, but the weights are quantized.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> with torch.no_grad(), record(model, "blocks.*.attn.pattern") as seen:
    ...     logits = model(torch.tensor([tokenizer.encode("Once upon a time")]))
    >>> seen["blocks.3.attn.pattern"].shape, seen.stack("blocks.*.attn.pattern").shape
    (torch.Size([1, 5, 4, 4]), torch.Size([8, 1, 5, 4, 4]))
    """
    require_watchable(model)
    names = expand(model.config, points or ("*", "blocks.*.*", "blocks.*.*.*"), layers)
    chosen = as_indices("head", heads, model.config.n_head)
    if chosen is not None and not any(point_of(name).has_heads for name in names):
        raise ValueError(f"heads={chosen} has no effect: none of {', '.join(names[:3])} has heads")
    if grad and (to is not None or take is not None or chosen is not None):
        raise ValueError("grad=True records whole values in memory: leave out to=, take= and heads=")
    if grad:
        require_gradients(model)
    with ExitStack() as stack:
        store: dict[str, list[Tensor]] | tensor_file.SpooledChunks = {}
        if to is not None:
            Path(to).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=Path(to).parent))
            store = tensor_file.SpooledChunks(file)
        seen = Recording(model.config, names, store, take is not None, chosen)
        recorder = _Recorder(seen, store, take, grad)
        with attached(model, recorder):
            yield seen
        recorder.check()
        if to is not None:
            _write(Path(to), seen)


def record_text(
    model: GPT2,
    tokens: Sequence[int] | Sequence[Sequence[int]] | Tensor,
    *points: str,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    take: Callable[[Tensor], Tensor] | None = None,
    grad: bool = False,
    to: str | os.PathLike[str] | None = None,
) -> Recording:
    """Reads a finished text, or several, in one pass and records it: the way for every decoding strategy.

    Args:
        model: evaluated without a graph unless `grad`.
        tokens: ids of one text, or of several; the shorter ones are padded on the left.
        points: and the other arguments as for `record`.

    Raises:
        ValueError: as for `record`; or the text is empty, or longer than the context length.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> seen = record_text(model, tokenizer.encode("The king"), "blocks.*.attn.z", layers=[2], heads=[0, 3])
    >>> seen["blocks.2.attn.z"].shape
    torch.Size([1, 2, 2, 64])
    """
    with (
        differentiable() if grad else torch.no_grad(),
        record(model, *points, layers=layers, heads=heads, take=take, grad=grad, to=to) as seen,
    ):
        batch, pad = as_batch(tokens, model)
        model(batch, pad=pad)
    return seen


@contextmanager
def differentiable() -> Iterator[None]:
    """Keeps graphs inside, also where a notebook has switched them off for good."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def require_gradients(model: GPT2) -> None:
    """Raises ValueError for a model whose weights are quantized."""
    if model.quantization:
        raise ValueError(
            f"the weights are quantized ({model.quantization}) and have no gradients: load the model without quantize="
        )


def as_batch(
    tokens: Sequence[int] | Sequence[Sequence[int]] | Tensor, model: GPT2
) -> tuple[Tensor, Tensor | None]:
    """Token ids of one text or several as the model reads them: (B, T), and how each row is padded (B,).

    Raises:
        InvalidRequest: a text is empty, or was not encoded.
    """
    if isinstance(tokens, str):
        raise InvalidRequest(f"tokens are ids, got the text {shown(tokens)}: encode it first")
    rows = _plain(tokens)
    try:
        one = all(hasattr(row, "__index__") for row in rows)
        texts = [[index(token) for token in row] for row in ([rows] if one else rows)]
    except TypeError:
        raise InvalidRequest(
            f"tokens are ids of one text, or of several, got {shown(rows)}: lists of whole "
            "numbers, or a tensor"
        ) from None
    if not all(texts):
        raise InvalidRequest(
            "an empty text has nothing to read: give at least one token, such as the end token"
        )
    longest = max(map(len, texts))
    pads = [longest - len(text) for text in texts]
    batch = torch.tensor([[0] * n + text for n, text in zip(pads, texts, strict=True)], device=model.device)
    return batch, torch.tensor(pads, device=model.device) if any(pads) else None


def one_text(tokens: Sequence[int] | Tensor, model: GPT2) -> list[int]:
    """The token ids of what can be one text only.

    Raises:
        ValueError: as for `as_batch`, or there are several texts.
    """
    batch, _ = as_batch(tokens, model)
    if len(batch) != 1:
        raise ValueError(f"this reads one text at a time, got {len(batch)}")
    ids: list[int] = batch[0].tolist()
    return ids


def equally_long(
    model: GPT2, clean: Sequence[int] | Tensor, corrupt: Sequence[int] | Tensor
) -> tuple[list[int], list[int]]:
    """Two texts that can be compared position by position.

    Raises:
        ValueError: they are not equally long, or not one text each.
    """
    texts = one_text(clean, model), one_text(corrupt, model)
    lengths = [len(text) for text in texts]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"the clean text has {counted(lengths[0], 'tokens')}, the corrupt one {lengths[1]}: they must be"
            " equally long"
        )
    return texts


def _plain(tokens: Any) -> Any:
    """Lists and numbers in the place of tensors and arrays."""
    if hasattr(tokens, "tolist"):
        return tokens.tolist()
    return [_plain(row) for row in tokens] if isinstance(tokens, list | tuple) else tokens


class _Recorder:
    """Copies what passes by into a recording, as long as it is one text that grows."""

    changes = False

    def __init__(
        self,
        seen: Recording,
        store: dict[str, list[Tensor]] | tensor_file.SpooledChunks,
        take: Callable[[Tensor], Tensor] | None,
        grad: bool,
    ) -> None:
        self.seen, self.take, self.grad = seen, take, grad
        self.wanted = frozenset(seen.names)
        self.names = self.wanted | {KEYS_0}
        self._store = store
        self._rows = RowTracker()
        self._pass: Pass | None = None
        self._this_pass: set[str] = set()

    def begin(self, current: Pass) -> None:
        seen, n_read = self.seen, self.seen.tokens.size(1)
        self._require_finished()
        if not seen.read:
            seen.start, seen.pad = current.start, _plain_copy(current.pad)
        elif current.start == 0:
            raise ValueError(
                f"a second text was read inside one record(): open one for each, or {READ_IT_ONCE}"
            )
        elif not current.pad.equal(seen.pad):
            before, now = len(seen.pad), len(current.pad)
            what = (
                f"the padding of the rows was {seen.pad.tolist()}, now it is {current.pad.tolist()}"
                if before == now
                else f"{counted(before, 'rows')} {'was' if before == 1 else 'were'} recorded, now there are {now}"
            )
            raise ValueError(f"{what}: {CANNOT}; {READ_IT_ONCE}")
        elif current.start != seen.start + n_read:
            raise ValueError(
                f"a pass read on from slot {current.start}, but {seen.start + n_read} slots were recorded: {CANNOT}; "
                f"{READ_IT_ONCE}"
            )
        self._pass = current
        seen.read.append(_plain_copy(current.tokens))
        self._this_pass = set()

    def visit(self, name: str, value: Tensor, current: Pass) -> Tensor:
        if name == KEYS_0 and self._rows.moved(value, current.start):
            raise ValueError(
                "the cache's rows were moved between two passes, as beam search does: what was recorded before "
                f"belongs to other rows now; {READ_IT_ONCE}"
            )
        if name not in self.wanted:
            return value
        if name in self._this_pass:
            raise ValueError(
                f"{name} was computed twice in one pass (DoLa reads every layer through it); {READ_IT_ONCE}"
            )
        self._this_pass.add(name)
        if self.grad:
            return self._keep_in_graph(name, value)
        self._add(name, _plain_copy(self._part(name, value.detach())))
        return value

    def check(self) -> None:
        """Raises ValueError where a point was never reached, or the last pass broke off."""
        if self._pass is None:
            raise ValueError("nothing was recorded: the model read no text inside the `with`")
        silent = [name for name in self.seen.names if name not in self._store]
        if silent:
            raise ValueError(never_fired(silent, self._pass))
        self._require_finished()

    def _require_finished(self) -> None:
        if self._pass is not None and not self._pass.finished:
            raise ValueError(f"{INTERRUPTED}: what was recorded of it is not whole; open another record()")

    def _keep_in_graph(self, name: str, value: Tensor) -> Tensor:
        """A copy that takes the value's place, so that gradients flow through it."""
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise ValueError(
                "grad=True needs a graph, and this pass has none (torch.no_grad, torch.inference_mode): call the "
                "model itself"
            )
        copy = value.clone() if value.requires_grad else value.clone().requires_grad_()
        copy.retain_grad()
        self._add(name, copy)
        return copy

    def _part(self, name: str, value: Tensor) -> Tensor:
        if self.seen.heads is not None and point_of(name).has_heads:
            value = value[:, self.seen.heads]
        if self.take is None:
            return value
        taken = self.take(value.clone())  # whatever it writes into
        if not isinstance(taken, Tensor):
            raise ValueError(f"take= must give a tensor, got {shown(taken)} at {name}")
        return taken

    def _add(self, name: str, value: Tensor) -> None:
        if isinstance(self._store, tensor_file.SpooledChunks):
            self._store.add(name, value)
        else:
            self._store.setdefault(name, []).append(value)


def _plain_copy(value: Tensor) -> Tensor:
    """A copy that is a tensor like any other, also of what was computed in inference mode."""
    with torch.inference_mode(False):
        return value.clone()


def _write(path: Path, seen: Recording) -> None:
    """Writes the recording, with what `Recording.load` needs to know of it."""
    facts: Mapping[str, Tensor] = {
        "tokens": seen.tokens, "pad": seen.pad, "start": torch.tensor([seen.start]),
        "reduced": torch.tensor([seen.reduced]), "heads": torch.tensor(seen.heads or [], dtype=torch.long),
    }  # fmt: skip
    tensor_file.write(path, [*facts, *seen.names], lambda name: facts[name] if name in facts else seen[name])
    seen.chunks = tensor_file.FileChunks(path)
