"""The functions in C against the plain ones: linear layers to the bit, the rest to rounding; and each row as it is alone."""

from __future__ import annotations

import copy
import pickle
import subprocess
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt import GPT2, GPT2Config
from minigpt.attention import attention_mask, attention_pattern
from minigpt.cache import KVCache
from minigpt.inference import compiled_pass
from minigpt.quantization import c_code, compiled
from minigpt.quantization.compiled import CompiledMatrix
from minigpt.quantization.int8 import Int8Linear, PackedMatrix, PlainMatrix

if not compiled.available():
    pytest.skip("needs a C compiler, and a processor with AVX-512 VNNI", allow_module_level=True)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(**options: object) -> GPT2:
    shape: dict[str, object] = {"vocab_size": 61, "n_positions": 200, "n_embd": 48, "n_layer": 3, "n_head": 4}
    torch.manual_seed(0)
    plain = GPT2(GPT2Config(**{**shape, **options})).eval()  # type: ignore[arg-type]
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases and norms, too
    return plain.quantize("int8")


TOKENS = torch.randint(61, (1, 180), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["affine", "fine_affine"])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 130])
@pytest.mark.parametrize(("n_in", "n_out"), [(64, 64), (96, 50), (768, 256), (3072, 64), (100, 7), (33, 17)])
@torch.no_grad()
def test_a_layer_is_the_plain_one_to_the_bit(n_in: int, n_out: int, n_rows: int, name: str) -> None:
    rows = random(n_rows, n_in) * 10.0 ** torch.arange(n_rows).remainder(7).sub(3)[:, None]
    rows[-1] = 0
    weight = torch.randint(-127, 128, (n_out, n_in), dtype=torch.int8)
    scale, input_scale = random(n_out).abs(), random(n_in, seed=2).abs()
    plain, fast = PlainMatrix(weight, scale), CompiledMatrix(weight, scale)
    assert torch.equal(fast.weight, weight)
    for bias in (random(n_out, seed=3), None):
        expected = getattr(plain, name)(rows, input_scale, bias)
        assert torch.equal(getattr(fast, name)(rows, input_scale, bias), expected)


@pytest.mark.parametrize("sign", [1, -1])
@torch.no_grad()
def test_sums_that_exceed_16_bits_do_not_saturate(sign: int) -> None:
    weight = torch.full((20, 3072), 127, dtype=torch.int8)
    rows, ones = torch.full((3, 3072), float(sign)), torch.ones(3072)
    found = CompiledMatrix(weight, torch.ones(20)).affine(rows, ones, None)
    torch.testing.assert_close(found, torch.full((3, 20), sign * 127.0 * 3072), rtol=1e-6, atol=0)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
@torch.no_grad()
def test_numbers_without_measure_stay_in_their_row_and_are_as_in_the_plain_product(odd: float) -> None:
    weight, ones = torch.arange(-20, 20).to(torch.int8).repeat(20, 1), torch.ones(40)
    matrix, plain = CompiledMatrix(weight, torch.ones(20)), PlainMatrix(weight, torch.ones(20))
    rows = random(3, 40)
    rows[1, 7] = odd
    for name in ("affine", "fine_affine"):
        affine = getattr(matrix, name)
        found, expected = affine(rows, ones, torch.ones(20)), getattr(plain, name)(rows, ones, torch.ones(20))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found[::2], affine(rows[::2], ones, torch.ones(20)))


def new_layer() -> Int8Linear:
    return Int8Linear(torch.ones(20, 40, dtype=torch.int8), torch.ones(20), torch.ones(40), torch.zeros(20))


