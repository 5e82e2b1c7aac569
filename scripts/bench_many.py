"""Measures many prompts: continuous batching against plain batches, interleaved in the same run.

    python scripts/bench_many.py                                   gpt2's shape, in float32 and int8, and the bundled model
    python scripts/bench_many.py --quarter --rounds 1              a quarter of gpt2's depth and vocabulary, and of the time
    python scripts/bench_many.py --update docs/benchmarks.md       ... and into the page, between the marks for this maker's processors

200 prompts of 8 to 256 tokens get 1 to 200 new tokens each. The plain batches are minigpt's own, of 8 prompts, sorted
by length and padded; a text that is finished leaves its batch. Both sides write the same tokens. With --threads 1 the
seconds are those of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

import torch
from pages import maker, put

import minigpt
from minigpt import GPT2, GPT2Config
from minigpt.cli.machine import cpu_name
from minigpt.json_files import counted
from minigpt.sampler import Greedy
from minigpt.sampler.batches import decode_many, in_batches
from minigpt.sampler.events import Failed, Finished, Request
from minigpt.sampler.requests import prepare

BATCH = 8
Texts = dict[int, list[int]]


def requests(model: GPT2, n: int) -> list[Request]:
    """Prompts of random tokens, sorted by their lengths."""
    chance = random.Random(0)
    known = min(4096, model.config.vocab_size)
    asked = []
    for _ in range(n):
        prompt = [chance.randrange(known) for _ in range(chance.randint(8, 256))]
        asked += prepare(model, [prompt], max_new_tokens=chance.randint(1, 200), end_tokens=[])
    return sorted(asked, key=lambda request: len(request.prompt))


def written(events: Iterator[Finished | Failed], first: int = 0) -> Texts:
    return {first + e.prompt_index: e.completions[0].tokens for e in events if isinstance(e, Finished)}


def in_plain_batches(model: GPT2, asked: Sequence[Request]) -> Texts:
    texts: Texts = {}
    for first in range(0, len(asked), BATCH):
        texts |= written(in_batches(model, asked[first : first + BATCH], Greedy(), BATCH), first)
    return texts


def continuous(model: GPT2, asked: Sequence[Request]) -> Texts:
    return written(decode_many(model, asked, Greedy()))


def row(name: str, model: GPT2, n: int, rounds: int) -> str:
    """One line of the table: tokens per second of both sides, and the ratio, with its range over several rounds."""
    asked, clock = (
        requests(model, n),
        time.process_time if torch.get_num_threads() == 1 else time.perf_counter,
    )
    sides: list[Callable[[GPT2, Sequence[Request]], Texts]] = [in_plain_batches, continuous]
    seconds: dict[str, list[float]] = {side.__name__: [] for side in sides}
    texts: list[Texts] = []
    for number in range(rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            start = clock()
            texts.append(side(model, asked))
            seconds[side.__name__].append(clock() - start)
    same = min(sum(one[i] == texts[0][i] for i in range(n)) for one in texts)
    tokens = sum(request.max_new_tokens for request in asked)
    plain, ours = (tokens / statistics.median(taken) for taken in seconds.values())
    found = sorted(a / b for a, b in zip(*seconds.values(), strict=True))
    ratio = f"**{statistics.median(found):.2f}**"
    if rounds > 1:
        ratio += f" ({found[0]:.2f} to {found[-1]:.2f})"
    return f"| {name} | {plain:.0f} | {ours:.0f} | {ratio} | {same} of {n} |"


def many_table(n: int, rounds: int, quarter: bool = False) -> Iterator[str]:
    """New tokens per second of both sides, for each kind of model."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, vocab_size=12564) if quarter else GPT2Config()
    shape = "a quarter of gpt2" if quarter else "gpt2"
    ratio = "ratio (range)" if rounds > 1 else "ratio"
    yield f"| {n} prompts of 8 to 256 + 1 to 200 | plain batches of {BATCH}, tokens/s | continuous | {ratio} | same texts |"
    yield "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        GPT2(config).save_pretrained(folder)
        model = GPT2.from_pretrained(folder)  # as its weights lie where a model is loaded
    yield row(f"{shape}, float32", model, n, rounds)
    yield row(f"{shape}, int8", model.quantize("int8"), n, rounds)
    yield row("bundled, float32", minigpt.load()[0], n, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=200, metavar="N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quarter", action="store_true", help="3 layers and 12,564 tokens instead of 12 and 50,257"
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this page")
    args = parser.parse_args()
    if args.update and maker() == "another maker":
        parser.error(f"--update: the page has no table for this processor, {cpu_name()}")
    torch.set_num_threads(args.threads)
    lines = []
    for line in many_table(args.prompts, args.rounds, args.quarter):
        lines.append(line)
        print(line, flush=True)
    threads = "1 thread, seconds of the processor" if args.threads == 1 else counted(args.threads, "threads")
    lines += [
        "",
        f"{threads}; {counted(args.rounds, 'rounds')}; {cpu_name()}, torch {torch.__version__}; {date.today()},",
    ]
    lines += ["by `scripts/bench_many.py`."]
    print("\n".join(lines[-3:]))
    if args.update:
        put("\n".join(lines), args.update, f"bench of many prompts on {maker()}")


if __name__ == "__main__":
    main()
