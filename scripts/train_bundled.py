"""Makes the model in weights/: vocabulary, training, float16, training.json and the card, in one command.

    python scripts/train_bundled.py --corpus ../shared/corpus --work build/bundled    (again, to resume)

Every step is one of minigpt's own commands. The folder holds train.txt, val.txt and MANIFEST.tsv, which
lists the books; nothing of val.txt enters training or the vocabulary. Ctrl-C saves a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bundled_card
import judge_stories

from minigpt import load
from minigpt.data.documents import fingerprint

VOCABULARY, CONTEXT = 4096, 512
SHAPE = {"n-layer": 6, "n-head": 4, "n-embd": 256}  # by scripts/size_study.py
COMMON = {
    "batch-size": 8, "context": CONTEXT, "beta2": 0.95, "dtype": "bfloat16", "eval-every": 500, "checkpoint-every": 250
}  # fmt: skip
# Each run begins with the weights of the one before. Their schedules were chosen by documents held out of train.txt.
STAGES: tuple[dict[str, object], ...] = (
    {**SHAPE, **COMMON, "optimizer": "adamw", "steps": 10_000, "lr": 2e-3, "warmup": 300},
    {
        **COMMON, "optimizer": "muon", "steps": 4_350, "lr": 3e-3, "adamw-lr": 1.5e-3, "warmup": 100,
        "schedule": "wsd", "decay": 2_971, "val": 0.01,
    },
    {
        **COMMON, "optimizer": "muon", "steps": 5_550, "lr": 2e-3, "adamw-lr": 1e-3, "warmup": 100,
        "schedule": "wsd", "decay": 3276, "val": 0.01, "seed": 5,
    },
)  # fmt: skip
PLACES = (
    "data",
    "val",
    "init",
    "tokenizer",
    "token_cache",
    "threads",
)  # settings that mean nothing elsewhere


def minigpt(command: str, *words: object, **flags: object) -> None:
    """Runs one of minigpt's commands."""
    given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    subprocess.run([sys.executable, "-m", f"minigpt.{command}", *map(str, words), *given], check=True)


def train_tokenizer(corpus: Path, work: Path) -> Path:
    """The folder of the vocabulary, which is made once."""
    folder = work / "tokenizer"
    if not folder.exists():
        minigpt("train_tokenizer", corpus / "train.txt", "--vocab-size", VOCABULARY, out=folder)
    return folder


def train(corpus: Path, work: Path) -> list[Path]:
    """Begins each run in turn, or continues it with the settings that it began with; their folders."""
    runs: list[Path] = []
    for number, stage in enumerate(STAGES, 1):
        out = work / f"run-{number}"
        start = {"init": runs[-1]} if runs else {"tokenizer": train_tokenizer(corpus, work)}
        settings = {"data": corpus / "train.txt", "val": corpus / "val.txt", **start, **stage}
        begun = (out / "run.json").exists()
        minigpt("train", "--resume", out=out, **({} if begun else settings))
        runs.append(out)
    return runs


def export(run: Path, weights: Path) -> None:
    """The run's last weights as float16, with its tokenizer."""
    model, tokenizer = load(run)
    model.half().save_pretrained(weights)
    tokenizer.save_pretrained(weights)


def facts(runs: list[Path], corpus: Path) -> dict[str, Any]:
    """What others need to train it again: the texts' sha256, and of each run all settings but the places of files; and what it took."""
    stages = []
    for run in runs:
        known = json.loads((run / "run.json").read_text())
        settings = {name: value for name, value in known["settings"].items() if name not in PLACES}
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        took = {"tokens": last["tokens"], "minutes": round(last["seconds"] / 60)}
        stages.append({"settings": settings, "versions": known["versions"], **took})
    first = json.loads((runs[0] / "run.json").read_text())
    texts = {name: fingerprint([corpus / f"{name}.txt"]) for name in ("train", "val")}
    kept = {name: first[name] for name in ("tokenizer", "n_parameters", "train_tokens")}
    return {**texts, **kept, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of train.txt and val.txt")
    parser.add_argument(
        "--work", type=Path, default=Path("build/bundled"), help="tokenizer, runs, checkpoints"
    )
    parser.add_argument("--out", type=Path, default=Path("weights"), help="where the finished model goes")
    args = parser.parse_args()
    runs = train(args.corpus, args.work)
    export(runs[-1], args.out)
    (args.out / "training.json").write_text(json.dumps(facts(runs, args.corpus), indent=2) + "\n")
    bundled_card.update(args.out, args.corpus)
    judge_stories.update(args.out, args.corpus, None, judge_stories.RECIPE)


if __name__ == "__main__":
    main()
