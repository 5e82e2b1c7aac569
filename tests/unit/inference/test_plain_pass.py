"""New tokens by `plain_pass` give the bits that the blocks give; and whoever watches the blocks sees every token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from minigpt import GPT2, GPT2Config
from minigpt.inference import block_functions, plain_pass, scripted, whole_model_in_c
from minigpt.kernels import c_functions, products
from minigpt.linear import Linear
from minigpt.quantization import float16, int8

SHAPE = {"vocab_size": 61, "n_positions": 48, "n_embd": 32, "n_layer": 3, "n_head": 4}


PACKED = [  # the kinds of weights that this processor has a kernel for; of others, `QuantizedModule` calls the plain product
    pytest.param("float16", marks=pytest.mark.skipif(not float16.can_pack(), reason="needs fbgemm")),
    pytest.param("int8", marks=pytest.mark.skipif(not int8.packing_is_exact(), reason="needs VNNI")),
    pytest.param(
        "int8, compiled",
        marks=pytest.mark.skipif(not c_functions.available(), reason="needs a C compiler and AVX-512 VNNI"),
    ),
]
PARTS = (9, 3, 1, 1, 1)  # a prompt, and a few tokens after it


def new_model(**options: object) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(**{**SHAPE, **options})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases and norms, too
    return model


def quantized(model: GPT2, kind: str, monkeypatch: pytest.MonkeyPatch) -> GPT2:
    """The model with weights of that kind, multiplied by torch's kernels unless it says "compiled"."""
    if "compiled" not in kind:
        monkeypatch.setattr(c_functions, "available", lambda: False)
    return model.quantize(kind.partition(",")[0])


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pass that called no modules of blocks."""
    seen: list[int] = []

    def count(where: Any, name: str) -> None:
        compute = getattr(where, name)

        def counted(*args: object) -> Tensor | None:
            found: Tensor | None = compute(*args)
            seen.extend([1] * (found is not None))
            return found

        monkeypatch.setattr(where, name, counted)

    count(plain_pass, "through_blocks")
    count(whole_model_in_c, "next_logits")
    return seen


@torch.no_grad()
def logits_of(model: GPT2, rows: int, pad: Tensor | None = None) -> Tensor:
    """Those after each part."""
    tokens = torch.randint(61, (rows, 15), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(15, rows, pad)
    parts = tokens.split(PARTS, 1)
    return torch.stack([model.next_logits(part, cache) for part in parts])


OPTIONS = [
    {},
    {"tie_word_embeddings": False},
    {"activation_function": "gelu", "n_inner": 48},
    {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("rows", "pad"), [(1, None), (5, None), (3, torch.tensor([0, 2, 7]))])
def test_the_bits_are_those_of_the_blocks(
    options: dict[str, object],
    rows: int,
    pad: Tensor | None,
    steps: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = new_model(**options)
    fast = logits_of(model, rows, pad)
    assert len(steps) == 5
    monkeypatch.setattr(plain_pass, "blocks_are_plain", lambda *_: False)
    plain = logits_of(model, rows, pad)
    assert len(steps) == 5
    assert torch.equal(fast, plain)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize(("rows", "pad"), [(1, None), (3, torch.tensor([0, 2, 7]))])
def test_packed_weights_give_the_same_bits(
    kind: str, rows: int, pad: Tensor | None, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(new_model(), kind, monkeypatch)
    fast = logits_of(model, rows, pad)
    assert len(steps) == 5
    monkeypatch.setattr(plain_pass, "blocks_are_plain", lambda *_: False)
    assert torch.equal(fast, logits_of(model, rows, pad))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("n_tokens", [256, 257, 600])
@torch.no_grad()
def test_long_prompts_give_the_same_bits(
    kind: str, n_tokens: int, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quantized(new_model(n_positions=600), kind, monkeypatch)
    tokens = torch.randint(61, (1, n_tokens), generator=torch.Generator().manual_seed(1))
    fast = model.hidden_states(tokens, model.new_cache(n_tokens))
    assert len(steps) == 1
    monkeypatch.setattr(plain_pass, "blocks_are_plain", lambda *_: False)
    assert torch.equal(fast, model.hidden_states(tokens, model.new_cache(n_tokens)))


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((None, way) for way in ("mkl", "in blocks", "in blocks, transposed", "onednn", "in C")),
        ("int8", "packed"),
        ("float16", "packed"),
    ],
)
def test_python_and_torchscript_give_the_same_bits(
    kind: str | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "fastest_for", lambda *_: way)
    if way == "in C" and not c_functions.available():
        pytest.skip("needs a C compiler and AVX-512 VNNI")
    model = new_model()
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.weight.data = layer.weight.t().contiguous().t()  # as a loaded one lies
    if kind:
        quantized(model, kind, monkeypatch)
    assert isinstance(scripted.compiled(block_functions.through_blocks), torch.jit.ScriptFunction)
    by_torchscript = logits_of(model, 5)
    monkeypatch.setattr(scripted, "compiled", lambda function: function)
    assert torch.equal(by_torchscript, logits_of(model, 5))


def test_the_first_token_does_not_wait_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    run = scripted.run
    monkeypatch.setattr(scripted, "run", lambda *args: (read.append(args[1].size(1)), run(*args))[1])
    logits_of(new_model(), 1)
    assert read == [3, 1, 1, 1]  # tokens after the prompt


def test_what_torchscript_cannot_compile_runs_in_python() -> None:
    def with_a_name(x: int, **names: int) -> int:
        return x + names.get("more", 1)

    assert scripted.run(with_a_name, 2) == 3


def test_other_activation_functions_are_left_to_the_modules(steps: list[int]) -> None:
    logits_of(new_model(activation_function="quick_gelu"), 1)
    assert not steps


NAMES = [name for name, _ in new_model().named_modules() if name not in ("", "blocks")]


@pytest.mark.parametrize("name", NAMES)
def test_every_hook_sees_every_token(name: str) -> None:
    model = new_model()
    before: list[int] = []
    after: list[int] = []
    with ExitStack() as stack:
        part = model.get_submodule(name)
        for hook in (
            part.register_forward_hook(lambda *args: after.append(args[-1].size(-2))),
            part.register_forward_pre_hook(lambda *_: before.append(len(after))),
        ):
            stack.callback(hook.remove)
        logits_of(model, 1)
    assert before == [0, 1, 2, 3, 4]
    assert after == ([1] * 5 if name == "head" else list(PARTS))


@pytest.mark.parametrize("kind", [None, *PACKED])
@torch.no_grad()
def test_a_hook_changes_no_bit(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model(n_positions=600)
    if kind:
        quantized(model, kind, monkeypatch)
    tokens = torch.randint(61, (1, 600), generator=torch.Generator().manual_seed(1))
    for part in model.blocks[1], model.final_norm, model.head:
        unseen = model.next_logits(tokens, model.new_cache(600))
        hook = part.register_forward_hook(lambda *_: None)
        assert torch.equal(model.next_logits(tokens, model.new_cache(600)), unseen)
        hook.remove()


def test_a_hook_changes_what_it_returns() -> None:
    plain = logits_of(new_model(), 1)
    model = new_model()
    model.blocks[1].attn.qkv.register_forward_hook(lambda _, inputs, output: output * 2)
    assert not torch.allclose(logits_of(model, 1)[1:], plain[1:])


def test_what_a_hook_keeps_stays_as_it_is() -> None:
    model, kept = new_model(), []
    model.blocks[0].mlp.down.register_forward_hook(lambda *args: kept.append((args[-1], args[-1].clone())))
    logits_of(model, 1)
    assert all(torch.equal(output, copy) for output, copy in kept)


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_hooks_on_all_modules_see_every_token(register: object) -> None:
    model = new_model()
    seen: list[tuple[nn.Module, torch.Size]] = []
    hook = register(lambda module, inputs, *_: seen.append((module, inputs[0].shape)))  # type: ignore[operator]
    try:
        logits_of(model, 1)
    finally:
        hook.remove()
    for part in (model.blocks[2].mlp.up, model.final_norm):
        assert [shape[-2] for module, shape in seen if module is part] == list(PARTS)


class Twice(nn.Module):
    """A part of somebody's own in the place of one of ours."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: object) -> Tensor:
        result: Tensor = self.part(*args)
        return result * 2


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("token_embedding", "position_embedding")]
)
def test_a_part_that_was_replaced_is_called(name: str) -> None:
    model, plain = new_model(), logits_of(new_model(), 1)
    part = model.get_submodule(name)
    model.set_submodule(name, Twice(part))
    replaced = logits_of(model, 1)
    assert not torch.allclose(replaced[1:], plain[1:])
    model.set_submodule(name, part)
    usual = part.forward
    part.forward = lambda *args: usual(*args) * 2  # type: ignore[method-assign]
    assert not torch.allclose(logits_of(model, 1)[1:], plain[1:])


