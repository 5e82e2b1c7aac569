"""The points of the model that can be recorded and edited: one table, and how their names are matched."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from operator import index
from typing import Any

from minigpt.config import GPT2Config
from minigpt.errors import InvalidRequest, NoSuchIndex

# Shapes:  B rows · T new tokens · S tokens in view (cached + new) · H heads · K head dimension · D n_embd
#          M width of the MLP · V vocab_size


@dataclass(frozen=True)
class Point:
    """A tensor that every forward pass computes, and what other libraries call it.

    `name` is that of the point within a block where `in_block` is true: `attn.q` of layer 3 is
    `blocks.3.attn.q`.
    """

    name: str
    shape: str
    meaning: str
    transformers: str
    transformer_lens: str
    in_block: bool = True

    @property
    def has_heads(self) -> bool:
        """Whether axis 1 is the heads; the tokens then are axis 2, and else axis 1."""
        return self.shape.startswith("(B, H, ")

    @property
    def token_axis(self) -> int:
        return 2 if self.has_heads else 1


POINTS = (
    Point("embed", "(B, T, D)", "token embedding + position embedding", "hidden_states[0]",
          "blocks.0.hook_resid_pre", in_block=False),
    Point("resid_pre", "(B, T, D)", "the residual stream that enters the block", "hidden_states[L]",
          "blocks.L.hook_resid_pre"),
    Point("attn.q", "(B, H, T, K)", "queries of the new tokens", "h.L.attn.c_attn, first third",
          "blocks.L.attn.hook_q"),
    Point("attn.k", "(B, H, T, K)", "keys of the new tokens", "h.L.attn.c_attn, second third",
          "blocks.L.attn.hook_k"),
    Point("attn.v", "(B, H, T, K)", "values of the new tokens", "h.L.attn.c_attn, last third",
          "blocks.L.attn.hook_v"),
    Point("attn.pattern", "(B, H, T, S)", "how much each query attends to each key; rows sum to 1",
          "attentions[L] (eager only)", "blocks.L.attn.hook_pattern"),
    Point("attn.z", "(B, H, T, K)", "each head's weighted mean of the values: pattern @ v",
          "input of h.L.attn.c_proj, split by head", "blocks.L.attn.hook_z"),
    Point("attn.out", "(B, T, D)", "what attention adds to the stream: all heads and the bias",
          "h.L.attn, output", "blocks.L.hook_attn_out"),
    Point("resid_mid", "(B, T, D)", "the stream between attention and MLP", "input of h.L.ln_2",
          "blocks.L.hook_resid_mid"),
    Point("mlp.pre", "(B, T, M)", "neurons before the activation function", "h.L.mlp.c_fc, output",
          "blocks.L.mlp.hook_pre"),
    Point("mlp.post", "(B, T, M)", "neurons after the activation function", "h.L.mlp.act, output",
          "blocks.L.mlp.hook_post"),
    Point("mlp.out", "(B, T, D)", "what the MLP adds to the stream", "h.L.mlp, output",
          "blocks.L.hook_mlp_out"),
    Point("resid_post", "(B, T, D)", "the stream that leaves the block", "h.L, output",
          "blocks.L.hook_resid_post"),
    Point("final_norm", "(B, T, D)", "the last stream after the final LayerNorm", "hidden_states[-1]",
          "ln_final.hook_normalized", in_block=False),
    Point("logits", "(B, T, V)", "scores of the next token (while generating, of the newest token only)",
          "logits", "the model's output", in_block=False),
)  # fmt: skip
BY_NAME = {point.name: point for point in POINTS}
# What TransformerLens has and no point is: how it is computed of a recording `seen`, L being the layer.
COMPUTED = {
    "attn.hook_attn_scores": 'q @ k.mT * model.config.attention_scale(L) without the causal mask, with q = '
    'seen["blocks.L.attn.q"] and k = seen["blocks.L.attn.k"]',
    "attn.hook_result": 'seen["blocks.L.attn.z"] @ model.blocks[L].attn.out.weight.unflatten(0, (n_head, -1))',
    "ln1.hook_normalized": 'model.blocks[L].attn_norm(seen["blocks.L.resid_pre"])',
    "ln2.hook_normalized": 'model.blocks[L].mlp_norm(seen["blocks.L.resid_mid"])',
    "ln1.hook_scale": '(seen["blocks.L.resid_pre"].var(-1, unbiased=False) + model.blocks[L].attn_norm.eps).sqrt()',
    "ln2.hook_scale": '(seen["blocks.L.resid_mid"].var(-1, unbiased=False) + model.blocks[L].mlp_norm.eps).sqrt()',
    "ln_final.hook_scale": "(x.var(-1, unbiased=False) + model.final_norm.eps).sqrt() with x the last resid_post",
    "hook_embed": "model.token_embedding(seen.tokens)",
    "hook_pos_embed": "model.position_embedding.weight[: seen.tokens.size(1)]",
}  # fmt: skip


def table() -> str:
    """All points as a table in Markdown: name, shape, meaning, and what two other libraries call them."""
    head = ("point", "shape", "what it is", "transformers", "TransformerLens")
    rows = [
        (
            f"`{'blocks.L.' if point.in_block else ''}{point.name}`", point.shape, point.meaning,
            point.transformers, point.transformer_lens,
        )
        for point in POINTS
    ]  # fmt: skip
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def point_of(name: str) -> Point:
    """The row of the table to which a full name belongs.

    >>> point_of("blocks.3.attn.pattern").shape
    '(B, H, T, S)'
    """
    return BY_NAME[re.sub(r"^blocks\.\d+\.", "", name)]


def layer_of(name: str) -> int | None:
    """The layer in a full name, or None where there is none."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


