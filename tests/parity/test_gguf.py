"""A GGUF file of a model, run by llama.cpp, continues prompts with the same tokens: what the benchmark compares."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from reference import pair

from minigpt.sampler import generate

for package in ("llama_cpp", "gguf"):
    pytest.importorskip(package, reason=f"needs {package}, which the extra `bench-llama` installs")

SCRIPTS = Path(__file__).parents[2] / "scripts"
PROMPTS = torch.randint(61, (8, 6), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def tensors(model, path, kind):
    """What the file has, by name, in float32."""
    gguf = import_module("gguf")
    import_module("gguf_gpt2").export(model, path, kind)
    read = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in read}


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False, "n_inner": 64, "n_head": 2}])
def test_llama_cpp_writes_the_same_tokens(tmp_path, config):
    ours, _ = pair(tmp_path, **config)
    expected = [best.tokens for best, *_ in generate(ours, PROMPTS, max_new_tokens=20, end_tokens=[])]
    assert len({token for row in expected for token in row}) > 5  # they do not all repeat one token
    import_module("gguf_gpt2").export(ours, tmp_path / "model.gguf", "float32")
    theirs = import_module("llama_greedy").LlamaCpp(tmp_path / "model.gguf", n_threads=1)
    assert theirs(PROMPTS, 20) == expected
    assert theirs(PROMPTS, 20) == expected  # its cache was cleared
    assert theirs(PROMPTS[:1], 5) == [expected[0][:5]]  # with another number of rows


def test_int8_keeps_every_weight_nearly(tmp_path):
    ours, _ = pair(tmp_path)
    plain, small = (tensors(ours, tmp_path / kind, kind) for kind in ("float32", "int8"))
    assert plain.keys() == small.keys()
    for name, weights in plain.items():
        rounding = 0 if weights.ndim == 1 or name.startswith("position") else 1 / 250  # of the largest weight
        assert abs(weights - small[name]).max() <= rounding * abs(weights).max(), name
