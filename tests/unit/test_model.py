"""What holds for the model as an nn.Module: tied by construction, seen by hooks, quiet about its state."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_gpt2

from minigpt import GPT2, GPT2Config
from minigpt.atomic import all_or_none
from minigpt.kernels.products import wants_output_major

CONFIG = GPT2Config(vocab_size=61, n_positions=48, n_embd=32, n_layer=3, n_head=4)
TOKENS = torch.arange(10)[None]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2(CONFIG).eval()


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        lambda model: model.to(torch.float64).to(torch.float32),
        lambda model: (model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}), model)[1],
        lambda model: (model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True), model)[1],
    ],
    ids=["deepcopy", "to", "load_state_dict", "assign"],
)
def test_the_head_stays_tied_whatever_is_done_to_the_model(model, change):
    changed = change(model)
    hidden = torch.randn(1, 2, 32)
    assert torch.equal(changed.unembed(hidden), hidden @ changed.token_embedding.weight.t())
    assert not any(name.startswith("head") for name, _ in changed.named_parameters())


def test_each_block_is_called_once_through_its_hooks(model):
    calls = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    model(TOKENS)
    model.next_logits(TOKENS, model.new_cache(10))
    assert calls == [0, 1, 2, 0, 1, 2]


def test_modules_have_the_promised_names(model):
    names = {name for name, _ in model.named_modules()}
    assert {"token_embedding", "position_embedding", "blocks", "final_norm"} <= names
    assert {f"blocks.0.{part}" for part in ("attn_norm", "attn", "mlp_norm", "mlp")} <= names


def test_a_linear_layer_may_be_any_module(model):
    """Quantised layers come later: nothing may assume which class a linear layer is of."""

    class Other(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.a, self.b = linear.weight.detach(), linear.bias.detach()

        def forward(self, x):
            return x @ self.a + self.b

    expected = model(TOKENS)
    for block in model.blocks:
        block.attn.qkv, block.attn.out = Other(block.attn.qkv), Other(block.attn.out)
        block.mlp.up, block.mlp.down = Other(block.mlp.up), Other(block.mlp.down)
    torch.testing.assert_close(model(TOKENS), expected)
    cache = model.new_cache(10)
    torch.testing.assert_close(model.next_logits(TOKENS, cache), expected[:, -1])


def test_an_untrained_model_is_as_lost_as_chance():
    model = GPT2(GPT2Config(vocab_size=1000, n_positions=64, n_embd=64, n_layer=2, n_head=2)).eval()
    tokens = torch.randint(1000, (4, 64))
    loss = torch.nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(6.908, abs=0.15)  # ln 1000


def test_saving_is_whole_or_not_at_all(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigpt.config._write_json", fail)  # the weights are written by then
    with pytest.raises(OSError, match="No space left"):
        GPT2(CONFIG).save_pretrained(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupted_block_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "old").write_text("old")

    def write():
        with all_or_none(tmp_path) as aside:
            (aside / "old").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [file.name for file in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_a_loaded_model_is_stored_without_gaps(model, tmp_path):
    """Row by row, or column by column where this machine multiplies that faster."""
    model.save_pretrained(tmp_path)
    for name, parameter in GPT2.from_pretrained(tmp_path).named_parameters():
        is_linear = name.startswith("blocks.") and parameter.dim() == 2
        if is_linear and wants_output_major(parameter.shape, parameter.dtype, parameter.device):
            assert parameter.t().is_contiguous()
        else:
            assert parameter.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_are_loaded_as_they_were_saved(tmp_path, dtype):
    """They lie in memory of their own kind: see `kernels.memory`."""
    large = GPT2(GPT2Config(vocab_size=3000, n_positions=16, n_embd=768, n_layer=1, n_head=12)).to(dtype)
    large.save_pretrained(tmp_path)
    loaded = copy.deepcopy(GPT2.from_pretrained(tmp_path, dtype=dtype))
    for name, tensor in large.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


LOAD = """
import sys
from minigpt import GPT2
from minigpt.sampler import generate

generate(GPT2.from_pretrained(sys.argv[1]), [[1, 2, 3]], max_new_tokens=2)
print([name for name in sys.modules if name.split(".")[:2] == ["torch", "_dynamo"]])
"""


@pytest.mark.parametrize("kind", [None, "int8", "float16"])
def test_neither_loading_nor_generating_imports_torchs_compiler(
    kind: str | None, model: GPT2, tmp_path: Path
) -> None:
    """It takes longer than everything else before the first token."""
    stored = copy.deepcopy(model)
    (stored.quantize(kind) if kind else stored).save_pretrained(tmp_path)
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_building_a_model_to_be_loaded_draws_no_random_number(model: GPT2, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    GPT2.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


MEASURE = """
import pathlib, sys
from minigpt import GPT2

def peak():
    return int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

