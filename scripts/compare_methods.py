"""Measures every decoding method on the bundled model, with prompts and human text from held-out tales.

    python scripts/compare_methods.py --corpus ../shared/corpus                       print the table
    python scripts/compare_methods.py --corpus ../shared/corpus --update docs/comparison.md    and put it into the file

Below the table stands which parts of the published ordering the figures show, and which not: computed, not typed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

from pages import put

from minigpt import Tokenizer
from minigpt.compare import __main__ as compare
from minigpt.compare.report import COLUMNS
from minigpt.evaluation.diversity import repetition

Figures = dict[str, float]

MAXIMISING = ["greedy", "beam 5"]
# what the paper compares
PUBLISHED = [*MAXIMISING, "pure sampling", "temperature 0.7", "top-k 40", "nucleus 0.95"]
UNSURE = (
    "Texts drawn from a model have, on average, the perplexity that the model expects. Human text is above that where"
    " the model is surer than it has a right to be, as a small one is of tales that it has not read; and all that cuts"
    " the tail off takes the perplexity further down."
)


def ordering(record: dict[str, Any]) -> str:
    """Which parts of the published ordering hold in the JSON of `minigpt.compare`, and who departs from the others."""
    human = record["human"]["figures"]
    methods = {row["name"]: row["figures"] for row in record["methods"]}
    below, above = (lambda a, b: a < b), (lambda a, b: a > b)
    lines = [
        line("greedy and beam search are below human perplexity", departing(methods, human, MAXIMISING, "perplexity", below)),
        line("greedy and beam search repeat themselves more than humans (rep-4)", departing(methods, human, MAXIMISING, "rep_4", above)),
        line("pure sampling is above human perplexity", departing(methods, human, ["pure sampling"], "perplexity", above)),
        line("nucleus sampling is the nearest to human perplexity", nearer(methods, human, "perplexity", math.log)),
        line("nucleus sampling is the nearest to human repetition (rep-4)", nearer(methods, human, "rep_4", float)),
    ]  # fmt: skip
    why = [UNSURE] if methods["pure sampling"]["perplexity"] <= human["perplexity"] else []
    if nearer(methods, human, "rep_4", float):
        why.append(refrains(record))
    heading = f"The published ordering (Holtzman et al. 2020) of {', '.join(PUBLISHED)}:"
    return "\n\n".join([heading, "\n".join(lines), *why])


def refrains(record: dict[str, Any]) -> str:
    """The standard errors of the repetition of sampled and human texts, and how few texts most of the human one comes from."""
    tokenizer = Tokenizer.from_pretrained()
    drawing = [row for row in record["methods"] if row["name"] in PUBLISHED and row["name"] not in MAXIMISING]
    rows = [record["human"], *drawing]
    shares = {row["name"]: [repetition([tokenizer.encode(text)]) for text in row["texts"]] for row in rows}
    errors = {name: stdev(each) / math.sqrt(len(each)) for name, each in shares.items()}
    figures = [f"{row['name']}: {shown('rep_4', row['figures'])} ± {errors[row['name']]:.1%}" for row in rows]
    human = sorted(shares[record["human"]["name"]], reverse=True)
    most = next(n for n in range(len(human) + 1) if sum(human[:n]) >= sum(human) / 2)
    return (
        f"With their standard errors over the texts, these are the repetitions: {'; '.join(figures)}. Differences within two standard"
        f" errors are not significant. {most} of the {len(human)} human texts have half of all that is repeated: fairy tales repeat"
        " refrains. A small model does not reproduce them, so samples of the whole distribution repeat slightly less than humans, and a"
        " truncated distribution, which repeats more, can come nearer by accident."
    )


def line(claim: str, departing: list[str]) -> str:
    return f"- {claim}: " + (f"**not here**: {', '.join(departing)}" if departing else "yes")


def departing(
    methods: dict[str, Figures],
    human: Figures,
    names: list[str],
    figure: str,
    holds: Callable[[float, float], bool],
) -> list[str]:
    """Those of the methods that are not on that side of the human."""
    return [
        f"{name} has {shown(figure, methods[name])}, humans {shown(figure, human)}"
        for name in names
        if not holds(methods[name][figure], human[figure])
    ]


def nearer(
    methods: dict[str, Figures], human: Figures, figure: str, scale: Callable[[float], float]
) -> list[str]:
    """Those of the published methods that are nearer to the human than nucleus sampling is."""

    def distance(name: str) -> float:
        return abs(scale(methods[name][figure]) - scale(human[figure]))

    return [
        f"{name} is nearer ({shown(figure, methods[name])}; nucleus {shown(figure, methods['nucleus 0.95'])},"
        f" humans {shown(figure, human)})"
        for name in PUBLISHED
        if distance(name) < distance("nucleus 0.95")
    ]


def shown(figure: str, figures: Figures) -> str:
    return COLUMNS[figure][1](figures[figure])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, metavar="FOLDER", help="where val.txt is")
    parser.add_argument("--n-prompts", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page, record = Path(folder, "table.md"), Path(folder, "record.json")
        flags = {
            "held-out": args.corpus / "val.txt", "n-prompts": args.n_prompts, "max-new-tokens": args.max_new_tokens,
            "threads": args.threads, "markdown": page, "json": record,
        }  # fmt: skip
        code = compare.main([str(part) for flag, value in flags.items() for part in (f"--{flag}", value)])
        if code:  # Ctrl-C too: half a table is no table for a README
            sys.exit(code)
        text = f"{page.read_text(encoding='utf-8')}\n{ordering(json.loads(record.read_text(encoding='utf-8')))}\n"
    text = text.replace(str(args.corpus / "val.txt"), "val.txt")
    print(text)
    if args.update:
        put(text, args.update, "methods")


if __name__ == "__main__":
    main()
