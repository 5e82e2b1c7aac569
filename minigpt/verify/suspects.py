"""The famous mistakes in hand-written GPT-2s, tried at the point that departs: whose numbers are ours?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from minigpt.verify.formula import ACTIVATIONS, attention, layer_norm, scale_of, triangle
from minigpt.verify.points import Departure, Pass, distance
from minigpt.verify.stored import StoredModel

# Shapes below:  T tokens of a row, its padding among them · D n_embd · H heads · K width of a head

Suspect = tuple[str, Tensor]  # what the mistake is, and what it would give here

EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 0.0)


class Scene:
    """The row in which a pass departs: what our model had before the point, and what the file says."""

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


def culprit(ours: Pass, found: Departure, stored: StoredModel, tokens: list[int]) -> str | None:
    """The mistake that would give just our numbers at the point that departs, if it is a known one."""
    scene = Scene(ours, found, stored, tokens)
    mine = scene.points[found.point]
    if not mine.isfinite().all():
        return "numbers too large for their type: infinities or NaN"
    tried = [
        (distance(mine[scene.pad :], theirs[scene.pad :]), name)
        for name, theirs in TRIALS[scene.point](scene)
    ]
    nearest, name = min(tried)
    return name if nearest <= found.bound else None


def _embedding(scene: Scene) -> Iterator[Suspect]:
    words, places = scene.stored.embedding().double(), scene.weight("wpe.weight")
    n = len(scene.tokens)
    slots = torch.arange(scene.pad, scene.pad + n)
    part = torch.cat([torch.arange(length) for length in scene.parts])[-n:]
    for name, positions in {
        "positions that count the padding": slots,
        "positions that begin at 0 again in each part": part,
        "positions that are one too many": torch.arange(n) + 1,
        "positions that are one too few": torch.arange(n) - 1,
    }.items():
        yield name, _padded(scene, words[scene.tokens] + places[positions.clamp(0, len(places) - 1)])
    yield "no position embedding", _padded(scene, words[scene.tokens])
    yield "no token embedding", _padded(scene, places[:n])


def _padded(scene: Scene, values: Tensor) -> Tensor:
    """With room for the padding before it, as our own points have."""
    return torch.cat([values.new_zeros(scene.pad, values.size(1)), values])


def _norm(scene: Scene, x: Tensor, name: str, other: str | None) -> Iterator[Suspect]:
    gain, bias = scene.weight(f"{name}.weight"), scene.weight(f"{name}.bias")
    for epsilon in EPSILONS:
        yield f"a layer norm with epsilon {epsilon:g}", layer_norm(x, gain, bias, epsilon)
    epsilon, width = scene.stored.field("layer_norm_epsilon"), x.size(-1)
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
        swapped = layer_norm(x, scene.weight(f"{other}.weight"), scene.weight(f"{other}.bias"), epsilon)
        yield f"the weights of {other} in place of {name}", swapped


def _attention_norm(scene: Scene) -> Iterator[Suspect]:
    yield from _norm(scene, scene.entering(), f"{scene.h}.ln_1", f"{scene.h}.ln_2")


def _mlp_norm(scene: Scene) -> Iterator[Suspect]:
    stream = scene.here("residual stream after attention")
    yield from _norm(scene, stream, f"{scene.h}.ln_2", f"{scene.h}.ln_1")


def _final_norm(scene: Scene) -> Iterator[Suspect]:
    last = scene.stored.field("n_layer") - 1
    yield from _norm(scene, scene.points[f"layer {last}: residual stream"], "ln_f", None)


def _qkv(scene: Scene) -> Iterator[Suspect]:
    x, n_head = scene.here("attention norm"), scene.stored.field("n_head")
    weight, bias = scene.weight(f"{scene.h}.attn.c_attn.weight"), scene.weight(f"{scene.h}.attn.c_attn.bias")
    names = ["queries", "keys", "values"]
    mine = names.index(scene.point)
    qkv = (x @ weight + bias).chunk(3, -1)
    for other, values in zip(names, qkv, strict=True):
        if other != scene.point:
            yield f"the {other} in place of the {scene.point}", values
    yield "no bias", (x @ weight).chunk(3, -1)[mine]
    by_head = (x @ weight + bias).unflatten(-1, (n_head, 3, -1))
    yield "queries, keys and values interleaved head by head", by_head.select(-2, mine).flatten(1)
    yield f"an input without its norm ({scene.h}.ln_1)", (scene.entering() @ weight + bias).chunk(3, -1)[mine]


def _linear(scene: Scene, x: Tensor, name: str) -> Iterator[Suspect]:
    weight, bias = scene.weight(f"{name}.weight"), scene.weight(f"{name}.bias")
    if weight.size(0) == weight.size(1):
        yield f"{name}.weight transposed", x @ weight.mT + bias
    yield f"{name} without its bias", x @ weight


def _attention_output(scene: Scene) -> Iterator[Suspect]:
    yield from _linear(scene, scene.here("attention"), f"{scene.h}.attn.c_proj")


def _mlp_input(scene: Scene) -> Iterator[Suspect]:
    yield from _linear(scene, scene.here("mlp norm"), f"{scene.h}.mlp.c_fc")


def _mlp_output(scene: Scene) -> Iterator[Suspect]:
    yield from _linear(scene, scene.here("activation"), f"{scene.h}.mlp.c_proj")


def _attention(scene: Scene) -> Iterator[Suspect]:
    q, k, v = (scene.here(name) for name in ("queries", "keys", "values"))
    n_head, scale = scene.stored.field("n_head"), scale_of(scene.stored, scene.layer)
    slots, itself = torch.arange(len(q)), torch.eye(len(q), dtype=torch.bool)
    visible = triangle(len(q)) & ((slots >= scene.pad) | itself)
    for name, mask in _masks(scene, slots):
        seen = mask | (itself & ~mask.any(-1, keepdim=True))  # who sees nothing has no softmax
        yield name, attention(q, k, v, n_head, scale, seen)
    width = q.size(-1) // n_head
    for name, wrong in {
        "scores that are not scaled": 1.0,
        "scores scaled by the root of n_embd": q.size(-1) ** -0.5,
        "scores scaled by the width of a head, not its root": 1 / width,
        "scores not divided by the layer's number": scale * (scene.layer + 1),
        "scores divided by the layer's number": scale / (scene.layer + 1),
        "scores divided by the layer's number less one": scale * (scene.layer + 1) / max(scene.layer, 1),
    }.items():
        yield name, attention(q, k, v, n_head, wrong, visible)
    for first, second, third in itertools.permutations([q, k, v]):
        yield (
            "queries, keys and values in another order",
            attention(first, second, third, n_head, scale, visible),
        )
    split = [x.unflatten(-1, (-1, n_head)).transpose(-1, -2).flatten(1) for x in (q, k, v)]
    mixed = attention(*split, n_head, scale, visible)
    yield "heads interleaved, not one after the other", mixed
    yield "heads interleaved, not one after the other", _heads_back(mixed, n_head)


def _heads_back(x: Tensor, n_head: int) -> Tensor:
    return x.unflatten(-1, (n_head, -1)).transpose(-1, -2).flatten(1)


def _masks(scene: Scene, slots: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Wrong masks: bool (T, T)."""
    ahead = slots[None, :] - slots[:, None]  # of a token, each key: 0 is itself, 1 the next
    is_token = slots >= scene.pad
    part, within = scene.part_of(), torch.cat([torch.arange(length) for length in scene.parts])
    yield "a mask that is off by one: each token sees the next", (ahead <= 1) & is_token
    yield "a mask that is off by one: no token sees itself", (ahead < 0) & is_token
    yield "no causal mask: each token sees all", is_token.expand(len(slots), -1)
    yield "padding that is attended to", ahead <= 0
    first_rows = slots[None, :] <= within[:, None]
    yield "the first rows of the mask in place of the last, in a part that is not the first", first_rows
    yield "a stale cache: each part sees itself alone", (ahead <= 0) & (part[:, None] == part)


