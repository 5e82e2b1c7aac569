"""Who takes part in the benchmark: minigpt with each kind of weights, and the peers that are installed.

A side continues prompts of one length greedily or with beams, to an exact length; all have the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel

from minigpt import GPT2
from minigpt.sampler import Beam, Greedy, generate

Prompts = list[list[int]]
Side = Callable[[Prompts, int, int], Prompts]  # prompts, number of new tokens, number of beams


def minigpt_side(directory: Path, kind: str) -> Side:
    model = GPT2.from_pretrained(directory, quantize=None if kind == "float32" else kind)

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        strategy = Greedy() if beams == 1 else Beam(num_beams=beams)
        texts = generate(model, prompts, strategy, max_new_tokens=n_new, end_tokens=[])
        return [best.tokens for best, *_ in texts]

    return side


def transformers_side(directory: Path, kind: str) -> Side:
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        tokens = torch.tensor(prompts)
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, num_beams=beams,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        found: Prompts = written[:, tokens.size(1) :].tolist()
        return found

    return side


def ctranslate2_side(directory: Path, kind: str) -> Side:
    import ctranslate2

    made = directory / f"ctranslate2-{kind}"
    n_words = GPT2.from_pretrained(directory).config.vocab_size
    words = {f"t{i}": i for i in range(n_words - 1)} | {"<|endoftext|>": n_words - 1}
    (directory / "vocab.json").write_text(json.dumps(words))  # which its converter asks for
    (directory / "merges.txt").write_text("#version: 0.2\n")
    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(made), quantization=kind)
    generator = ctranslate2.Generator(
        str(made), compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads()
    )

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        results = generator.generate_batch(
            [[f"t{token}" for token in prompt] for prompt in prompts], beam_size=beams, sampling_topk=1,
            max_length=n_new, min_length=n_new, include_prompt_in_result=False,
        )  # fmt: skip
        return [result.sequences_ids[0] for result in results]

    return side


# name -> (maker, kind of weights, the package it needs)
SIDES: dict[str, tuple[Callable[[Path, str], Side], str, str]] = {
    "transformers float32": (transformers_side, "float32", "transformers"),
    "minigpt float32": (minigpt_side, "float32", "torch"),
    "minigpt float16": (minigpt_side, "float16", "torch"),
    "minigpt int8": (minigpt_side, "int8", "torch"),
    "ctranslate2 float32": (ctranslate2_side, "float32", "ctranslate2"),
    "ctranslate2 int8": (ctranslate2_side, "int8", "ctranslate2"),
}


def present() -> list[str]:
    """The sides whose package is installed."""
    return [name for name, (_, _, package) in SIDES.items() if find_spec(package)]


def make(name: str, directory: Path) -> Side:
    maker, kind, _ = SIDES[name]
    return maker(directory, kind)


def versions() -> str:
    packages = dict.fromkeys(package for _, _, package in SIDES.values())
    return ", ".join(
        f"{package} {version(package)}" if find_spec(package) else f"{package} not installed"
        for package in packages
    )
