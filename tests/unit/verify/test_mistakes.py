"""Thirty famous mistakes in hand-written GPT-2s, planted in ours one by one: `verify` names each."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import minigpt.attention
import minigpt.cache
import minigpt.model
import minigpt.weights
from minigpt import GPT2, GPT2Config
from minigpt.cache import KVCache
from minigpt.tokenizer.byte_level import byte_tokenizer
from minigpt.verify.checks import all_checks, model_checks
from minigpt.verify.stored import StoredModel

TOKENS = [7 * i % 61 for i in range(24)]
TINY = {"vocab_size": 61, "n_positions": 48, "n_layer": 2, "n_head": 4, "n_embd": 32, "eos_token_id": None}

Plant = Callable[[pytest.MonkeyPatch], Any]


def save(directory: Path, **config: Any) -> Path:
    """A model whose every weight is random, norms and biases too, so that no mix-up goes unseen."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(**{**TINY, "bos_token_id": None, **config}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm.weight" in name else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def complaints(directory: Path, change: Callable[[GPT2], object] = lambda model: None, **how: Any) -> str:
    """What `verify` says of the model in a directory, once `change` has been made to what was loaded."""
    model = GPT2.from_pretrained(directory, **how)
    change(model)
    checks = model_checks(model, StoredModel(directory), TOKENS)
    return "\n".join(f"{check.name}: {check.detail}" for check in checks if check.verdict == "failed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 40},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True, "n_positions": 24},
        {"scale_attn_weights": False, "layer_norm_epsilon": 0.1, "activation_function": "quick_gelu"},
    ],
)
def test_a_right_model_passes(tmp_path: Path, config: dict[str, Any], dtype: torch.dtype) -> None:
    assert complaints(save(tmp_path, **config), dtype=dtype) == ""