def all_points(config: GPT2Config) -> list[str]:
    """The full name of every point of a model, in the order in which a pass computes them.

    >>> all_points(GPT2Config(n_layer=1))[:3]
    ['embed', 'blocks.0.resid_pre', 'blocks.0.attn.q']
    """
    before, *_ = [point.name for point in POINTS if not point.in_block]
    after = [point.name for point in POINTS if not point.in_block and point.name != before]
    inside = [point.name for point in POINTS if point.in_block]
    return [before, *(f"blocks.{i}.{name}" for i in range(config.n_layer) for name in inside), *after]


def expand(config: GPT2Config, patterns: Iterable[str], layers: Sequence[int] | None = None) -> list[str]:
    """The full names that the patterns match, in the order of a pass; `*` stands for one part of a name.

    Args:
        config: of the model whose points they are.
        patterns: such as `blocks.3.attn.q`, `blocks.*.attn.*`, `logits`.
        layers: only points of these layers, and those that belong to none.

    Raises:
        KeyError: a pattern matches no point of this model.
        IndexError: the model has no such layer.
        ValueError: a pattern is no string, or `layers` no list.

    >>> expand(GPT2Config(n_layer=3), ["blocks.*.resid_post", "logits"], layers=[0, 2])
    ['blocks.0.resid_post', 'blocks.2.resid_post', 'logits']
    """
    names = all_points(config)
    layers = as_indices("layer", layers, config.n_layer)
    if isinstance(patterns, str):
        raise ValueError(f"points are names in a list: write [{patterns!r}]")
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ValueError(f"points are names, each an argument of its own, got {pattern!r}")
        parts = [re.escape(part).replace(r"\*", "[^.]*") for part in pattern.split(".")]
        matches = {name for name in names if re.fullmatch(r"\.".join(parts), name)}
        if layers is not None:
            matches = {name for name in matches if layer_of(name) in (None, *layers)}
        if not matches:
            raise KeyError(_no_point(pattern, names, layers))
        chosen |= matches
    return [name for name in names if name in chosen]


def one_point(config: GPT2Config, pattern: str) -> str:
    """The full name of the only point that a pattern matches; errors as for `expand`, and ValueError for several.

    >>> one_point(GPT2Config(n_layer=3), "blocks.2.*.z")
    'blocks.2.attn.z'
    """
    names = expand(config, [pattern])
    if len(names) > 1:
        raise ValueError(f"{pattern!r} matches {len(names)} points: name one of them, such as {names[0]}")
    return names[0]


