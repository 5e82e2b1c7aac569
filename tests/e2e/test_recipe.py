"""nanoGPT's character-level recipe for CPUs, its first half minute; the whole of it is in scripts/bench_train.py."""

import json
from pathlib import Path

import pytest

from minigpt import train

TEXT = Path(__file__).parents[3] / "shared/corpus/tinyshakespeare.txt"


@pytest.mark.skipif(not TEXT.exists(), reason="needs tinyshakespeare.txt in ../shared/corpus")
def test_half_a_minute_of_nanogpts_recipe_comes_as_far_as_it_should(tmp_path):
    flags = {
        "data": TEXT, "out": tmp_path / "run", "val": 0.1, "tokenizer": "chars", "n-layer": 4, "n-head": 4,
        "n-embd": 128, "context": 64, "batch-size": 12, "steps": 400,
        "dtype": "float32", "eval-every": 400, "eval-tokens": 20_000, "token-cache": tmp_path,
    }  # fmt: skip
    assert train.main([str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]) == 0
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["val_loss"] < 2.4  # at its end, after 2,000 steps, 1.88; letters counted alone give 3.3
