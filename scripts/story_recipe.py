"""Which sampling recipe suits stories: `minigpt.compare` on held-out tales, and the measures of stories on what it wrote.

    python scripts/story_recipe.py --corpus ../shared/corpus

The prompts are cut from 1% of the documents of train.txt, never from val.txt. The recipe with the highest mean of the
measures, each taken relative to human text and never above it, is the one for `make demo` and the README.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from judge_stories import Story, mean, measures

from minigpt import Tokenizer
from minigpt.compare import __main__ as compare
from minigpt.data.documents import documents
from minigpt.tokenizer.files import END_OF_TEXT

RECIPES = [
    "--top-p 0.9",
    "--temperature 0.9 --top-p 0.9",
    "--temperature 0.8 --top-p 0.9",
    "--temperature 0.7 --top-p 0.9",
    "--temperature 0.6 --top-p 0.9",
    "--temperature 0.8 --min-p 0.05",
    "--temperature 0.9 --min-p 0.1",
    "--temperature 0.7 --top-p 0.9 --repetition-penalty 1.1",
    "--temperature 0.8 --top-p 0.9 --repetition-penalty 1.1",
    "--temperature 0.8 --top-p 0.9 --repetition-penalty 1.15",
    "--temperature 0.9 --min-p 0.1 --repetition-penalty 1.1",
    "--temperature 1 --min-p 0.1 --repetition-penalty 1.15",
]
SHARE, SEED = 0.01, 1


def held_out(corpus: Path, folder: Path) -> Path:
    """A file with some of the documents of train.txt."""
    whole = list(documents([corpus / "train.txt"]))
    chosen = np.random.default_rng(SEED).choice(len(whole), round(SHARE * len(whole)), replace=False)
    file = folder / "held_out.txt"
    file.write_text(f"\n{END_OF_TEXT}\n".join(whole[i] for i in chosen), encoding="utf-8")
    return file


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """The record of `minigpt.compare`."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "held-out": held_out(args.corpus, Path(folder)), "n-prompts": args.n_prompts, "model": args.model,
            "max-new-tokens": args.max_new_tokens, "threads": args.threads, "batch-size": 25, "json": Path(folder, "record.json"),
        }  # fmt: skip
        given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
        given += [
            part for recipe in RECIPES for part in ("--method", f"{recipe.replace('--', '')}: {recipe}")
        ]
        if code := compare.main(given):
            sys.exit(code)
        record: dict[str, Any] = json.loads(Path(folder, "record.json").read_text(encoding="utf-8"))
        return record


def scores(row: dict[str, Any], tokenizer: Tokenizer, corpus: Path) -> list[float]:
    """Every measure of the texts of one writer."""
    stories = [Story(tokenizer.encode(text), text) for text in row["texts"]]
    return [mean(measure, stories) for measure in measures(corpus)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of train.txt")
    parser.add_argument("--model", type=Path, default=Path("weights"))
    parser.add_argument("--n-prompts", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    record, tokenizer = compared(args), Tokenizer.from_pretrained(args.model)
    human = scores(record["human"], tokenizer, args.corpus)
    names = [measure.name for measure in measures(args.corpus)]
    print("| recipe | perplexity |", " | ".join(names), "| mean |\n|---|---|" + "---|" * (len(names) + 1))
    means = {}
    for row in [record["human"], *record["methods"]]:
        found = scores(row, tokenizer, args.corpus)
        relative = [min(1.0, one / other) for one, other in zip(found, human, strict=True) if other]
        means[row["name"]] = fmean(value for value in relative if not math.isnan(value))
        cells = [f"{row['figures']['perplexity']:.1f}", *(f"{value:.1%}" for value in found)]
        print(f"| {row['name']} | {' | '.join(cells)} | {means[row['name']]:.3f} |")
    best = max(record["methods"], key=lambda row: means[row["name"]])
    print(f"\nThe recipe: {best['flags']}")


if __name__ == "__main__":
    main()
