"""The interventions that have names: ablate, scale, patch, steer. All of them are edits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor

from minigpt.interp.edit import Edit, Places, edited, points_to_edit
from minigpt.interp.hooks import Pass
from minigpt.interp.points import one_point, point_of
from minigpt.interp.record import record_text
from minigpt.interp.recording import Recording
from minigpt.json_files import counted
from minigpt.model import GPT2

# Shapes below:  B rows · T new tokens · S slots of the source · H heads · K head dimension · D n_embd


@contextmanager
def ablate(
    model: GPT2,
    point: str,
    value: Tensor | float | None = None,
    *,
    keep_patterns: Recording | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Takes away what a part contributes: its value becomes zero, or another that says nothing of the text.

    Zero is far from anything the model has seen; a mean (`mean_activation`) keeps what is the same in all
    texts. To use the value of another text (resampling), `patch` from its recording.

    Args:
        model: whose passes are changed.
        point: "blocks.1.attn.z" with `heads=[0]` ablates a head, "blocks.1.mlp.out" an MLP.
        value: what comes in its place, broadcast to the point's shape; zeros unless given. What has several
            positions, as a mean over "texts", is put in position by position, of every row.
        keep_patterns: a recording of the same text with all patterns: later layers then attend as they did
            there, so that the effect through values alone is seen (pattern-preserving ablation).
        layers: and the others as for `edit`.

    Raises:
        ValueError: the value does not fit the point; and as for `edit`.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", for pattern-preserving ablation.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> tokens = tokenizer.encode("Once upon a time")
    >>> with ablate(model, "blocks.1.attn.z", heads=[0]):
    ...     seen = record_text(model, tokens, "blocks.1.attn.z")
    >>> seen["blocks.1.attn.z"].abs().amax((0, 2, 3)) > 0
    tensor([False,  True,  True,  True,  True])
    """

    def change(name: str, old: Tensor, current: Pass, chosen: Tensor) -> Tensor:
        return _fit(0.0 if value is None else value, old, name, current, chosen)

    ablation = Edit.at(model, point, change, layers, heads, positions, rows)
    with ExitStack() as stack:
        if keep_patterns is not None:
            stack.enter_context(patch(model, "blocks.*.attn.pattern", keep_patterns))
        stack.enter_context(edited(model, ablation))
        yield


