"""What our model computes at each point of a pass, seen through hooks, and the first point that departs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from minigpt.model import GPT2

# Shapes below:  B rows · T tokens · W width of the point

# How many times the formula's own rounding error a right computation may have: other kernels add in another order.
# Measured over the bundled model and random ones, on all points: at most 2.6 in float32, 1.8 with fewer bits.
MARGIN, MARGIN_OF_FEW_BITS = 8, 4


@dataclass(frozen=True)
class Pass:
    """One way to compute the same logits, and what was seen on the way.

    `points` has (B, T, W) each. `parts` are the lengths of the passes that the tokens were read in; `pad` has,
    for each row, how many of its first slots are padding.
    """

    name: str
    points: Mapping[str, Tensor]
    parts: Sequence[int]
    pad: Sequence[int]

    def row(self, index: int) -> dict[str, Tensor]:
        """A row's points, with its padding: (T, W) each."""
        return {point: values[index] for point, values in self.points.items()}


@dataclass(frozen=True)
class Departure:
    """Where a pass first gives other numbers than the formula."""

    point: str
    row: int
    token: int
    difference: float
    bound: float


def bounds(
    exact: Mapping[str, Tensor], rounded: Mapping[str, Tensor], kept: torch.dtype, margin: int
) -> dict[str, float]:
    """How far a right computation in `kept` may be from the exact one, point by point.

    The formula itself is computed in that precision too, and `margin` times its error is allowed.
    """
    half_step = torch.finfo(kept).eps / 2
    return {
        point: margin * max(distance(rounded[point], values), half_step * float(values.abs().max()))
        for point, values in exact.items()
    }


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors of one shape; infinite where one of them is NaN."""
    difference = (ours.double() - theirs.double()).abs()
    return float(difference.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def first_departure(ours: Pass, exact: Mapping[str, Tensor], bound: Mapping[str, float]) -> Departure | None:
    """The first point, in the order of the formula, and in it the first token, beyond its bound."""
    for point, values in exact.items():
        for row, pad in enumerate(ours.pad):
            mine = ours.points[point][row, pad:]
            off = (mine - values[: len(mine)]).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).amax(-1)
            if float(off.max()) > bound[point]:
                token = int((off > bound[point]).nonzero()[0])
                return Departure(point, row, token, float(off.max()), bound[point])
    return None


def largest_difference(ours: Pass, exact: Mapping[str, Tensor]) -> float:
    """That of the logits of all rows, without their padding."""
    rows = [ours.points["logits"][row, pad:] for row, pad in enumerate(ours.pad)]
    return max(distance(row, exact["logits"][: len(row)]) for row in rows)


@contextmanager
def recording(model: GPT2) -> Iterator[dict[str, list[Tensor]]]:
    """Collects, for as long as the block lasts, what the model has at each point, pass after pass."""
    seen: dict[str, list[Tensor]] = {}

    def note(point: str, values: Tensor) -> None:
        seen.setdefault(point, []).append(values.detach().double().cpu())

    def output(*names: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, result: Tensor) -> None:
            for name, values in zip(names, result.chunk(len(names), -1), strict=True):
                note(name, values)

        return hook

    def entering(name: str) -> Callable[..., None]:
        return lambda module, inputs: note(name, inputs[0])

    handles = []
    for module, name in _inputs(model):
        handles.append(module.register_forward_pre_hook(entering(name)))
    for module, names in _outputs(model):
        handles.append(module.register_forward_hook(output(*names)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def joined(seen: Mapping[str, Sequence[Tensor]], logits: Sequence[Tensor]) -> dict[str, Tensor]:
    """The parts of a pass as one: (B, T, W) each."""
    points = {point: torch.cat(list(values), 1) for point, values in seen.items()}
    return points | {"logits": torch.cat([part.double().cpu() for part in logits], 1)}


def _inputs(model: GPT2) -> Iterator[tuple[nn.Module, str]]:
    for layer, block in enumerate(model.blocks):
        at = f"layer {layer}: "
        if layer == 0:
            yield block, "embedding"
        yield _at(block, "attn.out"), f"{at}attention"
        yield _at(block, "mlp_norm"), f"{at}residual stream after attention"
        yield _at(block, "mlp.down"), f"{at}activation"


def _outputs(model: GPT2) -> Iterator[tuple[nn.Module, list[str]]]:
    for layer, block in enumerate(model.blocks):
        at = partial("layer {}: {}".format, layer)
        yield _at(block, "attn_norm"), [at("attention norm")]
        yield _at(block, "attn.qkv"), [at("queries"), at("keys"), at("values")]
        yield _at(block, "attn.out"), [at("attention output")]
        yield _at(block, "mlp_norm"), [at("mlp norm")]
        yield _at(block, "mlp.up"), [at("mlp input")]
        yield _at(block, "mlp.down"), [at("mlp output")]
        yield block, [at("residual stream")]
    yield model.final_norm, ["final norm"]


def _at(block: nn.Module, path: str) -> nn.Module:
    return block.get_submodule(path)