@pytest.mark.parametrize(
    "bias",
    [
        torch.full((20,), 3.0),
        torch.zeros(1).expand(20),
        torch.arange(40.0)[::2],
        torch.arange(20, dtype=torch.float64),
        torch.arange(20, dtype=torch.bfloat16),
    ],
    ids=["others", "expanded", "strided", "float64", "bfloat16"],
)
@torch.no_grad()
def test_tensors_may_be_replaced_by_others_of_any_kind(bias: Tensor) -> None:
    layer = new_layer()
    before = layer(torch.ones(2, 40))
    layer.bias = bias
    assert torch.equal(layer(torch.ones(2, 40)), before + bias.float())
    bias.data = torch.ones(20, dtype=bias.dtype)
    assert torch.equal(layer(torch.ones(2, 40)), before + 1)
    layer.input_scale = torch.full((40,), 2.0)
    assert torch.equal(layer(torch.ones(2, 40)), 2 * before + 1)


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    layer = new_layer()
    with pytest.raises(ValueError, match="expected rows of 40 inputs on the CPU, got 39 on cpu"):
        layer(torch.ones(2, 39))
    with pytest.raises(ValueError, match="expected rows of 40 inputs on the CPU, got 40 on meta"):
        layer(torch.ones(2, 40, device="meta"))
    layer.bias = torch.zeros(19)
    with pytest.raises(ValueError, match=r"expected 20 numbers on the CPU, got \(19,\) on cpu"):
        layer(torch.ones(2, 40))
    int8 = model()
    for config, like in ((model(n_layer=1).config, torch.zeros(1)), (int8.config, torch.zeros(1).bfloat16())):
        with pytest.raises(
            ValueError, match=r"the cache is another model's: it is \(.*must be \(3, 2, 1, 4, 50, 12\)"
        ):
            int8.next_logits(TOKENS[:, :5], KVCache(config, 50, 1, like=like))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_rows_of_another_dtype_are_made_float32(dtype: torch.dtype) -> None:
    rows = random(3, 40).to(dtype)
    assert torch.equal(new_layer()(rows), new_layer()(rows.float()))


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
@torch.no_grad()
def test_under_autocast_a_model_is_near_to_itself(activation: str) -> None:
    int8 = model(activation_function=activation)
    with torch.autocast("cpu", torch.bfloat16):
        found = int8(TOKENS).float()
    assert (found - int8(TOKENS)).abs().max() < 0.2 * int8(TOKENS).std()


@torch.no_grad()
def test_norms_that_cannot_be_read_where_they_are_are_left_to_torch() -> None:
    int8, tokens = model(), TOKENS[:, :20]
    expected = int8.next_logits(tokens, int8.new_cache(20))
    norm = int8.blocks[1].attn_norm
    norm.weight = torch.nn.Parameter(norm.weight.repeat_interleave(2)[::2], requires_grad=False)
    assert not norm.weight.is_contiguous()
    found = int8.next_logits(tokens, int8.new_cache(20))
    assert (found - expected).abs().max() < 0.05 * expected.std()


@torch.no_grad()
def test_parameters_that_could_be_trained_change_no_bit_where_nobody_trains() -> None:
    int8 = model()
    expected = int8(TOKENS)
    int8.requires_grad_(True)
    assert torch.equal(int8(TOKENS), expected)
    assert torch.equal(int8.unembed(int8.hidden_states(TOKENS, int8.new_cache(180))), expected)


@torch.no_grad()
def test_a_pickled_model_runs_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    int8 = model()
    expected, pickled = int8(TOKENS), pickle.dumps(int8)
    assert torch.equal(pickle.loads(pickled)(TOKENS), expected)
    monkeypatch.setattr(compiled, "available", lambda: False)
    monkeypatch.setattr(compiled, "functions", lambda: None)
    elsewhere = pickle.loads(pickled)
    assert type(elsewhere.blocks[0].mlp.up.matrix) in (PackedMatrix, PlainMatrix)
    for logits in (elsewhere(TOKENS)[:, -1], elsewhere.next_logits(TOKENS, elsewhere.new_cache(180))):
        assert (logits - expected[:, -1]).abs().max() < 0.05 * expected.std()