@contextmanager
def scale(
    model: GPT2,
    point: str,
    factor: float,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Multiplies the value at a point; the other arguments and errors are those of `edit`."""

    def change(name: str, value: Tensor, current: Pass, chosen: Tensor) -> Tensor:
        return value * factor

    with edited(model, Edit.at(model, point, change, layers, heads, positions, rows)):
        yield


@contextmanager
def steer(
    model: GPT2,
    point: str,
    vector: Tensor,
    factor: float = 1.0,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Adds `factor * vector` to the value at a point, as (D,) to the stream, or as (K,) to a head.

    A vector for each position, as (T, D), is added position by position, of every row.

    Raises:
        ValueError: the vector does not fit the point; and as for `edit`.

    Source: Turner et al. 2023, "Activation Addition".

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> with steer(model, "blocks.2.resid_post", torch.ones(model.config.n_embd), factor=4.0):
    ...     seen = record_text(model, tokenizer.encode("The king"), "blocks.2.resid_post")
    """

    def change(name: str, value: Tensor, current: Pass, chosen: Tensor) -> Tensor:
        return value + factor * _fit(vector, value, name, current, chosen)

    with edited(model, Edit.at(model, point, change, layers, heads, positions, rows)):
        yield


@contextmanager
def patch(
    model: GPT2,
    point: str,
    source: Recording,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Puts what another run had at a point in place of this run's: position by position, row by row.

    A source of one text is used for every row. Without `positions` the text that is read must be as long as
    the source; what is generated after it goes on without any patch.

    Args:
        model: whose passes are changed.
        point: "blocks.3.resid_post" (the stream), or `attn.q`, `.k`, `.v`, `.pattern`, `.z`, `.out` of a layer ...
        source: a recording with these points, and all heads.
        layers: and the others as for `edit`.

    Raises:
        KeyError: the source has not recorded the point.
        ValueError: the source is no recording, or has other rows, some heads only, or another length; and as for
            `edit`.

    Source: Vig et al. 2020; Heimersheim & Nanda 2024, "How to use and interpret activation patching".

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> clean = record_text(model, tokenizer.encode("The king"), "blocks.*.resid_post", "logits")
    >>> with patch(model, "blocks.2.resid_post", clean):
    ...     patched = record_text(model, tokenizer.encode("The dog"), "logits")
    """
    if not isinstance(source, Recording):
        raise ValueError(
            f"patch takes its values from a recording, got {type(source).__name__}: use record_text"
        )
    names = points_to_edit(model, point, layers, heads)
    where = Places.of(model, heads, positions, rows)
    source.require_whole(*names)
    lengths = source.start + source.tokens.size(1) - source.pad.to(model.device)  # of its texts: (rows,)
    if where.rows is None and len(lengths) > 1:
        where.rows = list(range(len(lengths)))  # each has a source of its own
    if where.positions is None:
        where.positions = list(range(int(lengths.max())))
    elif max(where.positions) >= lengths.min():
        raise IndexError(
            f"position {max(where.positions)} is not in the source, which has 0 to {lengths.min() - 1}"
        )

    def change(name: str, value: Tensor, current: Pass, chosen: Tensor) -> Tensor:
        first, last = current.positions[:, 0].clamp_min(0), current.positions[:, -1]
        beyond = (first < lengths) & (last >= lengths)
        if positions is None and beyond.any():
            raise ValueError(
                f"the source of {name} has {lengths.tolist()} tokens, the text that is read {(last + 1).tolist()}: "
                "say which positions to patch (positions=)"
            )
        return _aligned(name, value, source, current)

    with edited(model, Edit(names, change, where)):
        yield


def mean_activation(
    model: GPT2,
    texts: Sequence[Sequence[int]],
    point: str,
    over: Literal["texts and positions", "texts"] = "texts and positions",
) -> Tensor:
    """The mean value at a point, for `ablate`: over all tokens of all texts, or at each position by itself.

    Shapes: (1, 1, D), or (1, H, 1, K) with heads; by position T instead of 1, of texts that are equally long

    Raises:
        ValueError: there are no texts, or of unequal lengths, but the mean is by position; `over` is not known; or
            the name is that of several points.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> texts = [tokenizer.encode("Once upon a time"), tokenizer.encode("The king")]
    >>> mean_activation(model, texts, "blocks.1.attn.z").shape
    torch.Size([1, 5, 1, 64])
    """
    if over not in ("texts and positions", "texts"):
        raise ValueError(f'over must be "texts and positions" or "texts", got {over!r}')
    name = one_point(model.config, point)
    if not len(texts):
        raise ValueError("a mean needs at least one text")
    if over == "texts" and len({len(text) for text in texts}) != 1:
        raise ValueError('a mean over "texts", at each position, needs texts that are equally long')
    if over != "texts" and name.endswith("attn.pattern"):
        raise ValueError(
            'a mean of patterns is over "texts": rows of different queries have different lengths'
        )
    values = [record_text(model, text, name)[name] for text in texts]
    axis = point_of(name).token_axis
    if over == "texts":
        return torch.stack(values).mean(0)
    return torch.cat(values, axis).mean(axis, keepdim=True)


def _fit(given: Tensor | float, value: Tensor, name: str, current: Pass, chosen: Tensor) -> Tensor:
    """What was given, as large as the value; what has several positions is put where they are."""
    given, axis = torch.as_tensor(given).to(value), point_of(name).token_axis
    if given.dim() == 2 and len(given) > 1 and point_of(name).has_heads and not name.endswith("attn.pattern"):
        raise ValueError(
            f"a tensor of shape {tuple(given.shape)} does not fit {name}, which is {tuple(value.shape)}: write (H, 1, K) "
            "for a value of each head, (1, T, K) for one of each position"
        )
    full = given.reshape((1,) * (value.dim() - given.dim()) + given.shape)
    axes = (axis, 3) if name.endswith("attn.pattern") else (axis,)
    sizes = [full.size(i) for i in axes if full.dim() == value.dim() and full.size(i) > 1]
    try:
        if sizes:
            _require_positions(min(sizes), value.size(axis), name, current, chosen)
            if name.endswith("attn.pattern") and full.size(3) == 1:
                full = full.expand(-1, -1, -1, value.size(3))
            first = torch.zeros_like(current.pad)
            rows = full.expand(len(value), *full.shape[1:])
            full = _by_position(name, rows, value, current, first, first)
        return full.expand_as(value)
    except RuntimeError:
        raise ValueError(
            f"a tensor of shape {tuple(given.shape)} does not fit {name}, which is {tuple(value.shape)}"
        ) from None


def _require_positions(n: int, n_new: int, name: str, current: Pass, chosen: Tensor) -> None:
    """Raises ValueError where more is changed than the `n` positions that were given."""
    places = current.positions[:, -n_new:]
    changed = chosen[..., 0] if chosen.dim() == 3 else chosen[..., 0].any(1)  # (B, T)
    last = int(places.masked_fill(~changed, -1).max())
    if last >= n:
        raise ValueError(
            f"the value for {name} has positions 0 to {n - 1}, and position {last} is to be changed: "
            "say which positions to change (positions=)"
        )


def _aligned(name: str, value: Tensor, source: Recording, current: Pass) -> Tensor:
    """The source's value at each position of this pass; past the source's end the value stays."""
    given, axis = source[name].to(value), point_of(name).token_axis
    rows, pad = len(current.tokens), source.pad.to(value.device)
    if len(given) not in (1, rows):
        raise ValueError(
            f"the source of {name} has {counted(len(given), 'rows')}, the text that is read has {rows}"
        )
    if given.size(axis) != source.tokens.size(1):
        raise ValueError(f"the source of {name} was generated and has not every token's: use record_text")
    begin = pad - source.start
    taken = _by_position(name, given.expand(rows, *given.shape[1:]), value, current, begin, pad)
    if taken.shape != value.shape:
        raise ValueError(
            f"the source of {name} has shape {tuple(given.shape)}, here it is {tuple(value.shape)}"
        )
    slots = current.positions[:, -value.size(axis) :] + begin[:, None]
    inside = (slots < given.size(axis)).unsqueeze(-1)  # (B, T, 1)
    return torch.where(inside[:, None] if axis == 2 else inside, taken, value)


def _by_position(
    name: str, given: Tensor, value: Tensor, current: Pass, begin: Tensor, first_key: Tensor
) -> Tensor:
    """Of each row what was given for the positions of this pass; past the end of what was given, anything.

    Args:
        name: of the point.
        given: as the value, but for its own number of tokens.
        value: which it is to be put in place of.
        current: the pass.
        begin: where position 0 of each row is along the tokens of what was given: (B,).
        first_key: and where it is along its keys, if it is a pattern: (B,).
    """
    axis = point_of(name).token_axis
    taken = _gather(given, current.positions[:, -value.size(axis) :] + begin[:, None], axis)
    if name.endswith("attn.pattern"):
        shift = (first_key - current.pad)[:, None]  # from a slot of this pass to that of the same position
        keys = torch.arange(value.size(-1), device=value.device) + shift  # (B, S)
        unseen = (keys < 0) | (keys >= given.size(-1))
        taken = _gather(taken, keys, 3).masked_fill(unseen[:, None, None], 0.0)
    return taken


def _gather(source: Tensor, slots: Tensor, axis: int) -> Tensor:
    """Of each row the slots that are named for it, out-of-range ones anything: (B, ..., S, ...) -> (B, ..., T, ...)."""
    slots = slots.clamp(0, source.size(axis) - 1)
    shape = [1] * source.dim()
    shape[0], shape[axis] = slots.shape
    wanted = list(source.shape)
    wanted[axis] = slots.size(1)
    return source.gather(axis, slots.reshape(shape).expand(wanted))
