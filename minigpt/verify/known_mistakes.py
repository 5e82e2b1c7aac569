"""The famous mistakes in hand-written GPT-2s, each tried at the point where our numbers first differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from minigpt.verify.formula import ACTIVATIONS, attention, layer_norm, scale_of, triangle
from minigpt.verify.points import Departure, Pass, distance
from minigpt.verify.stored import StoredModel

# Shapes below:  T tokens of a row, its padding among them · D n_embd · H heads · K head dimension

Candidate = tuple[str, Tensor]  # what the mistake is, and what it would give here

EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)


class Context:
    """The row in which a pass first differs: what our model had before the point, and what the file says."""

    def __init__(self, ours: Pass, found: Departure, stored: StoredModel, tokens: list[int]) -> None:
        self.points = ours.row(found.row)
        self.pad, self.parts = ours.pad[found.row], ours.parts
        self.stored, self.tokens = stored, tokens[: sum(self.parts) - self.pad]
        layer, _, self.point = found.point.rpartition(": ")
        self.layer = int(layer.removeprefix("layer ")) if layer else -1
        self.h = f"h.{self.layer}"

    def here(self, point: str) -> Tensor:
        """Our own numbers at another point of the same layer."""
        return self.points[f"layer {self.layer}: {point}"]

    def entering(self) -> Tensor:
        """The residual stream that enters the layer."""
        return self.points[f"layer {self.layer - 1}: residual stream" if self.layer else "embedding"]

    def weight(self, name: str) -> Tensor:
        return self.stored.tensor(name).double()

    def part_of(self) -> Tensor:
        """Which pass read each token: (T,)."""
        return torch.cat([torch.full((length,), i) for i, length in enumerate(self.parts)])


def known_mistake(ours: Pass, found: Departure, stored: StoredModel, tokens: list[int]) -> str | None:
    """The mistake that would give just our numbers at the point that departs, if it is a known one."""
    at = Context(ours, found, stored, tokens)
    mine = at.points[found.point]
    if not mine.isfinite().all():
        return "numbers too large for their type: infinities or NaN"
    tried = [(distance(mine[at.pad :], theirs[at.pad :]), name) for name, theirs in CANDIDATES[at.point](at)]
    nearest, name = min(tried, key=lambda one: one[0])
    return name if nearest <= found.bound else None


def _embedding(at: Context) -> Iterator[Candidate]:
    words, places = at.stored.embedding().double(), at.weight("wpe.weight")
    n = len(at.tokens)
    slots = torch.arange(at.pad, at.pad + n)
    part = torch.cat([torch.arange(length) for length in at.parts])[-n:]
    for name, positions in {
        "positions that count the padding": slots,
        "positions that begin at 0 again in each part": part,
        "positions that are one too many": torch.arange(n) + 1,
        "positions that are one too few": torch.arange(n) - 1,
    }.items():
        yield name, _padded(at, words[at.tokens] + places[positions.clamp(0, len(places) - 1)])
    yield "no position embedding", _padded(at, words[at.tokens])
    yield "no token embedding", _padded(at, places[:n])


def _padded(at: Context, values: Tensor) -> Tensor:
    """With room for the padding before it, as our own points have."""
    return torch.cat([values.new_zeros(at.pad, values.size(1)), values])


def _norm(at: Context, x: Tensor, name: str, other: str | None) -> Iterator[Candidate]:
    gain, bias = at.weight(f"{name}.weight"), at.weight(f"{name}.bias")
    for epsilon in EPSILONS:
        yield f"a layer norm with epsilon {epsilon:g}", layer_norm(x, gain, bias, epsilon)
    epsilon, width = at.stored.field("layer_norm_epsilon"), x.size(-1)
    spread = x.std(-1, keepdim=True).square() + epsilon
    yield (
        "a variance divided by the width less one",
        (x - x.mean(-1, keepdim=True)) / spread.sqrt() * gain + bias,
    )
    yield (
        "an RMS norm, without the mean",
        x / ((x**2).sum(-1, keepdim=True) / width + epsilon).sqrt() * gain + bias,
    )
    yield "no norm at all", x
    if other is not None:
        swapped = layer_norm(x, at.weight(f"{other}.weight"), at.weight(f"{other}.bias"), epsilon)
        yield f"the weights of {other} in place of {name}", swapped


def _attention_norm(at: Context) -> Iterator[Candidate]:
    yield from _norm(at, at.entering(), f"{at.h}.ln_1", f"{at.h}.ln_2")


def _mlp_norm(at: Context) -> Iterator[Candidate]:
    stream = at.here("residual stream after attention")
    yield from _norm(at, stream, f"{at.h}.ln_2", f"{at.h}.ln_1")


def _final_norm(at: Context) -> Iterator[Candidate]:
    last = at.stored.field("n_layer") - 1
    yield from _norm(at, at.points[f"layer {last}: residual stream"], "ln_f", None)


def _qkv(at: Context) -> Iterator[Candidate]:
    x, n_head = at.here("attention norm"), at.stored.field("n_head")
    weight, bias = at.weight(f"{at.h}.attn.c_attn.weight"), at.weight(f"{at.h}.attn.c_attn.bias")
    names = ["queries", "keys", "values"]
    mine = names.index(at.point)
    qkv = (x @ weight + bias).chunk(3, -1)
    for other, values in zip(names, qkv, strict=True):
        if other != at.point:
            yield f"the {other} in place of the {at.point}", values
    yield "no bias", (x @ weight).chunk(3, -1)[mine]
    by_head = (x @ weight + bias).reshape(len(x), n_head, 3, -1)
    yield "queries, keys and values interleaved head by head", by_head.select(-2, mine).flatten(1)
    yield f"an input without its norm ({at.h}.ln_1)", (at.entering() @ weight + bias).chunk(3, -1)[mine]


def _linear(at: Context, x: Tensor, name: str) -> Iterator[Candidate]:
    weight, bias = at.weight(f"{name}.weight"), at.weight(f"{name}.bias")
    if weight.size(0) == weight.size(1):
        yield f"{name}.weight transposed", x @ weight.mT + bias
    yield f"{name} without its bias", x @ weight


def _attention_output(at: Context) -> Iterator[Candidate]:
    yield from _linear(at, at.here("attention"), f"{at.h}.attn.c_proj")


def _mlp_input(at: Context) -> Iterator[Candidate]:
    yield from _linear(at, at.here("mlp norm"), f"{at.h}.mlp.c_fc")


def _mlp_output(at: Context) -> Iterator[Candidate]:
    yield from _linear(at, at.here("activation"), f"{at.h}.mlp.c_proj")


def _attention(at: Context) -> Iterator[Candidate]:
    q, k, v = (at.here(name) for name in ("queries", "keys", "values"))
    n_head, scale = at.stored.field("n_head"), scale_of(at.stored, at.layer)
    slots, itself = torch.arange(len(q)), torch.eye(len(q), dtype=torch.bool)
    visible = triangle(len(q)) & ((slots >= at.pad) | itself)
    for name, mask in _masks(at, slots):
        seen = mask | (itself & ~mask.any(-1, keepdim=True))  # who sees nothing has no softmax
        yield name, attention(q, k, v, n_head, scale, seen)
    width = q.size(-1) // n_head
    for name, wrong in {
        "scores that are not scaled": 1.0,
        "scores scaled by the root of n_embd": q.size(-1) ** -0.5,
        "scores scaled by the head dimension, not its root": 1 / width,
        "scores not divided by the layer's number": scale * (at.layer + 1),
        "scores divided by the layer's number": scale / (at.layer + 1),
        "scores divided by the layer's number less one": scale * (at.layer + 1) / max(at.layer, 1),
    }.items():
        yield name, attention(q, k, v, n_head, wrong, visible)
    for first, second, third in itertools.permutations([q, k, v]):
        yield (
            "queries, keys and values in another order",
            attention(first, second, third, n_head, scale, visible),
        )
    q, k, v = (x.reshape(len(x), -1, n_head).mT.flatten(1) for x in (q, k, v))
    mixed = attention(q, k, v, n_head, scale, visible)
    yield "heads interleaved, not one after the other", mixed
    yield "heads interleaved, not one after the other", mixed.reshape(len(mixed), n_head, -1).mT.flatten(1)


def _masks(at: Context, slots: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Wrong masks: bool (T, T)."""
    ahead = slots[None, :] - slots[:, None]  # of a token, each key: 0 is itself, 1 the next
    is_token = slots >= at.pad
    part, within = at.part_of(), torch.cat([torch.arange(length) for length in at.parts])
    if at.pad:
        yield "padding that is attended to", ahead <= 0
    yield "a mask that is off by one: each token sees the next", (ahead <= 1) & is_token
    yield "a mask that is off by one: no token sees itself", (ahead < 0) & is_token
    yield "no causal mask: each token sees all", is_token.expand(len(slots), -1)
    first_rows = slots[None, :] <= within[:, None]
    yield "the first rows of the mask in place of the last, in a part that is not the first", first_rows
    yield "a stale cache: each part sees itself alone", (ahead <= 0) & (part[:, None] == part)


