"""Modules that call functions in C do what torch's do; together they give the same bits; and each row as it is alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Parameter
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import register_parametrization
from torch.utils.flop_counter import FlopCounterMode

from minigpt import GPT2, GPT2Config
from minigpt.attention import ScaledDotProductAttention, attention_mask, attention_pattern
from minigpt.cache import KVCache
from minigpt.inference import modules_in_c, pass_in_c, whole_model_in_c
from minigpt.inference.modules_in_c import AttentionInC, LayerNormInC, tanh_gelu_in_c
from minigpt.kernels import c_functions, products
from minigpt.linear import Linear
from minigpt.model import UntiedHead
from minigpt.quantization import float16
from minigpt.quantization.int8_in_c import MatrixInC
from minigpt.quantization.modules import QuantizedModule, QuantizedTiedHead

if not c_functions.available():
    pytest.skip("needs a C compiler, and a processor with AVX-512 VNNI", allow_module_level=True)

KINDS = ["float32", "float16", "int8"]
# Of the logits' standard deviation: how far a model may be from the same by torch's functions. A last bit may round an
# input to another whole number.
NEAR = {"float32": 1e-5, "float16": 1e-5, "int8": 0.05}


@pytest.fixture(autouse=True)
def float32_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Intel's processors, too."""
    monkeypatch.setattr(products, "IS_INTEL", False)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def new_model(**options: object) -> GPT2:
    shape: dict[str, object] = {"vocab_size": 61, "n_positions": 200, "n_embd": 48, "n_layer": 3, "n_head": 4}
    torch.manual_seed(0)
    model = GPT2(GPT2Config(**{**shape, **options})).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms, too
    return model


def model_of(kind: str, **options: object) -> GPT2:
    model = new_model(**options)
    if kind != "float32":
        return model.quantize(kind)
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.weight.data = layer.weight.t().contiguous().t()  # as a loaded one lies
    modules_in_c.put_into(model)
    return model


def loaded(model: GPT2, folder: Path) -> GPT2:
    model.save_pretrained(folder)
    return GPT2.from_pretrained(folder)


def is_any_weight_in_c(model: GPT2) -> bool:
    matrices = [getattr(module, "matrix", None) for module in model.modules()]
    return any(isinstance(matrix, float16.MatrixInC | MatrixInC) for matrix in matrices)


