"""Measures training: speed against a plain loop around transformers, and the losses of known recipes.

    python scripts/bench_train.py --corpus ../shared/corpus                       print the tables
    python scripts/bench_train.py --corpus ../shared/corpus --update docs/training.md    and put them into the file

Speed: both sides have the same weights, windows, optimiser and precision, and take turns step by step, since
machines are noisy; what counts is the median of the ratios. Losses: nanoGPT's character-level recipe for
CPUs, and fine-tuning against training from scratch for as long; all by `minigpt.train` itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from bench import machine
from pages import put
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from minigpt import GPT2, GPT2Config, Tokenizer
from minigpt.data.token_file import tokenise
from minigpt.data.windows import Windows
from minigpt.training.distributed import Processes
from minigpt.training.hardware import autocast
from minigpt.training.learner import MAX_GRAD_NORM, Learner
from minigpt.training.settings import Settings

SHAPES = {  # name: layers, heads, width, context, batch size, precision
    "bundled model's shape, bfloat16": (8, 5, 320, 512, 4, "bfloat16"),
    "bundled model's shape, float32": (8, 5, 320, 512, 4, "float32"),
    "nanoGPT's CPU recipe, float32": (4, 4, 128, 64, 12, "float32"),
    "gpt2's width, 4 layers, bfloat16": (4, 12, 768, 512, 4, "bfloat16"),
}
NANOGPT = {
    "n-layer": 4, "n-head": 4, "n-embd": 128, "context": 64, "batch-size": 12, "steps": 2000, "tokenizer": "chars", "val": 0.1, "dtype": "float32", "eval-every": 2000,
}  # fmt: skip
SECONDS = 150  # for fine-tuning, and for training from scratch


def plain_loop(model: GPT2LMHeadModel, settings: Settings, dtype: str) -> Callable[[Tensor], float]:
    """What one writes in ten minutes around transformers."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, settings.beta2), fused=True)
    model.train()

    def step(rows: Tensor) -> float:
        with autocast(torch.device("cpu"), dtype):
            logits = model(rows[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def speed(corpus: Path, shape: tuple[int, int, int, int, int, str], rounds: int) -> list[tuple[float, float]]:
    """Seconds a step of both sides, round by round; who goes first alternates too."""
    layers, heads, width, context, batch_size, dtype = shape
    tokenizer = Tokenizer.from_pretrained()
    file = tokenise([corpus / "tinyshakespeare.txt"], tokenizer, Path("build/tokens"))
    settings = Settings(optimizer="adamw", lr=1e-4, warmup=0, steps=10**6, batch_size=batch_size)
    windows = Windows(file, context, seed=0)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=context, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    config = replace(config, bos_token_id=0, eos_token_id=0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2(config).save_pretrained(folder)
        theirs = plain_loop(GPT2LMHeadModel.from_pretrained(folder), settings, dtype)
        model = GPT2.from_pretrained(folder)
    learner = Learner(model, windows, settings, dtype, Processes())

    def reference(step: int) -> float:
        return theirs(windows.rows(range(step * batch_size, (step + 1) * batch_size)))

    def ours(step: int) -> float:
        return learner.step(step)[0].item()

    times = []
    for step in tqdm(range(rounds + 2), leave=False):
        taken, losses = {}, []
        for side in (ours, reference) if step % 2 else (reference, ours):
            start = time.perf_counter()
            losses.append(side(step))
            taken[side] = time.perf_counter() - start
        if abs(losses[0] - losses[1]) > 0.05:
            print(f"note: the two sides have different losses at step {step}: {losses}")
        times.append((taken[ours], taken[reference]))
    return times[2:]  # the first ones warm up


def speed_table(corpus: Path, rounds: int) -> str:
    lines = [
        "| | minigpt, tokens/s | transformers, tokens/s | ratio, median of steps (quartiles) |",
        "|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        times = speed(corpus, shape, rounds)
        n_tokens = shape[3] * shape[4]
        mine, reference = (statistics.median(column) for column in zip(*times, strict=True))
        low, middle, high = statistics.quantiles([b / a for a, b in times], n=4)
        lines.append(
            f"| {name} | {n_tokens / mine:,.0f} | {n_tokens / reference:,.0f} | **{middle:.2f}** ({low:.2f} to {high:.2f}) |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def train(out: Path, **flags: object) -> list[dict[str, float]]:
    """Runs minigpt.train; its metrics."""
    given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    subprocess.run([sys.executable, "-m", "minigpt.train", "--out", str(out), *given], check=True)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def nanogpt(corpus: Path, work: Path) -> str:
    last = train(work / "nanogpt", data=corpus / "tinyshakespeare.txt", **NANOGPT)[-1]
    return (
        f"nanoGPT's character-level recipe for CPUs (4 layers, 4 heads, width 128, block 64, batch 12, 2,000 steps, no "
        f"dropout; published: 1.88), at our learning rate: validation loss **{last['val_loss']:.3f}** in {last['seconds']:.0f} seconds."
    )


def fine_tuning(corpus: Path, work: Path) -> str:
    """The same shape, text and time; the number of steps is what the time allows the bundled model."""
    common = {
        "data": corpus / "tinyshakespeare.txt",
        "val": 0.1,
        "batch-size": 4,
        "beta2": 0.95,
        "context": 512,
    }
    shape = {"n-layer": 8, "n-head": 5, "n-embd": 320}  # the bundled model's
    probe = train(work / "probe", init="bundled", steps=20, **common)
    steps = int(SECONDS * 10 / (probe[-1]["seconds"] - probe[9]["seconds"]))
    tuned = train(
        work / "tuned", init="bundled", steps=steps, **{"eval-every": steps, "dropout": 0.1}, **common
    )[-1]
    fresh = train(work / "fresh", steps=steps, **{"eval-every": steps}, **shape, **common)[-1]
    return (
        f"Fine-tuning the bundled model on tinyshakespeare for {tuned['seconds'] / 60:.0f} minutes: validation loss "
        f"**{tuned['val_loss']:.3f}**; training the same shape from scratch for as long: {fresh['val_loss']:.3f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of tinyshakespeare.txt")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the tables into this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = [speed_table(args.corpus, args.rounds)]
    with tempfile.TemporaryDirectory() as work:
        for recipe in (nanogpt, fine_tuning):
            parts.append(recipe(args.corpus, Path(work)))
            print(parts[-1], flush=True)
    text = "\n\n".join([*parts, f"{machine()}, by `make bench-train`."]) + "\n"
    if args.update:
        put(text, args.update, "bench of training")


if __name__ == "__main__":
    main()