def _activation(at: Context) -> Iterator[Candidate]:
    for name, function in ACTIVATIONS.items():
        yield (
            f"the activation {name} in place of {at.stored.field('activation_function')}",
            function(at.here("mlp input")),
        )


def _after_attention(at: Context) -> Iterator[Candidate]:
    yield "no residual connection", at.here("attention output")
    yield (
        "a layer norm's result in place of the residual stream",
        at.here("attention norm") + at.here("attention output"),
    )
    yield "a residual stream without the attention", at.entering()


def _stream(at: Context) -> Iterator[Candidate]:
    after_attention = at.here("residual stream after attention")
    yield "no residual connection", at.here("mlp output")
    yield (
        "a layer norm's result in place of the residual stream",
        at.here("mlp norm") + at.here("mlp output"),
    )
    yield "a residual stream without the mlp", after_attention
    yield (
        "attention and mlp side by side, not one after the other",
        at.entering() + at.here("mlp output"),
    )


def _logits(at: Context) -> Iterator[Candidate]:
    normed = at.points["final norm"]
    last = at.points[f"layer {at.stored.field('n_layer') - 1}: residual stream"]
    head, words = at.stored.head().double(), at.stored.embedding().double()
    yield "logits without the final norm", last @ head.mT
    yield "the head tied to the token embedding, though the file has another", normed @ words.mT
    yield "logits of zeros: the head was not loaded", torch.zeros(len(normed), len(head), dtype=normed.dtype)
    before = torch.cat([normed[:1], normed[:-1]])
    yield "logits of the token before", before @ head.mT


CANDIDATES = {
    "embedding": _embedding,
    "attention norm": _attention_norm,
    "queries": _qkv,
    "keys": _qkv,
    "values": _qkv,
    "attention": _attention,
    "attention output": _attention_output,
    "residual stream after attention": _after_attention,
    "mlp norm": _mlp_norm,
    "mlp input": _mlp_input,
    "activation": _activation,
    "mlp output": _mlp_output,
    "residual stream": _stream,
    "final norm": _final_norm,
    "logits": _logits,
}