TOKENS = torch.randint(61, (1, 180), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@torch.no_grad()
def test_under_autocast_a_model_is_near_to_the_one_by_torchs_kernels(kind: str, activation: str) -> None:
    by_c, by_torch = model_of(kind, activation_function=activation), new_model(activation_function=activation)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "float32"):
        expected = by_torch(TOKENS).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = by_c(TOKENS).float()
    assert (found - expected).abs().max() < 0.2 * expected.std()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_cache_of_another_model_is_refused(kind: str) -> None:
    model = model_of(kind)
    others = ((new_model(n_layer=1).config, torch.zeros(1)), (model.config, torch.zeros(1).bfloat16()))
    for config, like in others:
        with pytest.raises(
            ValueError, match=r"the cache is another model's: it is \(.*must be \(3, 2, 1, 4, 50, 12\)"
        ):
            model.next_logits(TOKENS[:, :5], KVCache(config, 50, 1, like=like))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_norms_that_cannot_be_read_where_they_are_are_left_to_torch(kind: str) -> None:
    model, tokens = model_of(kind), TOKENS[:, :20]
    expected = model.next_logits(tokens, model.new_cache(20))
    norm = model.blocks[1].attn_norm
    norm.weight = torch.nn.Parameter(norm.weight.repeat_interleave(2)[::2], requires_grad=False)
    assert not norm.weight.is_contiguous()
    found = model.next_logits(tokens, model.new_cache(20))
    assert (found - expected).abs().max() < NEAR[kind] * expected.std()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_parameters_that_could_be_trained_change_no_bit_where_nobody_trains(kind: str) -> None:
    model = model_of(kind)
    expected = model(TOKENS)
    model.requires_grad_(True)
    assert torch.equal(model(TOKENS), expected)
    assert torch.equal(model.unembed(model.hidden_states(TOKENS, model.new_cache(180))), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_pickled_model_runs_where_nothing_can_be_compiled(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind)
    expected, pickled = model(TOKENS), pickle.dumps(model)
    assert torch.equal(pickle.loads(pickled)(TOKENS), expected)
    monkeypatch.setattr(c_functions, "available", lambda: False)
    monkeypatch.setattr(c_functions, "functions", lambda: None)
    elsewhere = pickle.loads(pickled)
    assert not is_any_weight_in_c(elsewhere)
    for logits in (elsewhere(TOKENS)[:, -1], elsewhere.next_logits(TOKENS, elsewhere.new_cache(180))):
        assert (logits - expected[:, -1]).abs().max() < NEAR[kind] * expected.std()


@pytest.mark.parametrize("width", [8, 33, 48, 768])
@torch.no_grad()
def test_layer_norm_and_gelu_are_torchs_to_rounding(width: int) -> None:
    x, norm = random(2, 3, width) * 5 + 1, torch.nn.LayerNorm(width, eps=1e-5)
    norm.weight.copy_(random(width))
    norm.bias.copy_(random(width, seed=2))
    torch.testing.assert_close(LayerNormInC.like(norm)(x), norm(x), rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(tanh_gelu_in_c(x), F.gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_gelu_of_numbers_without_measure() -> None:
    x = torch.tensor([1e30, -1e30, 0.0, -0.0, torch.nan, 1e4, -1e4, 1e-30])
    expected = torch.tensor([1e30, 0.0, 0.0, 0.0, torch.nan, 1e4, 0.0, 5e-31])
    torch.testing.assert_close(tanh_gelu_in_c(x), expected, equal_nan=True)


@pytest.mark.parametrize("head_dim", [4, 16, 20, 64, 80])
@pytest.mark.parametrize(("n_new", "n_seen"), [(1, 1), (1, 100), (3, 19), (20, 20), (70, 150)])
@pytest.mark.parametrize("pads", [[0, 0], [0, 5]])
@torch.no_grad()
def test_attention_is_the_formula(head_dim: int, n_new: int, n_seen: int, pads: list[int]) -> None:
    q, k, v = (
        random(2, 3, n_new, head_dim),
        random(2, 3, n_seen, head_dim, seed=2),
        random(2, 3, n_seen, head_dim, seed=3),
    )
    pad = torch.tensor(pads)
    mask = attention_mask(n_new, n_seen, pad, q.device)
    assert mask is not None
    found = AttentionInC(0.3, 0.0).eval()(q, k, v, mask)
    is_token = (torch.arange(n_seen - n_new, n_seen) >= pad.clamp_max(n_seen - 1)[:, None])[
        :, None, :, None
    ]  # (B, 1, T, 1)
    expected = (attention_pattern(q, k, mask, 0.3) @ v) * is_token
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("head_dim", [4, 20, 64, 80])
@pytest.mark.parametrize("n_new", [2, 7, 8, 15, 16, 17, 70])
@torch.no_grad()
def test_queries_together_have_the_bits_of_each_alone(head_dim: int, n_new: int) -> None:
    """Side by side in a register's lanes, four by four or one by one; and what a query may not see does not touch it."""
    n_seen, pads = 90, [0, 3, 84]
    q = random(len(pads), 2, n_new, head_dim)
    k, v = random(len(pads), 2, n_seen, head_dim, seed=2), random(len(pads), 2, n_seen, head_dim, seed=3)
    k[0, 0, -1] = v[0, 0, -1] = torch.nan  # only the last token sees it
    together = c_functions.attention(q, k, v, pads, 0.3)
    for i in range(n_new):
        n = n_seen - n_new + i + 1
        alone = c_functions.attention(q[:, :, i : i + 1], k[:, :, :n], v[:, :, :n], pads, 0.3)[:, :, 0]
        for row, pad in enumerate(pads):
            expected = alone[row] if n > pad else torch.zeros_like(alone[row])  # padding sees nothing
            assert torch.equal(together[row, :, i].nan_to_num(), expected.nan_to_num())
    assert not together[:, :, :-1].isnan().any()


@torch.no_grad()
def test_under_somebodys_own_mask_attention_is_torchs() -> None:
    q, k, v = random(2, 3, 4, 16), random(2, 3, 9, 16, seed=2), random(2, 3, 9, 16)
    own = random(2, 1, 4, 9) > 0
    own[..., 0] = True
    attend = AttentionInC(0.3, 0.0).eval()
    torch.testing.assert_close(
        attend(q, k, v, own), attention_pattern(q, k, own, 0.3) @ v, rtol=1e-5, atol=1e-6
    )
    of_one_row = attention_mask(4, 9, torch.tensor([2]), q.device)  # for all
    of_two_rows = attention_mask(4, 9, torch.tensor([2, 2]), q.device)
    assert torch.equal(attend(q, k, v, of_one_row), attend(q, k, v, of_two_rows))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_read_whole_in_parts_and_token_by_token_give_the_same_bits(kind: str) -> None:
    model = model_of(kind)
    whole = model(TOKENS)
    for parts in ((180,), (7, 1, 140, 32), (1,) * 180):
        cache = model.new_cache(180)
        states = [model.hidden_states(part, cache) for part in TOKENS.split(parts, 1)]
        assert torch.equal(model.unembed(torch.cat(states, 1)), whole)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_padded_row_gives_the_bits_that_it_gives_alone(kind: str) -> None:
    model, pads = model_of(kind), [3, 0, 100, 9, 1]
    padded = torch.cat([F.pad(TOKENS[:, : 150 - pad], (pad, 0)) for pad in pads])
    logits = model(padded, pad=torch.tensor(pads))
    assert logits.isfinite().all()
    for row, pad in enumerate(pads):
        assert torch.equal(logits[row, pad:], model(TOKENS[:, : 150 - pad])[0])


def passes_of(where: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has the function of this name record each pass that it computes from now on: how many tokens of a row leave it."""
    read, compute = [], getattr(where, name)

    def counted(*args: object) -> Tensor | None:
        found: Tensor | None = compute(*args)
        if found is not None:
            read.append(found.size(1) if found.dim() == 3 else 1)
        return found

    monkeypatch.setattr(where, name, counted)
    return read


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_modules_give_the_bits_of_the_whole_pass(
    kind: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind, tie_word_embeddings=tied)
    of_model = passes_of(whole_model_in_c, "next_logits", monkeypatch)
    of_blocks = passes_of(pass_in_c, "through_blocks", monkeypatch)
    pads = torch.tensor([3, 0, 100, 9, 139, 140, 150])
    parts = TOKENS.expand(len(pads), -1).split((140, 5, 1, 34), 1)
    found = []
    for watched in (None, model.final_norm, model.blocks[1].mlp):
        hook = watched.register_forward_hook(lambda *_: None) if watched else None
        cache = model.new_cache(180, len(pads), pads)
        found.append([*(model.next_logits(part, cache) for part in parts), cache.slots])
        if hook:
            hook.remove()
    assert of_model == [1] * 4
    assert of_blocks == [140, 5, 1, 34]  # the hook sees them all
    for step in zip(*found, strict=True):
        assert all(torch.equal(*pair) for pair in pairwise(step))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_last_block_computes_only_what_leaves_the_head(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pads = model_of(kind), torch.tensor([3, 0, 100, 9, 139, 140, 150])
    parts = TOKENS[:, :160].expand(len(pads), -1).split((140, 7, 13), 1)
    monkeypatch.setattr(whole_model_in_c, "next_logits", lambda *_: None)
    computed = passes_of(pass_in_c, "through_blocks", monkeypatch)
    cache = model.new_cache(160, len(pads), pads)
    states = [model.hidden_states(part, cache) for part in parts]
    again = model.new_cache(160, len(pads), pads)
    logits = [model.next_logits(part, again) for part in parts]
    assert computed == [140, 7, 13, 1, 1, 1]
    for some, last in zip(states, logits, strict=True):
        assert torch.equal(model.unembed(some[:, -1]), last)
    assert torch.equal(cache.slots, again.slots)


@pytest.mark.parametrize(
    "options", [{"activation_function": "gelu"}, {"activation_function": "relu"}], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_other_activation_functions_keep_torchs_modules(kind: str, options: dict[str, object]) -> None:
    model = model_of(kind, **options)
    assert not any(isinstance(module, LayerNormInC | AttentionInC) for module in model.modules())
    assert model.blocks[0].mlp.activation is not tanh_gelu_in_c
    assert kind == "float32" or is_any_weight_in_c(model)
    whole = model(TOKENS[:, :20])
    cache = model.new_cache(20)
    parts = [model.unembed(model.hidden_states(part, cache)) for part in TOKENS[:, :20].split((7, 1, 12), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=NEAR[kind] * float(whole.std()))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_number_of_threads_changes_no_bit(kind: str) -> None:
    model, threads, found = model_of(kind), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            cache = model.new_cache(180)
            once = [model.next_logits(part, cache)[0] for part in TOKENS.split((177, 1, 2), 1)]
            found.append(torch.cat([model(TOKENS)[0], torch.stack(once)]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in pairwise(found))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_model_is_near_to_the_one_by_torchs_kernels(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_c = model_of(kind)
    expected = by_c(TOKENS)
    monkeypatch.setattr(c_functions, "available", lambda: False)
    by_torch = loaded(new_model(), tmp_path) if kind == "float32" else model_of(kind)
    assert not is_any_weight_in_c(by_torch)
    assert not any(isinstance(module, LayerNormInC | AttentionInC) for module in by_torch.modules())
    for other in (by_torch, copy.deepcopy(by_c)):
        assert (expected - other(TOKENS)).abs().max() < NEAR[kind] * expected.std()


@torch.no_grad()
def test_a_loaded_model_computes_in_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = loaded(new_model(), tmp_path), new_model()(TOKENS)
    assert type(model.blocks[2].attn.sdpa) is AttentionInC
    assert not torch.equal(model(TOKENS), expected)
    torch.testing.assert_close(model(TOKENS), expected, rtol=1e-5, atol=1e-5 * float(expected.std()))
    for dtype in (torch.bfloat16, torch.float64):
        assert type(GPT2.from_pretrained(tmp_path, dtype=dtype).blocks[2].attn.sdpa) is not AttentionInC
    monkeypatch.setattr(products, "IS_INTEL", True)
    assert type(GPT2.from_pretrained(tmp_path).blocks[2].attn.sdpa) is not AttentionInC


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_a_model_made_another_dtype_is_the_one_by_torchs_modules(dtype: torch.dtype) -> None:
    """Whether its blocks are called or taken together."""
    by_c, by_torch = model_of("float32").to(dtype), new_model().to(dtype)
    assert by_c._blocks_are_plain()
    assert torch.equal(by_c(TOKENS), by_torch(TOKENS))
    logits = [model.next_logits(TOKENS, model.new_cache(180)) for model in (by_c, by_torch)]
    assert torch.equal(*logits)


def test_gradients_and_dropout_are_torchs() -> None:
    by_c, by_torch = model_of("float32", attn_pdrop=0.5), new_model(attn_pdrop=0.5)
    for model in (by_c.train(), by_torch.train()):
        torch.manual_seed(0)
        model.loss(TOKENS).backward()
    for name, parameter in by_c.named_parameters():
        torch.testing.assert_close(parameter.grad, by_torch.get_parameter(name).grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.manual_seed(0)
        dropped = by_c(TOKENS)
        assert not torch.equal(dropped, by_c(TOKENS))


@pytest.mark.parametrize("kind", ["float32", "float16"])
@torch.no_grad()
def test_who_counts_what_is_computed_is_given_torchs_operations(kind: str) -> None:
    totals = []
    for model in (model_of(kind), new_model()):
        with FlopCounterMode(display=False) as counter:
            model(TOKENS)
            model.next_logits(TOKENS, model.new_cache(180))
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 0


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", ["float32", "float16"])
@torch.no_grad()
def test_a_model_can_be_mapped_over_rows(kind: str) -> None:
    model, rows = model_of(kind), TOKENS.view(6, 1, 30)
    mapped = torch.func.vmap(model)(rows)
    torch.testing.assert_close(mapped, torch.stack([model(row) for row in rows]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "attention", "through_blocks", "next_logits"])
@torch.no_grad()
def test_where_there_is_no_memory_it_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("float32")
    monkeypatch.setattr(c_functions.functions(), name, lambda *_: 0)
    read: dict[str, Callable[[], object]] = {
        "next_logits": lambda: model.next_logits(TOKENS, model.new_cache(180)),
        "through_blocks": lambda: model.hidden_states(TOKENS, model.new_cache(180)),
    }
    with pytest.raises(MemoryError, match="no memory left for what is computed between the layers"):
        read.get(name, lambda: model(TOKENS))()


def narrower(model: GPT2) -> None:
    mlp = model.blocks[0].mlp
    mlp.up.weight, mlp.up.bias = Parameter(mlp.up.weight[:, :10]), Parameter(mlp.up.bias[:10])
    mlp.down.weight = Parameter(mlp.down.weight.t()[:, :10].contiguous().t())


def wider(model: GPT2) -> None:
    mlp = model.blocks[2].mlp
    mlp.up.weight, mlp.up.bias = Parameter(random(4000, 48).t()), Parameter(random(4000))
    mlp.down.weight = Parameter(random(48, 4000).t())


def without_a_bias(model: GPT2) -> None:
    model.blocks[1].mlp.up.bias = None


def negated(model: GPT2) -> None:
    for part in (model.blocks[0].mlp.up, model.blocks[1].attn_norm):
        part.bias = Parameter(torch._neg_view(part.bias.detach()))
        assert part.bias.is_neg()


def of_another_class(model: GPT2) -> None:
    model.token_embedding.weight.data = model.token_embedding.weight.data.as_subclass(Named)
    model.blocks[1].mlp.down.weight = Parameter(model.blocks[1].mlp.down.weight.detach().as_subclass(Named))


def pruned(model: GPT2) -> None:
    prune.l1_unstructured(model.blocks[0].attn_norm, "weight", 0.3)


def parametrized(model: GPT2) -> None:
    register_parametrization(model.blocks[1].mlp_norm, "weight", torch.nn.Softplus())
    weight_norm(model.blocks[2].mlp.up)


class Named(Tensor):
    """A tensor of somebody's own class."""


# Of the same memory, other views.


def narrower_view(model: GPT2) -> None:
    mlp = model.blocks[0].mlp
    mlp.up.weight.data, mlp.up.bias.data = mlp.up.weight.data[:, :64], mlp.up.bias.data[:64]
    mlp.down.weight.data = mlp.down.weight.data[:64]


def transposed_view(model: GPT2) -> None:
    model.blocks[1].attn.out.weight.data = model.blocks[1].attn.out.weight.data.t()


def negated_view(model: GPT2) -> None:
    model.blocks[1].mlp.up.bias.data = torch._neg_view(model.blocks[1].mlp.up.bias.data)


def stretched_view(model: GPT2) -> None:
    for vector in (
        model.blocks[0].attn_norm.weight,
        model.blocks[2].mlp_norm.bias,
        model.blocks[2].attn.qkv.bias,
    ):
        vector.data = vector.data[:1].expand(len(vector))


CHANGES = [
    narrower, wider, without_a_bias, negated, of_another_class, pruned, parametrized,
    narrower_view, transposed_view, negated_view, stretched_view,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_model_that_was_changed_is_the_one_by_torchs_modules(change: Callable[[GPT2], None]) -> None:
    """Whether its blocks are called or taken together."""
    by_c, by_torch = model_of("float32"), new_model()
    for layer in by_torch.modules():
        if isinstance(layer, Linear):
            layer.weight.data = layer.weight.t().contiguous().t()
    caches = [model.new_cache(180) for model in (by_c, by_torch)]
    for model, cache in zip((by_c, by_torch), caches, strict=True):
        model.next_logits(TOKENS[:, :90], cache)
        torch.manual_seed(0)
        change(model)
    expected = by_torch(TOKENS)
    logits = by_c.unembed(by_c.hidden_states(TOKENS, by_c.new_cache(180)))
    last = [
        model.next_logits(TOKENS[:, 90:], cache)
        for model, cache in zip((by_c, by_torch), caches, strict=True)
    ]
    for found, right in ((by_c(TOKENS), expected), (logits, expected), last):
        torch.testing.assert_close(
            found.as_subclass(Tensor),
            right.as_subclass(Tensor),
            rtol=1e-5,
            atol=1e-5 * float(expected.std()),
        )


def norm_replaced(model: GPT2) -> None:
    model.blocks[1].mlp_norm.weight = Parameter(random(48))


def norm_given_other_memory(model: GPT2) -> None:
    model.blocks[1].mlp_norm.bias.data = random(48)


def norm_changed_in_place(model: GPT2) -> None:
    model.blocks[2].attn_norm.weight.mul_(1.5)


def bias_given_other_memory(model: GPT2) -> None:
    model.blocks[0].mlp.up.bias.data = random(192)


def other_epsilon(model: GPT2) -> None:
    model.blocks[0].attn_norm.eps = 0.5


def other_scale(model: GPT2) -> None:
    model.blocks[1].attn.sdpa.scale = 0.125


def other_linear_layer(model: GPT2) -> None:
    model.blocks[0].mlp.up = copy.deepcopy(model.blocks[2].mlp.up)


def other_block(model: GPT2) -> None:
    model.blocks[0] = copy.deepcopy(model.blocks[2])


def norm_with_names_swapped(model: GPT2) -> None:
    norm = model.blocks[1].mlp_norm
    weight, bias = norm.weight, norm.bias
    del norm.weight, norm.bias
    norm.bias, norm.weight = weight, bias


def other_embeddings(model: GPT2) -> None:
    model.token_embedding = copy.deepcopy(model.token_embedding)
    if isinstance(model.token_embedding, torch.nn.Embedding):
        model.token_embedding.weight.data = random(61, 48)
    else:
        model.token_embedding.weight = model.token_embedding.weight.flip(0)


def embeddings_changed_in_place(model: GPT2) -> None:
    model.token_embedding.weight.mul_(2)


def positions_given_other_memory(model: GPT2) -> None:
    model.position_embedding.weight.data = random(200, 48)


def other_final_norm(model: GPT2) -> None:
    model.final_norm.bias = Parameter(random(48))


def other_final_epsilon(model: GPT2) -> None:
    model.final_norm.eps = 0.5


def other_head(model: GPT2) -> None:
    if isinstance(model.head, QuantizedModule):
        model.head = copy.deepcopy(model.head)
        model.head.set_weight(model.head.matrix.weight.flip(0))
    else:
        model.head.weight = Parameter(random(61, 48))


OF_BLOCKS = [
    norm_replaced, norm_given_other_memory, norm_changed_in_place, bias_given_other_memory, other_epsilon, other_scale,
    other_linear_layer, other_block, norm_with_names_swapped,
]  # fmt: skip
OF_ENDS = [
    other_embeddings, embeddings_changed_in_place, positions_given_other_memory, other_final_norm, other_final_epsilon,
    other_head,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("is_whole", "change"),
    [*((True, change) for change in OF_BLOCKS + OF_ENDS), *((False, change) for change in OF_BLOCKS)],
)
@torch.no_grad()
def test_a_change_counts_from_the_next_token_on(
    kind: str, is_whole: bool, change: Callable[[GPT2], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the cache of the tokens before it."""
    model = model_of(kind, tie_word_embeddings=False)
    if not is_whole:
        monkeypatch.setattr(whole_model_in_c, "next_logits", lambda *_: None)
    cache = model.new_cache(60)
    model.next_logits(TOKENS[:, :30], cache)
    unchanged = model.next_logits(TOKENS[:, 30:31], copy.deepcopy(cache))
    change(model)
    hook = model.blocks[1].mlp.register_forward_hook(lambda *_: None)
    expected = model.next_logits(TOKENS[:, 30:31], copy.deepcopy(cache))
    hook.remove()
    where = (whole_model_in_c, "next_logits") if is_whole else (pass_in_c, "through_blocks")
    taken = passes_of(*where, monkeypatch)
    found = model.next_logits(TOKENS[:, 30:31], cache)
    assert taken == [1]
    assert torch.equal(found, expected)
    assert not torch.equal(found, unchanged)


class Louder(GPT2):
    """A model with a method of somebody's own."""

    def unembed(self, x: Tensor) -> Tensor:
        return 2 * super().unembed(x)


def with_max_norm(model: GPT2) -> None:
    model.position_embedding.max_norm = 0.5


def of_a_subclass(model: GPT2) -> None:
    model.__class__ = Louder


def with_a_head_tied_to_another(model: GPT2) -> None:
    other = copy.deepcopy(model.token_embedding)
    other.set_weight(other.matrix.weight.flip(0))
    model.head = QuantizedTiedHead(other.multiply).eval()


def with_torchs_final_norm(model: GPT2) -> None:
    model.final_norm = torch.nn.LayerNorm(48).eval()


def with_strided_embeddings(model: GPT2) -> None:
    model.position_embedding.weight.data = random(48, 200).t()


def with_a_padding_index(model: GPT2) -> None:
    model.position_embedding.padding_idx = 3
    model.position_embedding.weight.data = random(200, 48)


def with_a_method_of_its_own(model: GPT2) -> None:
    unembed = model.unembed
    model.unembed = lambda x: 2 * unembed(x)  # type: ignore[method-assign]


def with_torchs_class_of_norm(model: GPT2) -> None:
    model.final_norm.__class__ = torch.nn.LayerNorm
    model.final_norm.bias = Parameter(random(48))


def with_a_product_of_the_heads_own(model: GPT2) -> None:
    other = copy.deepcopy(model.token_embedding)
    other.set_weight(other.matrix.weight.flip(0))
    model.head._multiply = other.multiply


def with_embeddings_of_floats(model: GPT2) -> None:
    model.token_embedding.weight = 3.0 * model.token_embedding.weight


UNREADABLE = [
    with_max_norm, of_a_subclass, with_torchs_final_norm, with_strided_embeddings, with_a_padding_index,
    with_a_method_of_its_own, with_torchs_class_of_norm,
]  # fmt: skip
UNREADABLE_INT8 = [with_a_head_tied_to_another, with_a_product_of_the_heads_own, with_embeddings_of_floats]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *((kind, change) for kind in KINDS for change in UNREADABLE),
        *(("int8", change) for change in UNREADABLE_INT8),
    ],
)
@torch.no_grad()
def test_where_one_call_cannot_read_a_part_the_modules_are_called(
    kind: str, change: Callable[[GPT2], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the cache of the tokens before it."""
    model = model_of(kind)
    caches = [model.new_cache(180) for _ in range(2)]
    for cache in caches:
        model.next_logits(TOKENS[:, :90], cache)
    plain = model.next_logits(TOKENS[:, 90:], copy.deepcopy(caches[0]))
    change(model)
    whole = passes_of(whole_model_in_c, "next_logits", monkeypatch)
    found = model.next_logits(TOKENS[:, 90:], caches[0])
    assert not whole
    assert torch.equal(found, model.unembed(model.hidden_states(TOKENS[:, 90:], caches[1]))[:, -1])
    assert not torch.equal(found, plain)


@torch.no_grad()
def test_a_bias_of_a_quantized_end_adds_nothing() -> None:
    model = model_of("int8", tie_word_embeddings=False)
    expected = model.next_logits(TOKENS, model.new_cache(180))
    model.head.bias = model.token_embedding.bias = random(61)
    assert torch.equal(model.next_logits(TOKENS, model.new_cache(180)), expected)


@torch.no_grad()
def test_a_scale_that_is_read_as_a_copy_is_read_anew_for_each_pass() -> None:
    model = model_of("int8", tie_word_embeddings=False)
    model.head.input_scale = model.head.input_scale.double()
    cache = model.new_cache(180)
    model.next_logits(TOKENS[:, :90], cache)
    again = copy.deepcopy(cache)
    model.head.input_scale.mul_(random(48).abs())
    expected = model.unembed(model.hidden_states(TOKENS[:, 90:], again))[:, -1]
    assert torch.equal(model.next_logits(TOKENS[:, 90:], cache), expected)


@torch.no_grad()
def test_a_head_of_float32_is_multiplied_as_ever_on_intels_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "IS_INTEL", True)
    model = model_of("int8", tie_word_embeddings=False)
    model.head = UntiedHead(model.config).eval()
    model.head.weight = Parameter(random(61, 48))
    last = model.hidden_states(TOKENS, model.new_cache(180))[:, -1]
    assert torch.equal(model.next_logits(TOKENS, model.new_cache(180)), model.unembed(last))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_memory_that_moves_counts_from_the_next_token_on(kind: str) -> None:
    model = model_of(kind)
    cache = model.new_cache(180)
    model.next_logits(TOKENS[:, :90], cache)
    expected = model.next_logits(TOKENS[:, 90:], copy.deepcopy(cache))
    model.share_memory()
    assert torch.equal(model.next_logits(TOKENS[:, 90:], cache), expected)


@torch.no_grad()
def test_wrong_ids_are_named_before_a_lack_of_room() -> None:
    model = model_of("float32")
    with pytest.raises(ValueError, match=r"got \[99\]"):
        model.next_logits(torch.tensor([[1, 2, 99, 3]]), model.new_cache(3))
    with pytest.raises(ValueError, match="token 4 does not fit a cache reserved for 3"):
        model.next_logits(torch.tensor([[1, 2, 9, 3]]), model.new_cache(3))


@torch.no_grad()
def test_embeddings_that_the_function_would_misread_are_none() -> None:
    floats, ints = random(4, 8), torch.zeros(4, 8, dtype=torch.int8)
    rows, columns = torch.ones(4), torch.ones(8)
    assert c_functions.plain_table(floats) is not None
    assert c_functions.plain_table(floats.half()) is not None
    assert c_functions.int8_table(ints, rows, columns) is not None
    for wrong in (
        ints, floats.bfloat16(), floats.t(), floats.as_subclass(Named), torch._neg_view(floats), random(4, 8, 1), random(4),
    ):  # fmt: skip
        assert c_functions.plain_table(wrong) is None
    for parts in (
        (floats, rows, columns), (ints, rows[:1], columns), (ints, rows, columns[:7]), (ints.t(), columns, rows),
        (ints, rows.half(), columns), (ints, rows[:1].expand(4), columns), (ints, rows, columns.as_subclass(Named)),
    ):  # fmt: skip
        assert c_functions.int8_table(*parts) is None


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_strides_and_integer_type_of_tokens_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = model_of(kind), TOKENS.expand(3, -1) + torch.arange(3)[:, None]
    tokens %= 61
    expected = model(tokens)[:, -1]
    whole = passes_of(whole_model_in_c, "next_logits", monkeypatch)
    for same in (tokens, tokens.int(), tokens.t().contiguous().t()):
        assert torch.equal(model.next_logits(same, model.new_cache(180, 3)), expected)
    model.next_logits(tokens.as_subclass(Named), model.new_cache(180, 3))
    assert len(whole) == 3  # a subclass of Tensor goes to the modules


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_ids_without_an_embedding_are_refused_by_name(kind: str) -> None:
    model = model_of(kind)
    for wrong in (-1, 61, 2**40):
        tokens = TOKENS.clone()
        tokens[0, 7] = wrong
        cache = model.new_cache(180)
        with pytest.raises(ValueError, match=rf"tokens must be ids from 0 to 60, got \[{wrong}\]"):
            model.next_logits(tokens, cache)
        assert cache.length == 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_addresses_of_a_models_parts_are_found_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = [], pass_in_c.c_block
    monkeypatch.setattr(pass_in_c, "c_block", lambda *args: (made.append(args), make(*args))[1])
    model = model_of(kind)
    cache = model.new_cache(60)
    for part in TOKENS[:, :40].split((30, 5, 1, 4), 1):
        model.next_logits(part, cache)
    assert len(made) == len(model.blocks)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(model.next_logits(TOKENS[:, :9], cache), model.next_logits(TOKENS[:, :9], again))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["attn_norm.weight", "mlp_norm.bias", "mlp.up.bias", "attn.qkv.bias"])
@torch.no_grad()
def test_parameters_of_a_wrong_length_are_refused(kind: str, part: str) -> None:
    model = model_of(kind)
    path, _, name = part.rpartition(".")
    owner, short = model.blocks[1].get_submodule(path), torch.zeros(7)
    setattr(owner, name, Parameter(short) if name in owner._parameters else short)
    for read in (lambda: model(TOKENS), lambda: model.next_logits(TOKENS, model.new_cache(180))):
        with pytest.raises((RuntimeError, ValueError), match=r"7|normalized_shape"):
            read()


@pytest.mark.parametrize("name", ["attn.qkv", "attn.out", "mlp.up", "mlp.down"])
@torch.no_grad()
def test_layers_that_do_not_fit_together_are_refused(name: str) -> None:
    model = model_of("float32")
    layer = model.blocks[1].get_submodule(name)
    layer.weight, layer.bias = Parameter(layer.weight.t()[:9].t()), Parameter(layer.bias[:9])
    with pytest.raises((RuntimeError, ValueError), match=r"9|shape|size"):
        model.next_logits(TOKENS, model.new_cache(180))


@torch.no_grad()
def test_blocks_may_have_other_numbers_of_heads() -> None:
    model = model_of("float32")
    model.blocks[1].attn.n_head = 2
    with pytest.raises(RuntimeError, match="size"):
        model.next_logits(TOKENS, model.new_cache(180))


ODD = {
    "negative": lambda: torch._neg_view(random(2, 48)),
    "zeros": lambda: torch._efficientzerotensor((2, 48)),
    "nothing": lambda: torch.empty(0, 48),
    "of another class": lambda: random(2, 48).as_subclass(Named),
    "fake": lambda: FakeTensorMode().from_tensor(random(2, 48)),
}


@pytest.mark.parametrize("name", ODD)
@torch.no_grad()
def test_inputs_without_numbers_of_their_own_are_torchs(name: str) -> None:
    model, x = model_of("float32"), ODD[name]()
    block, plain = model.blocks[0], ODD[name]().clone() if name == "negative" else ODD[name]()
    pairs = [
        (block.mlp.up, lambda x: F.linear(x, block.mlp.up.weight.t(), block.mlp.up.bias)),
        (block.attn_norm, lambda x: torch.nn.LayerNorm.forward(block.attn_norm, x)),
        (tanh_gelu_in_c, lambda x: F.gelu(x, approximate="tanh")),
    ]
    for ours, theirs in pairs:
        if name == "fake":  # they are not mixed with others
            with suppress(RuntimeError, AssertionError):
                assert type(ours(x)) is FakeTensor
        else:
            found, expected = ours(x).as_subclass(Tensor), theirs(plain).as_subclass(Tensor)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_who_records_operations_records_torchs(kind: str) -> None:
    model = model_of(kind)
    expected, recorded = model(TOKENS), make_fx(model, tracing_mode="real")(TOKENS.clone())
    assert (recorded(TOKENS) - expected).abs().max() < NEAR[kind] * expected.std()
    x, part = random(1, 5, 48), torch.nn.Sequential(model.blocks[0].attn_norm, model.blocks[0].mlp)
    traced = torch.jit.trace(part, random(1, 5, 48, seed=2), check_trace=False)
    for _ in range(2):
        assert (traced(x) - part(x)).abs().max() < NEAR[kind] * part(x).std()


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own rules are written in it
@torch.no_grad()
def test_tangents_go_through() -> None:
    block = model_of("float32").requires_grad_(False).blocks[0]
    with forward_ad.dual_level():
        x = forward_ad.make_dual(random(2, 48), random(2, 48, seed=2))
        for part in (block.attn_norm, tanh_gelu_in_c):
            assert forward_ad.unpack_dual(part(x)).tangent is not None


class Doubled(ScaledDotProductAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return 2 * super().forward(q, k, v, mask)


@torch.no_grad()
def test_what_somebody_put_into_a_model_stays() -> None:
    models = [new_model(), new_model()]
    seen: list[str] = []
    for model in models:
        model.blocks[0].attn.sdpa = Doubled(0.3, 0.0).eval()
        model.blocks[1].attn_norm.register_forward_hook(lambda *_: seen.append("norm"))
    small = models[0].quantize("float16")
    assert type(small.blocks[0].attn.sdpa) is Doubled
    assert (small(TOKENS) - models[1](TOKENS)).abs().max() < 0.01
    assert seen == ["norm"] * 2


@pytest.mark.parametrize("kind", ["float16", "int8"])
@torch.no_grad()
def test_a_bias_that_does_not_lie_together_is_read_anew_for_each_pass(kind: str) -> None:
    model, scattered = model_of(kind), model_of(kind)
    cache, other = model.new_cache(180), scattered.new_cache(180)
    for block in scattered.blocks:
        block.mlp.up.bias = block.mlp.up.bias.repeat_interleave(2)[::2]
    for part in TOKENS.split((170, 10), 1):
        assert torch.equal(model.next_logits(part, cache), scattered.next_logits(part, other))
        for either in (model, scattered):
            either.blocks[1].mlp.up.bias.mul_(2)
