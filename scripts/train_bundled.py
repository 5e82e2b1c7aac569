"""Makes the model in weights/: vocabulary, training, float16, figures and card, in one command.

    python scripts/train_bundled.py --corpus ../shared/corpus --work build/bundled    (again, to resume)

Every step is one of minigpt's own commands. The folder holds train.txt, val.txt and MANIFEST.tsv, which
lists the books; nothing of val.txt enters training or the vocabulary. Ctrl-C keeps what was done.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from minigpt import GPT2, load
from minigpt.training.optimiser import learning_rate

CARD = Path(__file__).with_name("bundled_card.md")
VOCABULARY, CONTEXT, BATCH, STEPS = 4096, 512, 8, 10_000
SHAPE = {"n-layer": 6, "n-head": 4, "n-embd": 256}  # by scripts/size_study.py
RECIPE = {
    "context": CONTEXT, "batch-size": BATCH, "steps": STEPS, "lr": 2e-3, "warmup": 300, "beta2": 0.95,
    "dtype": "bfloat16", "eval-every": 500, "checkpoint-every": 250,
}  # fmt: skip
SAMPLES = 8


def minigpt(command: str, *words: object, **flags: object) -> str:
    """Runs one of minigpt's commands; what it printed on stdout."""
    given = [str(part) for flag, value in flags.items() for part in (f"--{flag}", value)]
    whole = [sys.executable, "-m", f"minigpt.{command}", *map(str, words), *given]
    return subprocess.run(whole, check=True, stdout=subprocess.PIPE, text=True).stdout


def train_tokenizer(corpus: Path, work: Path) -> Path:
    folder = work / "tokenizer"
    if not folder.exists():
        minigpt("train_tokenizer", corpus / "train.txt", "--vocab-size", VOCABULARY, out=folder)
    return folder


def train(corpus: Path, work: Path) -> Path:
    out = work / "run"
    files = {
        "data": corpus / "train.txt",
        "val": corpus / "val.txt",
        "tokenizer": train_tokenizer(corpus, work),
    }
    minigpt("train", "--resume", "--compile", out=out, **files, **SHAPE, **RECIPE)
    return out


def export(run: Path, weights: Path) -> None:
    """The run's last weights as float16, with its tokenizer."""
    model, tokenizer = load(run)
    model.half().save_pretrained(weights)
    tokenizer.save_pretrained(weights)


def facts(run: Path) -> dict[str, object]:
    """What others need to train it again: all settings but the places of files, and the texts' sha256."""
    known = json.loads((run / "run.json").read_text())
    places = ("data", "val", "tokenizer", "token_cache", "threads")
    known["settings"] = {name: value for name, value in known["settings"].items() if name not in places}
    return known


def detour(run: Path) -> str:
    """What to say of steps whose learning rate was that of another number of steps, if it was changed on the way."""
    s = json.loads((run / "run.json").read_text())["settings"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    other = [
        line["step"]
        for line in lines
        if abs(line["lr"] - learning_rate(line["step"] - 1, s["steps"], s["warmup"], s["lr"])) > 1e-9
    ]
    return f"; up to step {max(other):,} the schedule was that of another number of steps" if other else ""


def samples(weights: Path) -> str:
    """The first texts that come, without choosing."""
    written = minigpt(
        "generate", "--json", "--quiet", model=weights, strategy="sample", seed=0,
        **{"top-p": 0.9, "num-return-sequences": SAMPLES, "max-new-tokens": 120},
    )  # fmt: skip
    texts = [json.loads(line)["text"].strip() for line in written.splitlines()]
    return "\n\n".join(f"{i}. " + " / ".join(text.split("\n")) for i, text in enumerate(texts, start=1))


def books(corpus: Path) -> str:
    with (corpus / "MANIFEST.tsv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["gutenberg_id"]))
    return "\n".join(f"- {row['gutenberg_id']}: {row['title']} ({row['author']})" for row in rows)


def card(corpus: Path, work: Path, weights: Path) -> str:
    """The model's page, with figures measured on the float16 file."""
    from size_study import study, table

    run = json.loads((work / "run" / "run.json").read_text())
    last = json.loads((work / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    listed = books(corpus)
    flops = last["tokens"] * run["flops_per_token"]
    stride = CONTEXT  # windows side by side: every token once
    score = json.loads(
        minigpt("score", corpus / "val.txt", "--json", "--quiet", model=weights, stride=stride)
    )
    facts = {
        **run, **run["settings"], "config": GPT2.from_pretrained(weights).config, "tokens": last["tokens"],
        "minutes": last["seconds"] / 60, "score": score, "samples": samples(weights), "books": listed,
        "n_books": listed.count("\n") + 1, "study": study(work), "long": table(sorted(work.glob("run*"))),
        "megabytes": (weights / "model.safetensors").stat().st_size / 1e6,
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})", "date": date.today().isoformat(),
        "flops": flops, "times": flops / 3e13, "epochs": last["tokens"] / run["train_tokens"],
        "n_samples": SAMPLES, "detour": detour(work / "run"), "torch": torch.__version__,
    }  # fmt: skip
    return CARD.read_text().format(**facts)


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
    (args.out / "training.json").write_text(json.dumps(facts(run), indent=2) + "\n")
    (args.out / "README.md").write_text(card(args.corpus, args.work, args.out))


if __name__ == "__main__":
    main()
