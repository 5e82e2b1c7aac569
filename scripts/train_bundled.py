"""Makes the model in weights/: vocabulary, training, float16, training.json and the card, in one command.

    python scripts/train_bundled.py --corpus ../shared/corpus --work build/bundled    (again, to resume)

Every step is one of minigpt's own commands. Two models of the final shape teach the third (ten minutes on
a GPU of 2023, days on a CPU). The folder holds train.txt, val.txt and MANIFEST.tsv, which lists the books; nothing of
val.txt enters training or the vocabulary. Ctrl-C saves a checkpoint. A run that was begun keeps its settings: to try
others, name another --work.
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

VOCABULARY, CONTEXT = 4096, 1024
TEACHER_STEPS, STUDENT_STEPS, WARMUP = 4_870, 3_020, 200
COMMON: dict[str, object] = {
    "n-layer": 8, "n-head": 5, "n-embd": 320, "context": CONTEXT, "batch-size": 32, "val": 0.01,
    "optimizer": "muon", "lr": 5e-3, "adamw-lr": 2.5e-3, "beta2": 0.95, "schedule": "wsd", "warmup": WARMUP,
    "dtype": "bfloat16", "eval-every": 1000, "checkpoint-every": 1000,
}  # fmt: skip
# Alike but for the seed and how they are kept from learning the text by heart.
TEACHERS: tuple[dict[str, object], ...] = (
    {"steps": TEACHER_STEPS, "decay": TEACHER_STEPS - WARMUP, "weight-decay": 0.7, "seed": 0},
    {"steps": TEACHER_STEPS, "decay": TEACHER_STEPS - WARMUP, "weight-decay": 0.35, "dropout": 0.1, "seed": 1},
)  # fmt: skip
STUDENT: dict[str, object] = {
    "steps": STUDENT_STEPS, "decay": STUDENT_STEPS - WARMUP, "weight-decay": 0.7, "seed": 2, "teacher-weight": 0.7
}  # fmt: skip
# Settings that mean nothing elsewhere.
PLACES = ("data", "val", "init", "teacher", "tokenizer", "token_cache", "threads")


def minigpt(command: str, *words: object, **flags: object) -> None:
    """Runs one of minigpt's commands; if it fails or is stopped, it has said why, and its exit code is ours."""
    given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    process = subprocess.Popen([sys.executable, "-m", f"minigpt.{command}", *map(str, words), *given])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # it was pressed for both: the command ends its step, and saves a checkpoint
        code = process.wait()
    if code:
        sys.exit(code)


def train_tokenizer(corpus: Path, work: Path) -> Path:
    """The folder of the vocabulary, which is made once."""
    folder = work / "tokenizer"
    if not folder.exists():
        minigpt("train_tokenizer", corpus / "train.txt", "--vocab-size", VOCABULARY, out=folder)
    return folder


def train(corpus: Path, work: Path) -> list[Path]:
    """Begins each run in turn, or continues it with the settings that it began with; their folders, the student's last."""
    texts = {"data": corpus / "train.txt", "tokenizer": train_tokenizer(corpus, work)}
    teachers = [work / f"teacher-{number}" for number in range(1, len(TEACHERS) + 1)]
    for out, settings in zip(teachers, TEACHERS, strict=True):
        begin_or_continue(out, **texts, **COMMON, **settings)
    student = work / "student"
    of = (word for teacher in teachers for word in ("--teacher", teacher))
    begin_or_continue(student, *of, **texts, **COMMON, **STUDENT)
    return [*teachers, student]


def begin_or_continue(out: Path, *words: object, **settings: object) -> None:
    """One run of training."""
    if (out / "run.json").exists():
        minigpt("train", "--resume", out=out)
    else:
        minigpt("train", *words, out=out, **settings)


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
        took = {
            "tokens": last["tokens"],
            "minutes": round(last["seconds"] / 60),
            "held_out": last["val_bits_per_byte"],
        }
        teachers = len(known["settings"]["teacher"])
        stages.append({"settings": settings, "teachers": teachers, "versions": known["versions"], **took})
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
    if not (args.out / "README.md").exists():
        parser.error(f"--out {args.out} has no README.md, into which the figures go: copy that of weights/")
    runs = train(args.corpus, args.work)
    export(runs[-1], args.out)
    (args.out / "training.json").write_text(json.dumps(facts(runs, args.corpus), indent=2) + "\n")
    bundled_card.update(args.out, args.corpus)
    judge_stories.update(args.out, args.corpus, None, judge_stories.RECIPE)


if __name__ == "__main__":
    main()