@pytest.mark.parametrize("width", [8, 33, 48, 768])
@torch.no_grad()
def test_layer_norm_and_gelu_are_torchs_to_rounding(width: int) -> None:
    x, norm = random(2, 3, width) * 5 + 1, torch.nn.LayerNorm(width, eps=1e-5)
    norm.weight.copy_(random(width))
    norm.bias.copy_(random(width, seed=2))
    torch.testing.assert_close(compiled.LayerNorm.like(norm)(x), norm(x), rtol=1e-5, atol=3e-6)
    torch.testing.assert_close(compiled.tanh_gelu(x), F.gelu(x, approximate="tanh"), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_gelu_of_numbers_without_measure() -> None:
    x = torch.tensor([1e30, -1e30, 0.0, -0.0, torch.nan, 1e4, -1e4, 1e-30])
    expected = torch.tensor([1e30, 0.0, 0.0, 0.0, torch.nan, 1e4, 0.0, 5e-31])
    torch.testing.assert_close(compiled.tanh_gelu(x), expected, equal_nan=True)


@pytest.mark.parametrize("head_dim", [4, 16, 20, 64, 80])
@pytest.mark.parametrize(("n_new", "n_seen"), [(1, 1), (1, 100), (3, 19), (20, 20), (70, 150)])
@pytest.mark.parametrize("pads", [[0, 0], [0, 5]])
@torch.no_grad()
def test_attention_is_the_formula(head_dim: int, n_new: int, n_seen: int, pads: list[int]) -> None:
    q, k, v = (
        random(2, 3, n_new, head_dim),
        random(2, 3, n_seen, head_dim, seed=2),
        random(2, 3, n_seen, head_dim),
    )
    pad = torch.tensor(pads)
    mask = attention_mask(n_new, n_seen, pad, q.device)
    assert mask is not None
    found = compiled.Attention(0.3, 0.0).eval()(q, k, v, mask)
    is_token = (torch.arange(n_seen - n_new, n_seen) >= pad.clamp_max(n_seen - 1)[:, None])[
        :, None, :, None
    ]  # (B, 1, T, 1)
    expected = (attention_pattern(q, k, mask, 0.3) @ v) * is_token
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-6)


@torch.no_grad()
def test_under_somebodys_own_mask_attention_is_torchs() -> None:
    q, k, v = random(2, 3, 4, 16), random(2, 3, 9, 16, seed=2), random(2, 3, 9, 16)
    own = random(2, 1, 4, 9) > 0
    own[..., 0] = True
    attend = compiled.Attention(0.3, 0.0).eval()
    torch.testing.assert_close(
        attend(q, k, v, own), attention_pattern(q, k, own, 0.3) @ v, rtol=1e-5, atol=1e-6
    )
    of_one_row = attention_mask(4, 9, torch.tensor([2]), q.device)  # for all
    of_two_rows = attention_mask(4, 9, torch.tensor([2, 2]), q.device)
    assert torch.equal(attend(q, k, v, of_one_row), attend(q, k, v, of_two_rows))


@torch.no_grad()
def test_read_whole_in_parts_and_token_by_token_give_the_same_bits() -> None:
    int8 = model()
    whole = int8(TOKENS)
    for parts in ((180,), (7, 1, 140, 32), (1,) * 180):
        cache = int8.new_cache(180)
        states = [int8.hidden_states(part, cache) for part in TOKENS.split(parts, 1)]
        assert torch.equal(int8.unembed(torch.cat(states, 1)), whole)


@torch.no_grad()
def test_a_padded_row_gives_the_bits_that_it_gives_alone() -> None:
    int8, pads = model(), [3, 0, 100, 9, 1]
    padded = torch.cat([F.pad(TOKENS[:, : 150 - pad], (pad, 0)) for pad in pads])
    logits = int8(padded, pad=torch.tensor(pads))
    assert logits.isfinite().all()
    for row, pad in enumerate(pads):
        assert torch.equal(logits[row, pad:], int8(TOKENS[:, : 150 - pad])[0])


@torch.no_grad()
def test_the_modules_give_the_bits_of_the_whole_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    int8, read = model(), []
    through = compiled_pass.through_blocks
    monkeypatch.setattr(
        compiled_pass, "through_blocks", lambda *args: (read.append(args[1].size(1)), through(*args))[1]
    )
    steps = []
    for _ in range(2):
        cache = int8.new_cache(180)
        steps.append([int8.next_logits(part, cache) for part in TOKENS.split((140, 5, 1, 34), 1)])
        hook = int8.blocks[1].mlp.register_forward_hook(lambda *_: None)
    hook.remove()
    assert read == [140, 5, 1, 34]
    assert all(map(torch.equal, *steps))


