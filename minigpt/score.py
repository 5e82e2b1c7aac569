"""Measures how well a model predicts a text: `python -m minigpt.score story.txt`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt import cli
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, Failure
from minigpt.cli.inputs import check_stdin_once, read_bytes
from minigpt.cli.model_flags import ModelFlags, add_model_flags
from minigpt.cli.parser import Parser
from minigpt.cli.progress import Progress
from minigpt.cli.table import json_line, number, table
from minigpt.cli.terminal import write_out
from minigpt.data.documents import documents
from minigpt.evaluation.lambada import LastWords, example, last_words
from minigpt.evaluation.perplexity import (
    BATCH_SIZE,
    Document,
    Score,
    default_stride,
    document,
    document_logprobs,
)

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

ABOUT = """Measure how well a GPT-2 predicts a text: loss, perplexity, bits per byte.

A file holds documents, separated by lines <|endoftext|>; a .jsonl file, one object with a "text" a line; a
folder, such files. Each document is read alone: the end token first, then its text, then the end token again,
and all but the first are predicted. (A tokenizer without one: all but the text's first token.)

A text longer than the model's window is read in windows that move by --stride tokens; each scores only what
the one before it has not, with the rest as context. A small stride is exact and slow, the whole window fast.
"""

EPILOG = """figures:
  loss             nats per token
  perplexity       exp(loss); fair only between models with the same tokenizer, for longer tokens are harder ones
  word perplexity  the same per word between white space; fair between all models on the same text
  bits/byte        the compressed size of the text; fair between all models, and between texts of one language

examples:
  python -m minigpt.score story.txt                                 a table
  python -m minigpt.score story.txt --stride 1                      every token from as much context as there can be
  python -m minigpt.score a.txt b.txt --model gpt2 --json           two files under another model, as JSON
  python -m minigpt.score --text "Once upon a time" --json --per-token     which words were a surprise
  python -m minigpt.score --last-word lambada_test_en.jsonl         how often it knows a passage's last word
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("score", score, argv)


def score(argv: Sequence[str]) -> int:
    """The whole command: read the flags, load the model, read the texts, score them, show the figures."""
    args = parser().parse(argv)
    if args.quiet:
        warnings.simplefilter("ignore")
    wanted = ModelFlags.of(args)  # what is wrong is said before anything slow begins
    check_flags(args)
    model, tokenizer = wanted.load()
    try:
        (score_last_words if args.last_word else score_texts)(args, model, tokenizer)
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    return DONE


def parser() -> Parser:
    usage = "python -m minigpt.score [FILE...] [options]"
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, OUT_OF_MEMORY, INTERRUPTED)
    parser = Parser("score", exits, EPILOG, usage=usage, description=ABOUT)
    parser.add_argument("files", nargs="*", metavar="FILE", help="texts, UTF-8; - reads stdin")
    add_model_flags(parser)
    group = parser.add_argument_group("input")
    group.add_argument("--text", metavar="TEXT", help="a text to score, after the files if there are any")
    group.add_argument(
        "--text-field", default="text", metavar="NAME", help="where .jsonl objects have their text"
    )
    group.add_argument(
        "--last-word", metavar="FILE",
        help="instead: LAMBADA's test on this .jsonl file, whether the last word of each text is predicted",
    )  # fmt: skip
    group = parser.add_argument_group("windows")
    group.add_argument(
        "--stride", type=int, metavar="N", help="tokens by which windows move (default: half a window)"
    )
    group.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N",
        help=f"windows read at once; changes speed and memory, no figure (default: {BATCH_SIZE})",
    )  # fmt: skip
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a line for each file")
    group.add_argument(
        "--per-token", action="store_true",
        help="with --json: one object for each document, with tokens, token_strings and logprobs",
    )  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Refuses what no model or text can make sense of."""
    for flag, value in (("--stride", args.stride), ("--batch-size", args.batch_size)):
        if value is not None and value < 1:
            raise Failure(BAD_FLAGS, f"{flag} must be at least 1, got {value}")
    if args.last_word is not None:
        for flag in ("files", "text", "stride", "per_token"):
            if getattr(args, flag):
                name = "FILE" if flag == "files" else f"--{flag.replace('_', '-')}"
                raise Failure(BAD_FLAGS, f"--last-word is a test of its own: leave out {name}")
        if not args.last_word.endswith(".jsonl"):
            raise Failure(
                BAD_FLAGS, f"--last-word needs a .jsonl file, one text a line, got {args.last_word}"
            )
    elif not args.files and args.text is None:
        raise Failure(BAD_FLAGS, "nothing to score: name a file, - for stdin, or give --text")
    if args.per_token and not args.json:
        raise Failure(BAD_FLAGS, "--per-token goes into the JSON: add --json")
    check_stdin_once(args.files)
    for file in (*args.files, *filter(None, [args.last_word])):
        if file != "-" and not Path(file).exists():
            raise Failure(BAD_FLAGS, f"{file} does not exist: name a text file, or - for stdin")


# ------------------------------------------------------------------------------ texts


@dataclass
class Source:
    """A file, stdin ("-") or --text (no path), and what the model made of it."""

    path: str | None
    documents: list[Document]
    logprobs: list[Tensor] = field(default_factory=list)  # of each document's predicted tokens

    @property
    def scores(self) -> list[Score]:
        return [one.score(logprobs) for one, logprobs in zip(self.documents, self.logprobs, strict=True)]

    @property
    def score(self) -> Score:
        return sum(self.scores, Score(0.0, 0, 0, 0))


def score_texts(args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer) -> None:
    window = model.config.n_positions
    stride = default_stride(window) if args.stride is None else args.stride
    if stride > window:
        raise Failure(
            BAD_FLAGS, f"--stride must be from 1 to the model's context length of {window}, got {stride}"
        )
    sources = list(read(args, tokenizer))
    n_tokens = sum(len(one.tokens) - 1 for source in sources for one in source.documents)
    with Progress(n_tokens, args.quiet) as progress:
        for source in sources:
            found = document_logprobs(model, source.documents, stride, args.batch_size, progress.advance)
            source.logprobs.extend(found)
    if args.json:
        records = token_records if args.per_token else file_records
        lines = (line for source in sources for line in records(source, tokenizer))
        given = {"model": args.model or "bundled", "stride": stride}
        write_out("".join(json_line(given | line) for line in lines))
    else:
        write_out(table(rows(sources)))
    if not args.quiet:
        cli.note("score", f"{progress.summary()}, window {window}, stride {stride}")


def read(args: argparse.Namespace, tokenizer: Tokenizer) -> Iterator[Source]:
    """All texts as tokens, before anything is computed, so that a mistake in the last costs no wait."""
    for path in args.files:
        texts = from_stdin(args) if path == "-" else documents([Path(path)], args.text_field)
        yield Source(path, [_document(text, tokenizer, path) for text in texts])
    if args.text is not None:
        yield Source(None, [_document(args.text, tokenizer, "--text")])


def _document(text: str, tokenizer: Tokenizer, name: str) -> Document:
    try:
        return document(text, tokenizer)
    except ValueError as error:
        raise Failure(BAD_FLAGS, f"{name}: {error}") from error


def from_stdin(args: argparse.Namespace) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "stdin")
        file.write_bytes(read_bytes("-"))
        try:
            yield from documents([file], args.text_field)
        except ValueError as error:
            raise Failure(BAD_FLAGS, str(error).replace(str(file), "stdin")) from error


def figures(score: Score) -> dict[str, Any]:
    return {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "word_perplexity": score.word_perplexity,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.n_tokens,
        "bytes": score.n_bytes,
        "words": score.n_words,
    }


def file_records(source: Source, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    yield {"path": source.path, **figures(source.score), "documents": len(source.documents)}


def token_records(source: Source, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """One for each document, with its predicted tokens and their log-probabilities in nats."""
    scored = zip(source.documents, source.scores, source.logprobs, strict=True)
    for i, (one, score, logprobs) in enumerate(scored):
        predicted = list(one.tokens[1:])
        yield {
            "path": source.path,
            "document": i,
            **figures(score),
            "tokens": predicted,  # in place of their number
            "token_strings": [tokenizer.token_string(token) for token in predicted],
            "logprobs": [number(logprob) for logprob in logprobs.tolist()],
        }


def rows(sources: list[Source]) -> Iterator[list[str]]:
    """The table: a heading, a row a file, and their total if there are several."""
    yield ["", "loss", "perplexity", "word perplexity", "bits/byte", "tokens", "bytes", "words", "documents"]
    for source in sources:
        name = "--text" if source.path is None else source.path
        yield row(name, source.score, len(source.documents))
    if len(sources) > 1:
        total = sum((source.score for source in sources), Score(0.0, 0, 0, 0))
        yield row("total", total, sum(len(source.documents) for source in sources))


def row(name: str, score: Score, n_documents: int) -> list[str]:
    perplexities = (f"{value:,.2f}" for value in (score.perplexity, score.word_perplexity))
    counts = (f"{count:,}" for count in (score.n_tokens, score.n_bytes, score.n_words, n_documents))
    return [name, f"{score.loss:.4f}", *perplexities, f"{score.bits_per_byte:.4f}", *counts]


# ------------------------------------------------------------------------------ last words


def score_last_words(args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer) -> None:
    window = model.config.n_positions
    examples = [example(text, tokenizer) for text in documents([Path(args.last_word)], args.text_field)]
    n_tokens = sum(len(one.window(window).tokens) for one in examples)
    with Progress(n_tokens, args.quiet) as progress:
        found = last_words(model, examples, args.batch_size, progress.advance)
    if args.json:
        given = {"model": args.model or "bundled", "path": args.last_word}
        write_out(json_line(given | last_word_figures(found)))
    else:
        values = [
            f"{found.accuracy:.2%}",
            f"{found.perplexity:,.2f}",
            f"{found.n_examples:,}",
            f"{found.n_cut:,}",
        ]
        write_out(table([["", *last_word_figures(found)], [args.last_word, *values]]))
    if not args.quiet:
        cli.note("score", f"{progress.summary()}, window {window}")


def last_word_figures(found: LastWords) -> dict[str, Any]:
    return {
        "accuracy": found.accuracy,
        "perplexity": found.perplexity,
        "examples": found.n_examples,
        "cut": found.n_cut,
    }


if __name__ == "__main__":
    sys.exit(main())
