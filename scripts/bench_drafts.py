"""Measures lossless speculative decoding: greedy text of the bundled model with prompt lookup against without.

    python scripts/bench_drafts.py --corpus ../shared/corpus                       print the table
    python scripts/bench_drafts.py --corpus ../shared/corpus --update docs/benchmarks.md    and put it into the file

Both sides must write the same tokens, and take turns, one round each, since machines are noisy; what counts is
the median of the ratios. Passes are counted from outside, by a hook. Drafts by a second model are not measured:
no smaller model of the bundled vocabulary is bundled.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from bench import machine, seconds, take_turns
from pages import put

import minigpt
from minigpt import GPT2, Tokenizer
from minigpt.sampler import Greedy, Strategy, generate
from minigpt.sampler.strategies.prompt_lookup import PromptLookup

OPENINGS = [
    "Once upon a time there was a king who had three sons.",
    "In a hut at the edge of the forest there lived an old woman with her cat.",
    "A poor miller had a daughter, and she was so beautiful that everybody spoke of her.",
    "The fox and the wolf had been friends for many years, until one winter",
]
PROMPT_TOKENS, N_NEW = 64, 256


def prompts_of(corpus: Path | None, tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """What texts that the model has never seen begin with; without a corpus, a few openings."""
    if corpus is None:
        return [tokenizer.encode(opening) for opening in OPENINGS]
    paragraphs = (corpus / "val.txt").read_text(encoding="utf-8").split("\n\n")
    starts = [i * len(paragraphs) // n for i in range(n)]
    texts = ["\n\n".join(paragraphs[start : start + 20]) for start in starts]
    return [tokenizer.encode(text)[:PROMPT_TOKENS] for text in texts]


def writing(model: GPT2, strategy: Strategy, prompts: list[list[int]]) -> list[list[int]]:
    texts = generate(model, prompts, strategy, max_new_tokens=N_NEW, end_tokens=[])
    return [best.tokens for best, *_ in texts]


def passes(model: GPT2, strategy: Strategy, prompts: list[list[int]]) -> float:
    """Forward passes for each new token of a text, that over the prompts included."""
    counted = []
    hook = model.blocks[0].register_forward_hook(lambda *_: counted.append(1))
    writing(model, strategy, prompts)
    hook.remove()
    return len(counted) / N_NEW


def row(name: str, model: GPT2, batches: list[list[list[int]]], rounds: int, **options: int) -> str:
    plain, lookup = Greedy(**options), PromptLookup(**options)
    used = [passes(model, lookup, batch) for batch in batches]
    times = []
    for batch in batches:
        run = {way: partial(writing, model, way, batch) for way in (lookup, plain)}
        if run[lookup]() != run[plain]():
            print("note: the two sides do not write the same tokens")
        taken = take_turns(
            {"lookup": partial(seconds, run[lookup]), "plain": partial(seconds, run[plain])}, rounds
        )
        times += zip(taken["lookup"], taken["plain"], strict=True)
    n_tokens = N_NEW * len(batches[0])
    mine, reference = (n_tokens / statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(b / a for a, b in times)
    return (
        f"| {name} | {statistics.median(used):.2f} ({min(used):.2f} to {max(used):.2f}) | {mine:.0f} | {reference:.0f} |"
        f" **{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
    )


def table(model: GPT2, prompts: list[list[int]], rounds: int) -> str:
    alone = [[prompt] for prompt in prompts]
    n = len(prompts)
    lines = [
        "| greedy, 256 new tokens | passes per token with lookup, median (range) | tokens/s with lookup | without |"
        " ratio, median (range) |",
        "|---|---|---|---|---|",
    ]
    for name, batches, options in [
        (f"{n} prompts, one at a time", alone, {}),
        (f"the {n} side by side", [prompts], {}),
        ("3 one at a time, no repeated 3-grams", alone[:3], {"no_repeat_ngram_size": 3}),
    ]:
        lines.append(row(name, model, batches, rounds, **options))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, metavar="DIR", help="has val.txt, which the model has not seen"
    )
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="how many of the corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = minigpt.load()
    source = "openings of our own" if args.corpus is None else "held-out text (val.txt)"
    found = table(model, prompts_of(args.corpus, tokenizer, args.prompts), args.rounds)
    what = f"bundled model, float32, prompts from {source}, the median over prompts and rounds"
    text = f"{found}\n\n{what}; {machine()}.\n"
    print(text)
    if args.update:
        put(text, args.update, "bench of drafts")


if __name__ == "__main__":
    main()
