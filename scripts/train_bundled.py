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
RECIPE = {
    "optimizer": "adamw", "steps": 10_000, "batch-size": 8, "lr": 2e-3, "warmup": 300, "beta2": 0.95,
    "context": CONTEXT, "dtype": "bfloat16", "eval-every": 500, "checkpoint-every": 250,
}  # fmt: skip
PLACES = ("data", "val", "tokenizer", "token_cache", "threads")  # settings that mean nothing elsewhere


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


def train(corpus: Path, work: Path) -> Path:
    """Begins the run, or continues it with the settings that it began with; its folder."""
    out = work / "run"
    files = {
        "data": corpus / "train.txt",
        "val": corpus / "val.txt",
        "tokenizer": train_tokenizer(corpus, work),
    }
    begun = (out / "run.json").exists()
    minigpt("train", "--resume", out=out, **({} if begun else {**files, **SHAPE, **RECIPE}))
    return out


def export(run: Path, weights: Path) -> None:
    """The run's last weights as float16, with its tokenizer."""
    model, tokenizer = load(run)
    model.half().save_pretrained(weights)
    tokenizer.save_pretrained(weights)


def facts(run: Path, corpus: Path) -> dict[str, Any]:
    """What others need to train it again: the texts' sha256, all settings but the places of files; and what it took."""
    known: dict[str, Any] = json.loads((run / "run.json").read_text())
    known["settings"] = {name: value for name, value in known["settings"].items() if name not in PLACES}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    texts = {name: fingerprint([corpus / f"{name}.txt"]) for name in ("train", "val")}
    return {**known, **texts, "tokens": last["tokens"], "minutes": round(last["seconds"] / 60)}


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
    run = train(args.corpus, args.work)
    export(run, args.out)
    (args.out / "training.json").write_text(json.dumps(facts(run, args.corpus), indent=2) + "\n")
    bundled_card.update(args.out, args.corpus)
    judge_stories.update(args.out, args.corpus, against=None)


if __name__ == "__main__":
    main()
