"""LAMBADA on the command line: how often a model predicts the last word of a passage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt import cli, evaluation
from minigpt.cli.progress import Progress
from minigpt.cli.table import json_line, table
from minigpt.cli.terminal import write_out
from minigpt.data.documents import documents
from minigpt.hub import BUNDLED

if TYPE_CHECKING:
    from minigpt.evaluation.lambada import LastWords
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer


def score_last_words(args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer) -> None:
    """Predicts the last words, and shows their accuracy.

    Raises:
        ValueError: the file cannot be used.
    """
    context_length = model.config.n_positions
    examples = [
        evaluation.last_word_example(text, tokenizer)
        for text in documents([Path(args.last_word)], args.text_field)
    ]
    n_tokens = sum(len(one.window(context_length).tokens) for one in examples)
    with Progress(n_tokens) as progress:
        result = evaluation.last_words(model, examples, args.batch_size, progress.advance)
    if args.json:
        record = {"model": args.model or BUNDLED, "path": args.last_word, **metrics(result)}
        write_out(json_line(record))
    else:
        values = [
            f"{result.accuracy:.2%}", f"{result.perplexity:,.2f}", f"{result.n_examples:,}", f"{result.n_cut:,}",
        ]  # fmt: skip
        write_out(table([["", *metrics(result)], [args.last_word, *values]]))
    if not args.quiet:
        cli.note("score", f"{progress.summary()}, context length {context_length}")


def metrics(result: LastWords) -> dict[str, Any]:
    """What the JSON says of a file."""
    return {
        "accuracy": result.accuracy,
        "perplexity": result.perplexity,
        "examples": result.n_examples,
        "cut": result.n_cut,
    }
