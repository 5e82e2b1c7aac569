"""Trains the model in weights/: a byte-level BPE and a small GPT-2, on a folder of public-domain tales.

    python scripts/train_bundled.py --corpus ../shared/corpus --work build/bundled    (again, to resume)

The folder holds train.txt and val.txt, documents separated by lines `<|endoftext|>`. Nothing of val.txt
enters training or the tokenizer. Checkpoints are written beside and renamed; Ctrl-C loses no more than the
steps since the last one. The finished model goes to weights/, as float16, with its card.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from datetime import date
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import minigpt
from minigpt.config import GPT2Config
from minigpt.model import GPT2

END = "<|endoftext|>"
CARD = Path(__file__).with_name("bundled_card.md")
BATCH, WARMUP, PEAK_LR, DECAY_SHARE = 8, 200, 1.5e-3, 0.3
CONFIG = GPT2Config(
    vocab_size=4096, n_positions=512, n_embd=256, n_layer=6, n_head=4,
    bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip


def documents(path: Path) -> list[str]:
    parts = path.read_text(encoding="utf-8").split(f"\n{END}\n")
    return [part.strip("\n") for part in parts if part.strip()]


def train_tokenizer(texts: list[str], folder: Path) -> None:
    """GPT-2's own kind of vocabulary: the end token, 256 bytes, then merges in the order they were learned."""
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=CONFIG.vocab_size, special_tokens=[END], show_progress=True)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save_model(str(folder))


def encode(texts: list[str], folder: Path) -> list[np.ndarray]:
    """Each document's ids, with the end token before it."""
    bpe = tokenizers.ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    return [np.array([0, *encoded.ids], dtype=np.uint16) for encoded in bpe.encode_batch(texts)]


def windows(encoded: list[np.ndarray], epoch: int) -> Tensor:
    """All documents, shuffled, joined and cut into windows in random order: (n, n_positions + 1)."""
    chance = np.random.default_rng(epoch)
    stream = np.concatenate([encoded[i] for i in chance.permutation(len(encoded))])
    n = (len(stream) - 1) // CONFIG.n_positions
    starts = chance.permutation(n)[:, None] * CONFIG.n_positions
    return torch.from_numpy(stream[starts + np.arange(CONFIG.n_positions + 1)].astype(np.int64))


def learning_rate(step: int, steps: int) -> float:
    """Up, level, and down to zero over the last part, so that `--steps` may change while it is level."""
    decay = DECAY_SHARE * steps
    return PEAK_LR * min(1.0, (step + 1) / WARMUP, (steps - step) / decay)


def loss_of(model: GPT2, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum")


@torch.no_grad()
def validate(model: GPT2, encoded: list[np.ndarray], n_bytes: int) -> dict[str, float]:
    """Loss over every token of the held-out documents, each read alone in windows that do not overlap."""
    model.eval()
    nats, n_tokens = 0.0, 0
    for ids in encoded:
        stream = torch.from_numpy(np.append(ids, 0).astype(np.int64))  # the end is predicted too
        for start in range(0, len(stream) - 1, CONFIG.n_positions):
            part = stream[None, start : start + CONFIG.n_positions + 1]
            nats += float(F.cross_entropy(model(part[:, :-1])[0], part[0, 1:], reduction="sum"))
            n_tokens += part.size(1) - 1
    model.train()
    return {"loss": nats / n_tokens, "bits_per_byte": nats / math.log(2) / n_bytes}


def save_checkpoint(path: Path, **state: object) -> None:
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    os.replace(beside, path)


def train(args: argparse.Namespace, encoded: list[np.ndarray], check: list[np.ndarray], n_bytes: int) -> None:
    torch.manual_seed(0)
    model = GPT2(CONFIG)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    path, log = args.work / "checkpoint.pt", args.work / "metrics.jsonl"
    step, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, seconds = state["step"], state["seconds"]
    per_epoch = len(windows(encoded, 0)) // BATCH
    data, epoch = torch.empty(0), -1
    bar = tqdm(total=args.steps, initial=step, unit="step", mininterval=5)
    while step < args.steps:
        began = time.monotonic()
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            data = windows(encoded, epoch)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args.steps)
        batch = data[(step % per_epoch) * BATCH :][:BATCH]
        loss = loss_of(model, batch) / (BATCH * CONFIG.n_positions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        seconds += time.monotonic() - began
        bar.update()
        bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % 500 == 0 or step == args.steps:
            figures = validate(model, check, n_bytes)
            line = {"step": step, "seconds": round(seconds), "train_loss": round(loss.item(), 4), **figures}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            bar.write(json.dumps(line))
            save_checkpoint(
                path, model=model.state_dict(), optimiser=optimiser.state_dict(), step=step, seconds=seconds
            )


def corpus_facts(corpus: Path) -> dict[str, str]:
    """What the card says of the data, counted."""
    manifest = corpus / "MANIFEST.tsv"
    facts = {
        "books": f"{len(manifest.read_text().splitlines()) - 1:,}" if manifest.exists() else "(uncounted)"
    }
    for part in ("train", "val"):
        path = corpus / f"{part}.txt"
        facts[f"{part}_documents"] = f"{len(documents(path)):,}"
        facts[f"{part}_bytes"] = f"{path.stat().st_size:,}"
    return facts


def export(args: argparse.Namespace, check: list[np.ndarray], n_bytes: int) -> None:
    """Writes weights/ as float16, and measures what was written rather than what was trained."""
    state = torch.load(args.work / "checkpoint.pt", weights_only=True)
    model = GPT2(CONFIG)
    model.load_state_dict(state["model"])
    model.half().save_pretrained(args.out)
    minigpt.Tokenizer.from_pretrained(args.work).save_pretrained(args.out)
    figures = validate(GPT2.from_pretrained(args.out), check, n_bytes)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": state["step"],
        "tokens": state["step"] * BATCH * CONFIG.n_positions,
        "minutes": round(state["seconds"] / 60),
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "loss": figures["loss"],
        "bits_per_byte": figures["bits_per_byte"],
        "batch": BATCH,
        "peak_lr": PEAK_LR,
        "decay_share": DECAY_SHARE,
        **corpus_facts(args.corpus),
    }
    (args.out / "README.md").write_text(CARD.read_text().format(**facts, config=CONFIG))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of train.txt and val.txt")
    parser.add_argument(
        "--work", type=Path, default=Path("build/bundled"), help="checkpoints and token files"
    )
    parser.add_argument("--out", type=Path, default=Path("weights"), help="where the finished model goes")
    parser.add_argument(
        "--steps", type=int, default=8000, help=f"of {BATCH * CONFIG.n_positions} tokens each"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts, held_out = documents(args.corpus / "train.txt"), documents(args.corpus / "val.txt")
    if not (args.work / "merges.txt").exists():
        train_tokenizer(texts, args.work)
    encoded, check = encode(texts, args.work), encode(held_out, args.work)
    n_bytes = sum(len(text.encode()) for text in held_out)
    train(args, encoded, check, n_bytes)
    export(args, check, n_bytes)


if __name__ == "__main__":
    main()
