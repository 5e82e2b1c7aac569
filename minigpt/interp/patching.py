"""Sweeps: one intervention after another over layers and positions or heads, and what each does to a metric.

The scale of all of them: 0 is the metric of the corrupt text, 1 that of the clean one. "denoise" patches clean
values into a run of the corrupt text (what suffices to bring the answer back?), "noise" corrupt ones into a run
of the clean text (what is needed for it?).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import torch
from torch import Tensor

from minigpt.cli.progress import bar
from minigpt.interp.interventions import ablate, patch
from minigpt.interp.points import expand, one_point, point_of
from minigpt.interp.record import differentiable, equally_long, one_text, record, record_text
from minigpt.interp.recording import Recording
from minigpt.interp.token_id import token_id
from minigpt.model import GPT2

# Shapes below:  T tokens · V vocab_size

Metric = Callable[[Tensor], Tensor]  # logits (1, T, V) -> one number, ()
Direction = Literal["denoise", "noise"]


@dataclass
class Sweep:
    """What each intervention made of the metric: rows x columns, NaN where Ctrl-C came first."""

    rows: list[str]
    columns: list[str]
    clean: float  # the metric of the clean text
    corrupt: float  # ... and of the corrupt one, or 0
    title: str = ""
    values: Tensor = field(init=False)  # on the scale from corrupt (0) to clean (1)

    def __post_init__(self) -> None:
        if self.clean == self.corrupt:
            raise ValueError(
                f"the metric is {self.clean:.4g} for both texts: there is no difference to explain"
            )
        self.values = torch.full((len(self.rows), len(self.columns)), torch.nan)

    @property
    def finished(self) -> bool:
        return not bool(self.values.isnan().any())

    def put(self, row: int, column: int, metric: float) -> None:
        self.values[row, column] = (metric - self.corrupt) / (self.clean - self.corrupt)

    def largest(self, n: int = 5) -> list[tuple[str, str, float]]:
        """The places with the largest values: (row, column, value)."""
        flat = self.values.flatten()
        order = flat.nan_to_num(-torch.inf).argsort(descending=True)[:n]
        places = [divmod(i, len(self.columns)) for i in order[~flat[order].isnan()].tolist()]
        return [(self.rows[i], self.columns[j], float(self.values[i, j])) for i, j in places]

    def __repr__(self) -> str:
        done = "" if self.finished else f", {int((~self.values.isnan()).sum())} of {self.values.numel()} done"
        best = ", ".join(f"{row}/{column} {value:+.2f}" for row, column, value in self.largest(3))
        return f"Sweep({self.title}: {len(self.rows)} x {len(self.columns)}{done}; most: {best})"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(column)}</th>" for column in ["", *self.columns])
        rows = "".join(
            f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{value:+z.2f}</td>" for value in row) + "</tr>"
            for name, row in zip(self.rows, self.values.tolist(), strict=True)
        )
        return f"<table><caption>{escape(self.title)}</caption><tr>{head}</tr>{rows}</table>"


def logit_difference(right: int, wrong: int, position: int = -1) -> Metric:
    """The metric logit(right) - logit(wrong): that of the last token unless another position is given.

    Raises:
        ValueError: a token is no id; IndexError when it is given logits without such a position or token.

    >>> float(logit_difference(right=1, wrong=0)(torch.tensor([[[0.0, 3.0]]])))
    3.0
    """
    more, less = token_id("right", right), token_id("wrong", wrong)

    def difference(logits: Tensor) -> Tensor:
        n, vocab_size = logits.shape[1:]
        if not -n <= position < n:
            raise IndexError(
                f"there is no position {position}: the text has 0 to {n - 1}, from its end -1 to -{n}"
            )
        here = logits[0, position]
        return here[token_id("right", more, vocab_size)] - here[token_id("wrong", less, vocab_size)]

    return difference


def patch_positions(
    model: GPT2,
    clean: Sequence[int],
    corrupt: Sequence[int],
    metric: Metric,
    part: str = "resid_pre",
    direction: Direction = "denoise",
) -> Sweep:
    """Patches one part of one layer at one position at a time: layers x positions.

    Args:
        model: which stays as it is.
        clean: a text of which the metric is high.
        corrupt: one as long, of which it is low; best the same but for one token.
        metric: such as `logit_difference`.
        part: "resid_pre", "attn.out", "mlp.out" or another point of the blocks.
        direction: what is patched into what; see above.

    Raises:
        KeyError: there is no such part.
        ValueError: the texts are not equally long, or the metric is the same for both, or no number.

    Source: Meng et al. 2022; Zhang & Nanda 2023, "Towards Best Practices of Activation Patching".

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> clean, corrupt = tokenizer.encode("The king and"), tokenizer.encode("The dog and")
    >>> a, b = tokenizer.encode(" the queen the dog")[1::2][:2]
    >>> sweep = patch_positions(model, clean, corrupt, logit_difference(a, b))
    >>> sweep.values.shape, sweep.finished
    (torch.Size([8, 3]), True)
    """
    runs = _Runs.of(model, clean, corrupt, metric, direction, [f"blocks.*.{part}"])
    layers = range(model.config.n_layer)
    sweep = runs.sweep([f"layer {i}" for i in layers], list(map(str, range(len(runs.tokens)))), part)
    return runs.fill(sweep, lambda layer, position: patch(
        model, f"blocks.{layer}.{part}", runs.source, positions=[position]
    ))  # fmt: skip


def patch_heads(
    model: GPT2,
    clean: Sequence[int],
    corrupt: Sequence[int],
    metric: Metric,
    part: Literal["z", "q", "k", "v", "pattern"] = "z",
    direction: Direction = "denoise",
) -> Sweep:
    """Patches one part of one head at a time, at all positions: layers x heads; arguments as for `patch_positions`.

    `z` is the head's output; `q`, `k`, `v` and `pattern` say through which of its inputs it matters.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> clean, corrupt = tokenizer.encode("The king and"), tokenizer.encode("The dog and")
    >>> patch_heads(model, clean, corrupt, logit_difference(5, 6), part="v").values.shape
    torch.Size([8, 5])
    """
    if part not in ("z", "q", "k", "v", "pattern"):
        raise ValueError(f'part must be "z", "q", "k", "v" or "pattern", got {part!r}')
    runs = _Runs.of(model, clean, corrupt, metric, direction, [f"blocks.*.attn.{part}"])
    sweep = _layers_by_heads(model, runs, f"attn.{part}")
    return runs.fill(sweep, lambda layer, head: patch(
        model, f"blocks.{layer}.attn.{part}", runs.source, heads=[head]
    ))  # fmt: skip


def ablate_heads(
    model: GPT2, tokens: Sequence[int], metric: Metric, values: dict[str, Tensor] | None = None
) -> Sweep:
    """Ablates one head at a time: layers x heads. 1 is the metric of the whole model, 0 a metric of nothing.

    Args:
        model: which stays as it is.
        tokens: the text.
        metric: such as `logit_difference`.
        values: what comes in place of `blocks.L.attn.z` of each layer, as from `mean_activation`; zeros unless given.

    Raises:
        KeyError: `values` lacks a layer.
        ValueError: the metric of the text is 0, or no number.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> ablate_heads(model, tokenizer.encode("The king and"), logit_difference(5, 6)).values.shape
    torch.Size([8, 5])
    """
    text = one_text(tokens, model)
    runs = _Runs(model, text, _run(model, text, metric), 0.0, metric)
    sweep = _layers_by_heads(model, runs, "ablated heads")

    def without(layer: int, head: int) -> AbstractContextManager[None]:
        point = f"blocks.{layer}.attn.z"
        return ablate(model, point, None if values is None else values[point], heads=[head])

    return runs.fill(sweep, without)


@differentiable()
def attribution_patching(
    model: GPT2, clean: Sequence[int], corrupt: Sequence[int], metric: Metric, part: str = "attn.z"
) -> Sweep:
    """What denoising would do, to first order and for all places at once: (a_clean - a_corrupt) . d metric / da.

    The gradient is taken in the run of the corrupt text. Two passes instead of one a place; the estimate is poor
    where the model is far from linear, as at the norms of early layers and in sharp attention.

    Args:
        model: and the others as for `patch_positions`.
        part: one with heads gives layers x heads, another layers x positions.

    Raises:
        ValueError: the metric has no gradient, or there are several such parts; and as for `patch_positions`.

    Source: Nanda 2023, "Attribution Patching"; Syed et al. 2023.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> clean, corrupt = tokenizer.encode("The king and"), tokenizer.encode("The dog and")
    >>> attribution_patching(model, clean, corrupt, logit_difference(5, 6)).values.shape
    torch.Size([8, 5])
    """
    has_heads = point_of(one_point(model.config, f"blocks.0.{part}")).has_heads
    names = expand(model.config, [f"blocks.*.{part}"])
    runs = _Runs.of(model, clean, corrupt, metric, "denoise", names)
    with record(model, *names, grad=True) as seen:
        value = metric(model(torch.tensor([runs.tokens], device=model.device)))
        if not isinstance(value, Tensor) or not value.requires_grad:
            raise ValueError(
                "the metric must be a tensor that depends on the logits, not float() or .item() of it"
            )
        gradients = torch.autograd.grad(value, [seen[name] for name in names])
    effects = [
        ((runs.source[name] - seen[name].detach()) * gradient)[0]
        for name, gradient in zip(names, gradients, strict=True)
    ]
    if has_heads:
        sweep, table = _layers_by_heads(model, runs, part), torch.stack([e.sum((-1, -2)) for e in effects])
    else:
        places = list(map(str, range(len(runs.tokens))))
        sweep = runs.sweep([f"layer {i}" for i in range(len(names))], places, part)
        table = torch.stack([e.sum(-1) for e in effects])
    sweep.title = f"attribution patching of {part}"
    sweep.values = (table / (runs.clean - runs.corrupt)).float().cpu()
    return sweep


@dataclass
class _Runs:
    """The two runs that a sweep compares, and the text into which it patches."""

    model: GPT2
    tokens: list[int]
    clean: float
    corrupt: float
    metric: Metric
    source: Recording = field(init=False)
    direction: str = ""

    @classmethod
    def of(
        cls, model: GPT2, clean: Sequence[int], corrupt: Sequence[int], metric: Metric,
        direction: Direction, points: Iterable[str],
    ) -> _Runs:  # fmt: skip
        if direction not in ("denoise", "noise"):
            raise ValueError(f'direction must be "denoise" or "noise", got {direction!r}')
        good, bad = equally_long(model, clean, corrupt)
        source, base = (good, bad) if direction == "denoise" else (bad, good)
        runs = cls(model, base, _run(model, good, metric), _run(model, bad, metric), metric)
        runs.source, runs.direction = record_text(model, source, *points), f" ({direction})"
        return runs

    def sweep(self, rows: list[str], columns: list[str], title: str) -> Sweep:
        return Sweep(rows, columns, self.clean, self.corrupt, title + self.direction)

    def fill(self, sweep: Sweep, change: Callable[[int, int], AbstractContextManager[None]]) -> Sweep:
        """Runs the text under each intervention; Ctrl-C keeps what is done."""
        places = [(i, j) for i in range(len(sweep.rows)) for j in range(len(sweep.columns))]
        try:
            for row, column in bar(places, desc=sweep.title, leave=False):
                with change(row, column):
                    where = f"{sweep.rows[row]}, {sweep.columns[column]}"
                    sweep.put(row, column, _run(self.model, self.tokens, self.metric, where))
        except KeyboardInterrupt:
            pass
        return sweep


def _layers_by_heads(model: GPT2, runs: _Runs, title: str) -> Sweep:
    layers, heads = range(model.config.n_layer), range(model.config.n_head)
    return runs.sweep([f"layer {i}" for i in layers], [f"head {i}" for i in heads], title)


def _run(model: GPT2, tokens: list[int], metric: Metric, where: str = "a text as it is") -> float:
    with torch.no_grad():
        value = torch.as_tensor(metric(model(torch.tensor([tokens], device=model.device))))
    if value.numel() != 1:
        raise ValueError(f"a metric gives one number, this one has shape {tuple(value.shape)}")
    if not torch.isfinite(value):
        raise ValueError(
            f"the metric gives {float(value)} for {where}, which cannot be compared: use one that is always finite"
        )
    return float(value)