def _activation(scene: Scene) -> Iterator[Suspect]:
    for name, function in ACTIVATIONS.items():
        yield (
            f"the activation {name} in place of {scene.stored.field('activation_function')}",
            function(scene.here("mlp input")),
        )


def _after_attention(scene: Scene) -> Iterator[Suspect]:
    yield "no residual connection", scene.here("attention output")
    yield (
        "a layer norm's result in place of the residual stream",
        scene.here("attention norm") + scene.here("attention output"),
    )
    yield "a residual stream without the attention", scene.entering()


def _stream(scene: Scene) -> Iterator[Suspect]:
    after_attention = scene.here("residual stream after attention")
    yield "no residual connection", scene.here("mlp output")
    yield (
        "a layer norm's result in place of the residual stream",
        scene.here("mlp norm") + scene.here("mlp output"),
    )
    yield "a residual stream without the mlp", after_attention
    yield (
        "attention and mlp side by side, not one after the other",
        scene.entering() + scene.here("mlp output"),
    )


def _logits(scene: Scene) -> Iterator[Suspect]:
    normed = scene.points["final norm"]
    last = scene.points[f"layer {scene.stored.field('n_layer') - 1}: residual stream"]
    head, words = scene.stored.head().double(), scene.stored.embedding().double()
    yield "logits without the final norm", last @ head.mT
    yield "the head tied to the token embedding, though the file has another", normed @ words.mT
    yield "logits of zeros: the head was not loaded", torch.zeros(len(normed), len(head), dtype=normed.dtype)
    before = torch.cat([normed[:1], normed[:-1]])
    yield "logits of the token before", before @ head.mT


TRIALS = {
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