GPT2.from_pretrained(sys.argv[1] + "/small")        # whatever a first call needs
before = peak()
model = GPT2.from_pretrained(sys.argv[1] + "/large")
print((peak() - before) * 1024, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to read the peak of memory")
def test_loading_holds_no_second_copy_of_the_weights(model, tmp_path):
    model.save_pretrained(tmp_path / "small")
    large = GPT2(GPT2Config(vocab_size=1000, n_positions=64, n_embd=768, n_layer=6, n_head=12))
    large.save_pretrained(tmp_path / "large")
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.split()
    taken, weights = map(int, measured)
    assert weights < taken < 1.2 * weights


def test_loading_leaves_no_second_name_for_the_file(model, tmp_path):
    """Weights are copied out of the file: saving over it later must not change the model."""
    model.save_pretrained(tmp_path)
    loaded = GPT2.from_pretrained(tmp_path)
    expected = loaded(TOKENS)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    assert torch.equal(loaded(TOKENS), expected)


# ------------------------------------------------------------------------------ what a caller can get wrong


@pytest.mark.parametrize(
    ("pad", "message"),
    [
        ([0], r"pad must be 2 whole numbers, one for each row, got shape \(1,\), int64"),
        ([[0], [1]], r"one for each row, got shape \(2, 1\)"),
        ([0.0, 1.0], r"one for each row, got shape \(2,\), float32"),
        ([False, True], r"one for each row, got shape \(2,\), bool"),
        ([0, 4], r"pad must be from 0 to 3, one token at least being left: \[0, 4\]"),
        ([-1, 0], r"pad must be from 0 to 3, one token at least being left: \[-1, 0\]"),
    ],
)
def test_padding_that_does_not_fit_is_refused(pad: list[int], message: str) -> None:
    model, tokens = tiny_gpt2(), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with pytest.raises(ValueError, match=message):
        model(tokens, torch.tensor(pad))
    if pad != [0, 4]:  # a cache has room for more than the first pass reads
        with pytest.raises(ValueError, match=message.replace("0 to 3", "0 to 9")):
            model.new_cache(10, rows=2, pad=torch.tensor(pad))


@pytest.mark.parametrize("kind", [None, "float16", "int8"])
@pytest.mark.parametrize("token", [-1, 23, 10**6])
def test_an_id_that_the_vocabulary_lacks_is_refused(token: int, kind: str | None) -> None:
    model = tiny_gpt2()
    if kind:
        model.eval().quantize(kind)
    with (
        pytest.raises(ValueError, match=rf"tokens must be ids from 0 to 22, got \[{token}\]"),
        torch.no_grad(),
    ):
        model(torch.tensor([[1, token]]))
    with pytest.raises(ValueError, match=r"tokens must be int64 or int32 ids, got float32"):
        model(torch.tensor([[1.0]]))


# ------------------------------------------------------------------------------ loss and shows


def test_the_loss_is_the_mean_surprisal_of_all_tokens_but_the_first() -> None:
    model, tokens = tiny_gpt2(), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    logprobs = model(tokens).log_softmax(-1)
    by_hand = -sum(logprobs[row, t - 1, tokens[row, t]] for row in range(2) for t in range(1, 4)) / 6
    torch.testing.assert_close(model.loss(tokens), by_hand)


def test_the_loss_of_a_padded_row_counts_its_own_tokens() -> None:
    model = tiny_gpt2()
    padded = torch.tensor([[1, 2, 3, 4], [0, 0, 7, 8]])
    alone = 3 * model.loss(padded[:1]) + model.loss(padded[1:, 2:])
    torch.testing.assert_close(model.loss(padded, torch.tensor([0, 2])), alone / 4)
    with pytest.raises(ValueError, match="a loss needs two tokens"):
        model.loss(padded[:, :1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: model([1, 2]),
            r"tokens must be a tensor, got \[1, 2\]: write torch.tensor\(\[ids\]\)",
        ),
        (lambda model: model.loss("text"), "tokens must be a tensor, got 'text'"),
        (
            lambda model: model.next_logits([1, 2], model.new_cache(9)),
            r"tokens must be a tensor, got \[1, 2\]",
        ),
        (lambda model: model(torch.tensor([[1, 2]]), pad=[0]), r"pad must be a tensor, got \[0\]"),
        (lambda model: GPT2("gpt2"), r"GPT2 takes a GPT2Config, got 'gpt2'; GPT2.from_pretrained\("),
    ],
)
def test_what_is_no_tensor_or_no_config_is_refused(call: Callable[[GPT2], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call(tiny_gpt2())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"dtype": "float99"}, "dtype must be a floating-point type, .* got 'float99'"),
        ({"dtype": torch.int8}, "dtype must be a floating-point type, .* got torch.int8"),
        ({"device": "gpu"}, r"device='gpu' cannot be used here \(.*\): take 'cpu', or"),
        ({"device": 3.5}, "device=3.5 cannot be used here"),
    ],
)
def test_where_weights_cannot_be_is_said_at_once(place: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        GPT2.from_pretrained("no/such/model", **place)


def test_what_a_model_and_a_cache_show() -> None:
    model = tiny_gpt2()
    n = sum(parameter.numel() for parameter in model.parameters())
    assert f"{n:,} parameters, context length {model.config.n_positions}" in repr(model)
    width = model.config.n_embd
    assert f"(up): Linear(in={width}, out={model.config.mlp_dim})" in repr(model)
    cache = model.new_cache(10, rows=2, pad=torch.tensor([0, 1]))
    assert repr(cache) == "KVCache(rows=2, length=0 of 10, pad=[0, 1])"