Ask = Callable[[GPT2, ExitStack], object]
WAYS: dict[str, Ask] = {
    "gradients": lambda model, stack: stack.enter_context(torch.enable_grad()),
    "autocast": lambda model, stack: stack.enter_context(torch.autocast("cpu", torch.bfloat16)),
    "training": lambda model, stack: model.train(),
    "a part in training": lambda model, stack: model.blocks[1].mlp.train(),
    "compiled": lambda model, stack: model.blocks[1].compile(backend="eager"),
}


@pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS)
def test_who_asks_for_more_gets_the_modules(ask: Ask, steps: list[int]) -> None:
    model = new_model()
    tokens = torch.tensor([[3]])
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        ask(model, stack)
        model.hidden_states(tokens, model.new_cache(1))
        assert not steps


def test_what_cannot_be_read_is_refused_as_ever(steps: list[int]) -> None:
    model = new_model()
    cache = model.new_cache(1)
    with pytest.raises(ValueError, match="tokens must be ids from 0 to 60, got \\[61\\]"):
        model.next_logits(torch.tensor([[61]]), cache)
    with pytest.raises(ValueError, match="the tokens have 2 rows, but the cache or its padding has 1"):
        model.next_logits(torch.tensor([[1], [2]]), cache)
    model.next_logits(torch.tensor([[60]]), cache)
    with pytest.raises(ValueError, match="token 2 does not fit a cache reserved for 1"):
        model.next_logits(torch.tensor([[60]]), cache)
    assert cache.length == 1


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 8])
@torch.no_grad()
def test_a_linear_layer_is_the_same_product(rows: int, intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "IS_INTEL", intel)
    x, bias = torch.randn(rows, 1024), torch.randn(600)
    for weight in (torch.randn(1024, 600), torch.randn(600, 1024).t()):  # as they lie on Intel, and elsewhere
        product = products.affine(products.fastest(x, weight.t()), x, weight, bias)
        assert torch.equal(product, products.product(x, weight.t(), bias))