@pytest.mark.parametrize("kind", ["int8", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_right_quantized_model_passes(tmp_path: Path, kind: str, tied: bool) -> None:
    directory = save(tmp_path / "plain", tie_word_embeddings=tied)
    assert complaints(directory, quantize=kind) == ""
    GPT2.from_pretrained(directory, quantize=kind).save_pretrained(tmp_path / "small")
    assert complaints(tmp_path / "small") == ""


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_a_mistake_in_a_quantized_model_is_found(tmp_path: Path, kind: str) -> None:
    found = complaints(save(tmp_path), each_block(unscaled), quantize=kind)
    assert re.search(r"layer 0: attention,.*scores that are not scaled", found)


@pytest.mark.parametrize("kind", ["int8", "float16"])
@pytest.mark.parametrize("name", ["blocks.1.mlp.up", "token_embedding"])
def test_a_quantized_weight_that_is_not_the_nearest_is_found(tmp_path: Path, kind: str, name: str) -> None:
    def one_step_off(model: GPT2) -> None:
        module = model.get_submodule(name)
        weight = module.matrix.weight.clone()
        weight[0, 0] = 0 if weight[0, 0] != 0 else 1
        module.set_weight(weight)

    files = save(tmp_path / "plain")
    GPT2.from_pretrained(files, quantize=kind).save_pretrained(tmp_path / "small")
    for directory, quantize in ((files, kind), (tmp_path / "small", None)):
        found = complaints(directory, one_step_off, quantize=quantize)
        theirs = "h.1.mlp.c_fc.weight" if "mlp" in name else "wte.weight"
        assert f"not the nearest to the file's: {theirs}" in found


# ------------------------------------------------------------------------------ the loader


def misread(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Plant:
    """A loader that gives the model other tensors than it should."""
    fill = minigpt.weights.Checkpoint.fill

    def fill_wrongly(self: minigpt.weights.Checkpoint, model: GPT2, *how: Any) -> None:
        fill(self, model, *how)
        model.load_state_dict(change(model.state_dict()), assign=True)

    return lambda patch: patch.setattr(minigpt.weights.Checkpoint, "fill", fill_wrongly)


def each(part: str, change: Callable[[Tensor], Tensor]) -> Plant:
    return misread(
        lambda tensors: {n: change(t).contiguous() if part in n else t for n, t in tensors.items()}
    )


def swapped(tensor: Tensor) -> Tensor:
    q, k, v = tensor.chunk(3, -1)
    return torch.cat([k, q, v], -1)


def interleaved(tensor: Tensor) -> Tensor:
    return tensor.view(*tensor.shape[:-1], 3, 4, -1).transpose(-3, -2).flatten(-3)


def alphabetical(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    order = sorted(range(11), key=str)  # 0, 1, 10, 2, ...

    def source(name: str) -> str:
        return re.sub(r"blocks\.(\d+)", lambda found: f"blocks.{order[int(found[1])]}", name)

    return {name: tensors[source(name)] for name in tensors}


def norms_swapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    other = {"attn_norm": "mlp_norm", "mlp_norm": "attn_norm"}
    return {n: tensors[re.sub("attn_norm|mlp_norm", lambda found: other[found[0]], n)] for n in tensors}


LOADER = {
    "square projection transposed": (
        each("attn.out.weight", lambda w: w.mT),
        r"attn\.c_proj\.weight is transposed",
    ),
    "queries and keys swapped": (each("qkv", swapped), r"c_attn\.weight has its queries and keys swapped"),
    "heads interleaved": (each("qkv", interleaved), r"c_attn\.weight has its heads interleaved"),
    "norms swapped": (misread(norms_swapped), r"h\.0\.ln_1\.weight holds the numbers of h\.0\.ln_2\.weight"),
    "biases dropped": (each("bias", torch.zeros_like), r"h\.0\.ln_1\.bias is all zeros"),
    "positions shifted": (each("position", lambda w: w.roll(1, 0)), r"wpe\.weight is shifted by 1 row\b"),
    "rounded": (
        each("mlp.up.weight", lambda w: w.half().float()),
        r"c_fc\.weight was rounded through float16",
    ),
}


@pytest.mark.parametrize("mistake", LOADER)
def test_a_mistake_in_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str) -> None:
    plant, named = LOADER[mistake]
    directory = save(tmp_path)
    plant(monkeypatch)
    assert re.search(named, complaints(directory))


def test_layers_in_alphabetical_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save(tmp_path, n_layer=11)
    misread(alphabetical)(monkeypatch)
    assert "h.2.ln_1.weight holds the numbers of h.10.ln_1.weight" in complaints(directory)


def test_a_head_that_the_file_has_is_not_used(tmp_path: Path) -> None:
    def tie(model: GPT2) -> None:
        model.head = minigpt.model.TiedHead()

    found = complaints(save(tmp_path, tie_word_embeddings=False), tie)
    assert "the head is tied to the embedding, but the file has a head of its own" in found
    assert (
        "its numbers are those of the head tied to the token embedding, though the file has another" in found
    )


# ------------------------------------------------------------------------------ the layers


def each_block(change: Callable[[Any], object]) -> Callable[[GPT2], object]:
    return lambda model: [change(block) for block in model.blocks]


def exact_gelu(block: Any) -> None:
    block.mlp.activation = F.gelu


def other_epsilon(block: Any) -> None:
    block.mlp_norm.eps = 1e-6


def unscaled(block: Any) -> None:
    block.attn.sdpa.scale = 1.0


def no_norm(model: GPT2) -> None:
    model.final_norm = nn.Identity()


class Parallel(nn.Module):
    """A block of another family: attention and mlp side by side, as in GPT-J."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attn_norm, self.attn, self.mlp_norm, self.mlp = block.children()

    def forward(self, x: Tensor, past: Any, mask: Tensor | None) -> Tensor:
        attended = self.attn(self.attn_norm(x), past, mask)
        return x + self.mlp(self.mlp_norm(x + attended))  # type: ignore[no-any-return]


def parallel(model: GPT2) -> None:
    model.blocks = nn.ModuleList(Parallel(block) for block in model.blocks)


def heads_interleaved(block: Any) -> None:
    def regroup(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*(as_interleaved(x) for x in inputs[:3]), inputs[3])

    block.attn.sdpa.register_forward_pre_hook(regroup)


def as_interleaved(x: Tensor) -> Tensor:
    """(B, H, T, K): the heads of a vector, had they been cut from it in turns."""
    rows, n_head, n, width = x.shape
    return x.transpose(1, 2).reshape(rows, n, width, n_head).permute(0, 3, 1, 2)


def queries_for_keys(block: Any) -> None:
    def exchange(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        q, k, v, mask = inputs
        return (k[:, :, -q.size(2) :], torch.cat([k[:, :, : -q.size(2)], q], 2), v, mask)

    block.attn.sdpa.register_forward_pre_hook(exchange)


LAYERS = {
    "exact GELU": (each_block(exact_gelu), r"layer 0: activation.*the activation gelu in place of gelu_new"),
    "epsilon": (each_block(other_epsilon), r"layer 0: mlp norm.*a layer norm with epsilon 1e-06"),
    "no scale": (each_block(unscaled), r"layer 0: attention,.*scores that are not scaled"),
    "no final norm": (no_norm, r"final norm,.*no norm at all"),
    "parallel": (parallel, r"layer 0: residual stream,.*without the attention|side by side"),
    "heads interleaved": (each_block(heads_interleaved), r"layer 0: attention,.*heads interleaved"),
    "q for k": (
        each_block(queries_for_keys),
        r"layer 0: attention,.*queries, keys and values in another order",
    ),
    "dropout": (lambda model: model.train(), r"embedding,.*in training mode, so dropout is active"),
}


@pytest.mark.parametrize("mistake", LAYERS)
def test_a_mistake_in_the_layers(tmp_path: Path, mistake: str) -> None:
    change, named = LAYERS[mistake]
    assert re.search(named, complaints(save(tmp_path), change))


def test_a_scale_that_forgets_the_layer(tmp_path: Path) -> None:
    def forget(block: Any) -> None:
        block.attn.sdpa.scale = 8**-0.5

    found = complaints(save(tmp_path, scale_attn_by_inverse_layer_idx=True), each_block(forget))
    assert re.search(r"layer 1: attention,.*scores not divided by the layer's number", found)


def test_scores_that_overflow_float16(tmp_path: Path) -> None:
    def overflow(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        scores = inputs[0] @ inputs[1].mT  # before it is scaled, in half precision
        return (inputs[0] + 0 * scores.sum(), *inputs[1:])

    model = GPT2.from_pretrained(save(tmp_path))
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(200)
    model.save_pretrained(tmp_path / "loud")

    def plant(model: GPT2) -> None:
        each_block(lambda block: block.attn.sdpa.register_forward_pre_hook(overflow))(model)

    found = complaints(tmp_path / "loud", plant, dtype=torch.float16)
    assert re.search(r"layer 0: attention,.*numbers too large for their type", found)


# ------------------------------------------------------------------------------ the mask, the cache and padding


def masked(rule: Callable[[int, int, Tensor | None], Tensor | None]) -> Plant:
    def wrong(n_new: int, n_seen: int, pad: Tensor | None, device: torch.device) -> Tensor | None:
        return rule(n_new, n_seen, pad)

    return lambda patch: patch.setattr(minigpt.model, "attention_mask", wrong)


def square(n_new: int, n_seen: int, diagonal: int) -> Tensor:
    return torch.ones(n_new, n_seen, dtype=torch.bool).tril(n_seen - n_new + diagonal)


def not_itself(n_new: int, n_seen: int, pad: Tensor | None) -> Tensor:
    mask = square(n_new, n_seen, -1)
    return mask | (~mask.any(-1, keepdim=True) & square(n_new, n_seen, 0))


def positions(rule: Callable[[Any, Tensor], Tensor]) -> Plant:
    def wrong(cache: Any, n_new: int, device: torch.device) -> Tensor:
        slots = torch.arange(cache.length, cache.length + n_new)
        return rule(cache, slots if cache.pad is None else (slots - cache.pad[:, None]).clamp_min(0))

    return lambda patch: patch.setattr(minigpt.model, "_positions", wrong)


def count_padding(cache: Any, places: Tensor) -> Tensor:
    return torch.arange(cache.length, cache.length + places.size(-1))


def only_the_new(self: Any, kv: Tensor) -> tuple[Tensor, ...]:
    return tuple(kv.unbind())


def forgetful(patch: pytest.MonkeyPatch) -> None:
    masked(lambda n_new, n_seen, pad: square(n_new, n_new, 0))(patch)
    patch.setattr(minigpt.cache.LayerCache, "extend", only_the_new)
    patch.setattr(minigpt.cache.NoCache, "extend", only_the_new)


PASSES = {
    "sees the next": (
        masked(lambda n_new, n_seen, pad: square(n_new, n_seen, 1)),
        r"one pass.*layer 0: attention, at token 0.*off by one: each token sees the next",
    ),
    "does not see itself": (
        masked(not_itself),
        r"one pass.*layer 0: attention.*off by one: no token sees itself",
    ),
    "no mask": (
        masked(lambda n_new, n_seen, pad: square(n_new, n_seen, n_new)),
        r"one pass.*layer 0: attention.*no causal mask: each token sees all",
    ),
    "first rows of the mask": (
        masked(lambda n_new, n_seen, pad: square(n_seen, n_seen, 0)[:n_new]),
        r"cache in three parts.*layer 0: attention, at token 12.*the first rows of the mask in place of the last",
    ),
    "stale cache": (forgetful, r"cache in three parts.*layer 0: attention, at token 12.*a stale cache"),
    "positions begin again": (
        positions(lambda cache, places: places - cache.length),
        r"cache in three parts.*embedding, at token 12.*positions that begin at 0 again in each part",
    ),
    "positions count padding": (
        positions(count_padding),
        r"padded batch.*embedding, at token 0 of the row with 1 padding.*positions that count the padding",
    ),
    "positions off by one": (
        positions(lambda cache, places: places + 1),
        r"one pass.*embedding, at token 0.*positions that are one too many",
    ),
    "padding is seen": (
        masked(lambda n_new, n_seen, pad: square(n_new, n_seen, 0)),
        r"padded batch.*layer 0: attention.*row with 1 padding.*padding that is attended to",
    ),
}


@pytest.mark.parametrize("mistake", PASSES)
def test_a_mistake_that_only_some_passes_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    plant, named = PASSES[mistake]
    plant(monkeypatch)
    assert re.search(named, complaints(save(tmp_path)))


def test_logits_of_the_token_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GPT2.unembed

    def shifted(self: GPT2, x: Tensor) -> Tensor:
        return right(self, torch.cat([x[:, :1], x[:, :-1]], 1) if x.dim() == 3 else x)

    monkeypatch.setattr(GPT2, "unembed", shifted)
    assert re.search(r"one pass.*logits, at token 1.*logits of the token before", complaints(save(tmp_path)))


def test_greedy_text_that_is_not_the_likeliest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = GPT2.next_logits
    monkeypatch.setattr(GPT2, "next_logits", lambda self, *how: -right(self, *how))
    found = complaints(save(tmp_path))
    assert "greedy text of 20 tokens, with and without the cache: token 0 is another" in found
    assert re.search(r"the formula's likeliest: a token of \[.*\] is not the likeliest, by", found)


def test_a_weight_that_is_no_number(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = GPT2.from_pretrained(save(tmp_path, vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        model.blocks[0].mlp.up.weight[0, 0] = math.nan
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = all_checks(GPT2.from_pretrained(tmp_path), tokenizer, tmp_path, tmp_path)
    of_logits = {check.verdict for check in found if "logits" in check.name or "page" in check.name}
    assert of_logits == {"failed"}


def test_rows_that_are_mixed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = KVCache.replace_rows
    wrong = lambda self, rows, other: right(self, [self.rows - 1 - row for row in rows], other)  # noqa: E731
    monkeypatch.setattr(KVCache, "replace_rows", wrong)
    assert "many prompts side by side, as alone: " in complaints(save(tmp_path))
