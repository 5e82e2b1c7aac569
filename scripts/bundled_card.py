"""Writes the figures of the bundled model into its card, weights/README.md: what it was trained with, and how well it predicts.

python scripts/bundled_card.py --corpus ../shared/corpus
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pages import put

from minigpt import GPT2
from minigpt.training.hardware import forward_flops, training_flops

STRIDE = 512  # of the windows in which the text is read


def score(weights: Path, corpus: Path) -> dict[str, Any]:
    """What `minigpt.score` says of val.txt: every document read alone, in windows that overlap."""
    command = [
        sys.executable,
        "-m",
        "minigpt.score",
        corpus / "val.txt",
        "--model",
        weights,
        "--stride",
        STRIDE,
        "--json",
        "--quiet",
    ]
    found: dict[str, Any] = json.loads(
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    )
    return found


def described(stage: dict[str, Any]) -> str:
    """One run of the training, in a line."""
    s, n = stage["settings"], stage["teachers"]
    note = f" {stage['note']}" if "note" in stage else ""
    learned = (
        f"the text and, with weight {s['teacher_weight']:g}, the mean probabilities of the {n} runs before (knowledge distillation)"
        if n
        else "the text"
    )
    return (
        f"{s['steps']:,} steps of {s['batch_size']} windows of {s['context']:,} tokens ({stage['tokens']:,} tokens) to learn {learned}:"
        f" Muon for the matrices inside the blocks, learning rate {s['lr']:g}, AdamW for the rest, {s['adamw_lr']:g};"
        f" {s['warmup']} steps of warm-up, then {s['decay']:,} steps down to zero; beta2 {s['beta2']}, weight decay"
        f" {s['weight_decay']:g} on matrices, dropout {s['dropout']:g}, {s['dtype']} autocast, seed {s['seed']};"
        f" {stage['minutes']} minutes{note}, torch {stage['versions']['torch']}; {stage['held_out']:.3f} bits per byte on documents"
        " held out of the text"
    )


def facts(weights: Path, corpus: Path) -> str:
    """The table of what it is, what it was trained on and how, and how well it predicts."""
    known = json.loads((weights / "training.json").read_text())
    config, found = GPT2.from_pretrained(weights).config, score(weights, corpus)
    stages, text = known["stages"], known["train_tokens"]
    tokens = sum(stage["tokens"] for stage in stages)
    shape = (config, known["n_parameters"], config.n_positions)
    student, teacher = training_flops(*shape), forward_flops(*shape)  # teachers have the same shape
    operations = sum(stage["tokens"] * (student + stage["teachers"] * teacher) for stage in stages)
    rows = [
        ("architecture", f"GPT-2: {known['n_parameters']:,} parameters, {config.n_layer} layers, {config.n_head} heads, embedding size {config.n_embd}, context length {config.n_positions:,}"),
        ("vocabulary", f"a byte-level BPE of its own, {config.vocab_size:,} tokens"),
        ("file", f"float16, {(weights / 'model.safetensors').stat().st_size / 1e6:.1f} MB"),
        ("data", f"{len(books(corpus))} books of fairy tales and children's stories, first published before 1929, from Project Gutenberg texts in the public domain; [listed below](#the-books); {text:,} tokens"),
        ("held out", f"val.txt, {found['documents']} whole documents of the same kind ({found['bytes']:,} bytes), which entered neither training nor the vocabulary"),
        *((f"training, run {number}", described(stage)) for number, stage in enumerate(stages, 1)),
        ("in all", f"{tokens:,} tokens, {tokens / text:.1f} times the text; {operations:.2g} floating-point operations"),
        ("validation loss", f"{found['loss']:.3f} nats per token, perplexity {found['perplexity']:.1f}"),
        ("bits per byte", f"**{found['bits_per_byte']:.3f}** on val.txt, every document read alone in windows that move by {STRIDE} tokens, measured on the float16 file (torch {torch.__version__}, {date.today().isoformat()})"),
    ]  # fmt: skip
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def books(corpus: Path) -> list[str]:
    """What the text is made of, a line a book."""
    with (corpus / "MANIFEST.tsv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["gutenberg_id"]))
    return [f"- {row['gutenberg_id']}: {row['title']} ({row['author']})" for row in rows]


def update(weights: Path, corpus: Path) -> None:
    """Puts both into the card."""
    put(facts(weights, corpus), weights / "README.md", "facts")
    put("\n".join(books(corpus)), weights / "README.md", "books")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of val.txt and MANIFEST.tsv")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    args = parser.parse_args()
    update(args.weights, args.corpus)


if __name__ == "__main__":
    main()