@pytest.mark.parametrize(
    "options", [{"activation_function": "gelu"}, {"activation_function": "relu"}], ids=str
)
@torch.no_grad()
def test_other_activation_functions_keep_torchs_modules(options: dict[str, object]) -> None:
    int8 = model(**options)
    assert type(int8.blocks[0].attn_norm) is torch.nn.LayerNorm
    assert type(int8.blocks[0].mlp.up.matrix) is CompiledMatrix
    cache = int8.new_cache(20)
    parts = [int8.unembed(int8.hidden_states(part, cache)) for part in TOKENS[:, :20].split((7, 1, 12), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), int8(TOKENS[:, :20]), rtol=0, atol=0.5)


@torch.no_grad()
def test_the_number_of_threads_changes_no_bit() -> None:
    int8, threads, found = model(), torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(int8(TOKENS))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in pairwise(found))


@torch.no_grad()
def test_a_model_is_near_to_the_one_by_torchs_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    by_c = model()
    monkeypatch.setattr(compiled, "available", lambda: False)
    by_torch = model()
    assert type(by_torch.blocks[0].mlp.up.matrix) in (PackedMatrix, PlainMatrix)
    assert not any(
        isinstance(module, compiled.LayerNorm | compiled.Attention) for module in by_torch.modules()
    )
    for other in (by_torch, copy.deepcopy(by_c)):  # a last bit may round an input to another whole number
        assert (by_c(TOKENS) - other(TOKENS)).abs().max() < 0.05 * by_c(TOKENS).std()


SOURCE = "int twice(int x) { return 2 * x; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "twice.c"
    path.write_text(SOURCE)
    return path


def load(source: Path) -> object:
    return c_code.library.__wrapped__(source)


def test_a_library_is_compiled_once_and_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: (runs.append(args), run(*args, **more))[1])
    for _ in range(2):
        library = load(source)
        assert library.twice(21) == 42  # type: ignore[attr-defined]
    assert len(runs) == 1
    assert [path.suffix for path in c_code.folder().iterdir()] == [".so"]
    source.write_text(SOURCE.replace("2 * x", "2 * x + 1"))
    assert load(source).twice(21) == 43  # type: ignore[attr-defined]


def test_without_a_compiler_or_the_instructions_there_is_none(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(c_code, "runs_here", lambda: False)
        assert load(source) is None
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert load(source) is None


def test_a_compiler_that_fails_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source.write_text("int twice(int x) { return 2 * y; }\n")
    with pytest.warns(
        UserWarning, match=r"twice\.c cannot be compiled or loaded \(.*\): 8-bit weights take about"
    ):
        assert load(source) is None
    assert not c_code.folder().exists()
    monkeypatch.setenv("CC", "/no/such/compiler")
    with pytest.warns(UserWarning, match=r"cannot be compiled or loaded \(.*/no/such/compiler"):
        assert load(source) is None


@pytest.mark.parametrize("content", [b"", b"part of a library", None], ids=["empty", "part", "cut short"])
def test_a_kept_library_that_is_not_whole_is_made_anew(source: Path, content: bytes | None) -> None:
    """The loader would end the process with SIGBUS."""
    load(source)
    (kept,) = c_code.folder().iterdir()
    whole = kept.read_bytes()
    kept.unlink()  # for it is in use
    kept.write_bytes(whole[:4096] if content is None else content)
    assert load(source).twice(21) == 42  # type: ignore[attr-defined]
    assert kept.read_bytes() == whole


def test_a_home_that_cannot_be_written_to_or_is_not_known_is_no_obstacle(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(source).twice(21) == 42  # type: ignore[attr-defined]
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", unknown)
        assert load(source).twice(21) == 42  # type: ignore[attr-defined]


def unknown() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_code_that_is_missing_is_named(source: Path) -> None:
    source.unlink()
    with pytest.warns(UserWarning, match=r"twice\.c cannot be compiled or loaded \(.*No such file"):
        assert load(source) is None
