"""Measures what quantized weights lose, on held-out text: against float32, and beside CTranslate2.

    python scripts/bench_quantization.py --corpus FOLDER                                print the table
    python scripts/bench_quantization.py --corpus FOLDER --update docs/benchmarks.md    and put it into the page

The bundled model, and the same with a few channels 100 times larger, as real GPT-2 has them (see
tests/support/outliers.py). FOLDER holds val.txt.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pages import ROOT, put
from torch import Tensor

import minigpt
from minigpt import GPT2, Tokenizer

sys.path.append(str(ROOT / "tests" / "support"))
from outliers import plant_outliers

Predict = Callable[[Tensor], Tensor]  # (rows, T) -> log-probabilities (rows, T, V)


def minigpt_side(model: GPT2, kind: str) -> Predict:
    small = copy.deepcopy(model).quantize(kind)
    return lambda tokens: small(tokens).log_softmax(-1)


def ctranslate2_side(model: GPT2, tokenizer: Tokenizer) -> Predict:
    import ctranslate2

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
        made = f"{folder}/ctranslate2"
        ctranslate2.converters.TransformersConverter(folder).convert(made, quantization="int8")
        generator = ctranslate2.Generator(made, compute_type="int8")

    def predict(tokens: Tensor) -> Tensor:
        found = generator.forward_batch(tokens.tolist(), return_log_probs=True)
        return torch.from_numpy(np.array(found))

    return predict


@torch.no_grad()
def row(name: str, predict: Predict, reference: Predict, texts: Tensor) -> str:
    """Change of perplexity, how often the likeliest token is the same, and the mean KL divergence in nats."""
    loss = right = divergence = 0.0
    for batch in texts.split(8):
        exact, found = reference(batch), predict(batch)
        targets = batch[:, 1:].flatten()
        for sign, logprobs in ((1, found), (-1, exact)):
            loss += (
                sign * F.nll_loss(logprobs[:, :-1].flatten(0, 1), targets).item() * len(batch) / len(texts)
            )
        right += (exact.argmax(-1) == found.argmax(-1)).sum().item()
        divergence += (exact.exp() * (exact - found)).sum().item()
    n = texts.numel()
    change = torch.tensor(loss).exp().item() - 1
    return f"| {name} | {change:+.3%} | {right / n:.2%} | {divergence / n:.1e} |"


def table(texts: Tensor) -> Iterator[str]:
    yield "| | perplexity | same likeliest token | KL divergence, nats |"
    yield "|---|---|---|---|"
    bundled, tokenizer = minigpt.load()
    for title, model in (("", bundled), (", with outliers", plant_outliers(bundled))):

        def exact(tokens: Tensor, model: GPT2 = model) -> Tensor:
            return model(tokens).log_softmax(-1)

        for kind in ("float16", "int8"):
            yield row(f"minigpt {kind}{title}", minigpt_side(model, kind), exact, texts)
        if find_spec("ctranslate2"):
            yield row(f"CTranslate2 int8{title}", ctranslate2_side(model, tokenizer), exact, texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--texts", type=int, default=64, help="how many windows of 256 tokens")
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this page")
    args = parser.parse_args()
    text = (args.corpus / "val.txt").read_text(encoding="utf-8")
    tokens = Tokenizer.from_pretrained().encode(text[: args.texts * 2_000])
    texts = torch.tensor(tokens[: args.texts * 256]).view(-1, 256)
    lines = []
    for line in table(texts):
        print(line, flush=True)
        lines.append(line)
    note = f"bundled model against itself in float32, {texts.numel():,} tokens of held-out text (val.txt), by `make bench-quantization`."
    if args.update:
        put("\n".join([*lines, "", note]), args.update, "bench of quantization")


if __name__ == "__main__":
    main()
