"""What the bundled model's stories are like, in figures: names, quotations, sentences, variety, loops; and what it makes of context.

    python scripts/judge_stories.py --corpus ../shared/corpus                    the figures of weights/, beside those of human tales
    python scripts/judge_stories.py --corpus ../shared/corpus --against OLD      and text by text against another model

All texts begin with the same words and are sampled by the default recipe for stories; none is chosen. The other model
may have a recipe of its own (`--recipe-against`): the better a model predicts, the more randomness it bears. The words
that are known are those that occur twice or more often in train.txt. Human text is the beginnings of the documents of
val.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from pages import put

from minigpt import GPT2, Tokenizer, load
from minigpt.data.documents import documents
from minigpt.evaluation.diversity import distinct, ends_in_a_loop
from minigpt.evaluation.in_context import in_context_learning, induction, token_losses
from minigpt.evaluation.story import known_words, names_kept, quotations_closed, sentences_that_parse
from minigpt.sampler import Sample, generate

PROMPT = "Once upon a time"
RECIPE = {"temperature": 1, "min_p": 0.1, "repetition_penalty": 1.15}  # by scripts/story_recipe.py
LENGTHS = (128, 256)  # tokens that are judged
N_TEXTS, N_SHOWN, WIDTH = 50, 16, 20
MANY = 500  # documents of val.txt, at most, that the in-context score is measured on


class Story(NamedTuple):
    """A text as its tokens and as the string that they stand for."""

    tokens: list[int]
    text: str


class Measure(NamedTuple):
    """One figure of a story; more is better."""

    name: str
    of: Callable[[Story], float]


@cache
def known(corpus: Path) -> frozenset[str]:
    """The words that there are."""
    return known_words(documents([corpus / "train.txt"]))


def measures(corpus: Path) -> list[Measure]:
    """What is measured of every story."""
    return [
        Measure("names in the second half that the first half knows", lambda s: names_kept(s.text)),
        Measure("paragraphs whose quotations close", lambda s: quotations_closed(s.text)),
        Measure("sentences that parse", lambda s: sentences_that_parse(s.text, known(corpus))),
        Measure("distinct pairs of tokens", lambda s: distinct([s.tokens], 2)),
        Measure("texts that do not end in a loop", lambda s: float(not ends_in_a_loop(s.tokens))),
    ]


def write(model: GPT2, tokenizer: Tokenizer, recipe: dict[str, float], seed: int = 0) -> list[list[int]]:
    """The tokens of all stories, prompt included, without the end token."""
    prompt = tokenizer.encode(PROMPT)
    strategy = Sample(**recipe, seed=seed, num_return_sequences=N_TEXTS)  # type: ignore[arg-type]
    (texts,) = generate(model, [prompt], strategy, max_new_tokens=max(LENGTHS) - len(prompt))
    return [[t for t in [*prompt, *text.tokens] if t != tokenizer.end_token] for text in texts]


def human(corpus: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """The beginnings of tales that humans wrote, one of each document."""
    whole = (tokenizer.encode(text) for text in documents([corpus / "val.txt"]))
    return [tokens[: max(LENGTHS)] for tokens in whole if len(tokens) >= max(LENGTHS)]


def cut(tokens: Sequence[list[int]], length: int, tokenizer: Tokenizer) -> list[Story]:
    """The first tokens of every text."""
    return [Story(some[:length], tokenizer.decode(some[:length])) for some in tokens]


def mean(measure: Measure, stories: Sequence[Story]) -> float:
    """Over the stories of which it says anything."""
    values = [value for story in stories if not math.isnan(value := measure.of(story))]
    return fmean(values) if values else math.nan


def figures(written: dict[str, list[list[int]]], tokenizer: Tokenizer, corpus: Path) -> str:
    """A table: a measure at a length in each line, a writer in each column."""
    lines = [f"| | tokens | {' | '.join(written)} |", "|---|---|" + "---|" * len(written)]
    for measure in measures(corpus):
        for length in LENGTHS:
            cells = [f"{mean(measure, cut(tokens, length, tokenizer)):.1%}" for tokens in written.values()]
            lines.append(f"| {measure.name} | {length} | {' | '.join(cells)} |")
    return "\n".join(lines)


def duel(mine: list[list[int]], others: list[list[int]], tokenizer: Tokenizer, corpus: Path) -> str:
    """How many of the paired comparisons the first one wins: same seed, same length, one measure."""
    won = lost = 0
    for length in LENGTHS:
        pairs = list(zip(cut(mine, length, tokenizer), cut(others, length, tokenizer), strict=True))
        for measure in measures(corpus):
            values = [(measure.of(a), measure.of(b)) for a, b in pairs]
            won += sum(a > b for a, b in values)  # a comparison with NaN is false both ways
            lost += sum(a < b for a, b in values)
    return (
        f"Text by text, on the same {len(mine)} seeds: of {won + lost} comparisons (a seed, a length, a measure) that are"
        f" not even, {won} go to this model, {won / (won + lost):.0%}; the others to the one before it."
    )


def context(model: GPT2, tokenizer: Tokenizer, corpus: Path) -> str:
    """What the model makes of what it has read."""
    assert tokenizer.end_token is not None
    whole = ([tokenizer.end_token, *tokenizer.encode(text)] for text in documents([corpus / "val.txt"]))
    rows = torch.tensor([tokens[:512] for tokens in whole if len(tokens) >= 512][:MANY])
    score = in_context_learning(token_losses(model, rows), width=WIDTH)
    gain = induction(model, tokenizer.end_token)
    return (
        f"In-context learning score (the loss of the {WIDTH} tokens up to the 500th minus that of those up to the 50th,"
        f" {len(rows)} documents of val.txt): **{score:.2f}** nats. Induction: of random tokens, the second time costs"
        f" **{gain:.2f}** nats less than the first (ln {tokenizer.vocab_size:,} = {math.log(tokenizer.vocab_size):.2f})."
    )


def flags(recipe: dict[str, float]) -> str:
    """A recipe as the command line has it."""
    return " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in recipe.items())


def parsed(text: str) -> dict[str, float]:
    """What `flags` made of a recipe."""
    words = shlex.split(text)
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    return dict(zip(names, map(float, words[1::2]), strict=True))


def section(folder: Path, corpus: Path, against: Path | None, recipe_against: dict[str, float]) -> str:
    """All of it, for the card."""
    model, tokenizer = load(folder)
    mine = write(model, tokenizer, RECIPE)
    written = {"this model": mine, "human": human(corpus, tokenizer)}
    parts = [f"Sampled with `{flags(RECIPE)}`.", context(model, tokenizer, corpus)]
    if against is not None:
        others = write(*load(against), recipe_against)
        written = {"this model": mine, "the one before": others, "human": written["human"]}
        parts.insert(
            1, f"{duel(mine, others, tokenizer, corpus)} That one is sampled with `{flags(recipe_against)}`."
        )
    return "\n\n".join([figures(written, tokenizer, corpus), *parts])


def samples(folder: Path) -> str:
    """The first texts that come, without choosing, and the command that prints them."""
    command = f'generate "{PROMPT}" {flags(RECIPE)} --seed 0 --num-return-sequences {N_SHOWN} --max-new-tokens 120 --echo'
    words = [
        sys.executable,
        "-m",
        "minigpt",
        *shlex.split(command),
        "--model",
        str(folder),
        "--json",
        "--quiet",
    ]
    written = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    texts = [PROMPT + json.loads(line)["text"] for line in written.splitlines()]
    listed = (f"{i}. " + " / ".join(text.strip().split("\n")) for i, text in enumerate(texts, start=1))
    return (
        f'The first {N_SHOWN} texts of `minigpt {command}`, not chosen, lines joined by " / ":\n\n'
        + "\n\n".join(listed)
    )


def update(folder: Path, corpus: Path, against: Path | None, recipe_against: dict[str, float]) -> None:
    """Puts figures and texts into the model's card."""
    put(section(folder, corpus, against, recipe_against), folder / "README.md", "stories")
    put(samples(folder), folder / "README.md", "samples")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of train.txt and val.txt")
    parser.add_argument(
        "--model", type=Path, default=Path("weights"), help="whose stories (default: weights)"
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="another model with the same vocabulary")
    parser.add_argument(
        "--recipe-against", type=parsed, default=RECIPE, metavar="FLAGS", help="how that one is sampled"
    )
    parser.add_argument("--update", action="store_true", help="put figures and texts into the model's card")
    args = parser.parse_args()
    if args.update:
        update(args.model, args.corpus, args.against, args.recipe_against)
    else:
        print(section(args.model, args.corpus, args.against, args.recipe_against))


if __name__ == "__main__":
    main()