def as_indices(
    what: str, indices: Any, n: int | None = None, argument: str | None = None
) -> list[int] | None:
    """The numbers of some heads, layers, positions or rows as a list; None is all of them.

    Args:
        what: "head", "layer", "position" or "row".
        indices: a list, a range, or a tensor of whole numbers.
        n: how many the model has, if that is known.
        argument: what the caller knows them by; "heads" for "head", and so on, unless given.

    Raises:
        NoSuchIndex: one of them is not from 0 to n - 1; negative numbers do not count from the end.
        InvalidRequest: they are no whole numbers in a list, or there are none.

    >>> as_indices("head", range(2), 4)
    [0, 1]
    """
    if indices is None:
        return None
    argument = argument or f"{what}s"
    plain = indices.tolist() if hasattr(indices, "tolist") else indices  # of a tensor, or an array
    if isinstance(plain, int):
        raise InvalidRequest(f"{argument}={plain} must be a list of numbers: write [{plain}]")
    chosen = _whole_numbers(plain)
    if chosen is None:
        raise InvalidRequest(
            f"{argument}={indices!r:.60} must be whole numbers in a list, such as [0, 2] or range(2)"
        )
    if not chosen:
        raise InvalidRequest(f"{argument}=[] chooses nothing; leave it out for all of them")
    wrong = [i for i in chosen if i < 0 or (n is not None and i >= n)]
    if wrong:
        if n is None or wrong[0] < 0:
            there = f"{what}s are counted from 0"
        else:
            there = f"this model has {what}s 0 to {n - 1}"
        raise NoSuchIndex(f"there is no {what} {wrong[0]}: {there}")
    return chosen


def _whole_numbers(values: Any) -> list[int] | None:
    """None if they are something else, such as a slice, fractions, or a mask of truth values."""
    try:
        given = list(values)
        numbers = [index(value) for value in given]
    except TypeError:
        return None
    return None if any(isinstance(value, bool) for value in given) else numbers


def meant_points(name: str, names: Sequence[str]) -> str:
    """Which points a wrong name may stand for, as a question or an answer; nothing where none is near.

    >>> meant_points("blocks.1.attn.patern", ["logits", "blocks.1.attn.pattern"])
    'did you mean blocks.1.attn.pattern?'
    >>> meant_points("blocks.1.attn.hook_z", [])
    'here it is called blocks.1.attn.z'
    """
    if known := _called_elsewhere(name):
        return known
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def _called_elsewhere(name: str) -> str:
    """What a name of transformers or TransformerLens is here; nothing where neither has it."""
    layer = re.search(r"(?:\bblocks\.|\bh\.|\[)(\d+|\*)", name)
    of_layer_l = f"{name[: layer.start(1)]}L{name[layer.end(1) :]}" if layer else name
    ending = "." + of_layer_l.removeprefix("transformer.")  # the beginning may be left out, as in "hook_z"

    def theirs(point: Point) -> list[str]:
        words = re.split(r"[ ,]+", f"{point.transformers} {point.transformer_lens}")
        return [word for word in words if "." in word or "[" in word]

    here = f"blocks.{layer[1] if layer else '*'}."
    points = [
        here + point.name if point.in_block else point.name
        for point in POINTS
        if any(f".{word}".endswith(ending) for word in theirs(point))
    ]
    if points:
        return f"here it is called {' or '.join(points)}"
    ways = [
        way for word, way in COMPUTED.items() if ending.endswith(f".{word}") or f".{word}".endswith(ending)
    ]
    return f"it is no point here: compute {' or '.join(ways)}" if ways else ""


def _no_point(pattern: str, names: list[str], layers: Sequence[int] | None) -> str:
    of_any_layer = {name: re.sub(r"^blocks\.-?\d+\.", "blocks.*.", name) for name in [pattern, *names]}
    known, last = sorted({of_any_layer[name] for name in names}), max(layer_of(name) or 0 for name in names)
    if f"blocks.*.{pattern}" in known:
        hint = f"did you mean blocks.*.{pattern}?"
    elif of_any_layer[pattern] in known and pattern not in names:
        hint = f"layers are 0 to {last}"
    else:
        near = meant_points(pattern, known if "*" in pattern else names)
        beyond = [layer for layer in re.findall(r"blocks\.(\d+)\.", near) if int(layer) > last]
        hint = f"layers are 0 to {last}" if beyond else near or f"points are {', '.join(BY_NAME)}"
    where = "" if layers is None else f" in layers {list(layers)}"
    return f"no point matches {pattern!r}{where}; {hint} (points of layer L begin with blocks.L.)"
