"""Makes the model in weights/: vocabulary, training in two stages, float16, training.json and the card, in one command.

    python scripts/train_bundled.py --corpus ../shared/corpus --work build/bundled    (again, to resume)

Every step is one of minigpt's own commands. The folder holds train.txt, val.txt and MANIFEST.tsv, which
lists the books; nothing of val.txt enters training or the vocabulary. Ctrl-C keeps what was done.
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
FIRST = {
    "optimizer": "adamw", "steps": 10_000, "batch-size": 8, "lr": 2e-3, "warmup": 300, "beta2": 0.95,
    "context": CONTEXT, "dtype": "bfloat16", "eval-every": 500, "checkpoint-every": 250,
}  # fmt: skip
# It begins with the weights of the first. Its learning rate is small, because it is short: at 2e-3, Muon undid more in
# 150 steps than it could win back.
SECOND = {
    "optimizer": "muon", "schedule": "wsd", "steps": 907, "decay": 700, "batch-size": 8, "lr": 3e-4, "adamw-lr": 2e-4,
    "warmup": 30, "beta2": 0.95, "context": CONTEXT, "dtype": "bfloat16", "seed": 1, "val": 0.01, "eval-every": 200,
    "eval-tokens": 50_000, "checkpoint-every": 100,
}  # fmt: skip
PLACES = (
    "data",
    "val",
    "tokenizer",
    "token_cache",
    "threads",
    "init",
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


def train(out: Path, **flags: object) -> None:
    """Begins a run, or continues it with the settings that it began with."""
    if (out / "run.json").exists():
        minigpt("train", "--resume", out=out)
    else:
        minigpt("train", "--resume", out=out, **flags)


def export(run: Path, weights: Path) -> None:
    """The run's last weights as float16, with its tokenizer."""
    model, tokenizer = load(run)
    model.half().save_pretrained(weights)
    tokenizer.save_pretrained(weights)


def stage(run: Path) -> dict[str, Any]:
    """What others need to train a stage again: all settings but the places of files; and what it took."""
    known: dict[str, Any] = json.loads((run / "run.json").read_text())
    known["settings"] = {name: value for name, value in known["settings"].items() if name not in PLACES}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {**known, "tokens": last["tokens"], "minutes": round(last["seconds"] / 60)}


def first_stage(corpus: Path, work: Path) -> Path:
    """A folder with the float16 weights of the first stage, and its training.json."""
    folder, run = work / "first", work / "run"
    if not (folder / "training.json").exists():
        files = {
            "data": corpus / "train.txt",
            "val": corpus / "val.txt",
            "tokenizer": train_tokenizer(corpus, work),
        }
        train(run, **files, **SHAPE, **FIRST)
        export(run, folder)
        (folder / "training.json").write_text(json.dumps({"stages": [stage(run)]}, indent=2) + "\n")
    return folder


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
    first = first_stage(args.corpus, args.work)
    train(args.work / "run2", data=args.corpus / "train.txt", init=first, **SECOND)
    export(args.work / "run2", args.out)
    stages = [*json.loads((first / "training.json").read_text())["stages"], stage(args.work / "run2")]
    facts = {
        "train": fingerprint([args.corpus / "train.txt"]), "val": fingerprint([args.corpus / "val.txt"]),
        "n_parameters": stages[-1]["n_parameters"], "stages": stages,
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    bundled_card.update(args.out, args.corpus)
    judge_stories.update(args.out, args.corpus, against=first)


if __name__ == "__main__":
    main()
