"""Scoring texts on the command line: what is read, and the metrics as a table or as JSON."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt import cli, evaluation
from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.inputs import STDIN, read_bytes
from minigpt.cli.progress import Progress
from minigpt.cli.table import json_line, number, table
from minigpt.cli.terminal import write_out
from minigpt.data.documents import documents
from minigpt.evaluation.perplexity import Document, Score, bare_document, document
from minigpt.evaluation.scoring_windows import default_stride
from minigpt.hub import BUNDLED

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer


@dataclass
class Source:
    """A file, stdin ("-") or --text (no path), and the log-probabilities that a model gives it."""

    path: str | None
    documents: list[Document]
    logprobs: list[Tensor] = field(default_factory=list)  # of each document's predicted tokens

    @property
    def scores(self) -> list[Score]:
        """One for each document."""
        return [one.score(logprobs) for one, logprobs in zip(self.documents, self.logprobs, strict=True)]

    @property
    def score(self) -> Score:
        """Of all documents together."""
        return sum(self.scores, Score(0.0, 0, 0, 0))


def score_texts(args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer) -> None:
    """Reads the texts, scores them, and shows their metrics.

    Raises:
        ValueError: a text cannot be used.
    """
    context_length, stride = context_and_stride(args, model)
    sources = list(_read(args, tokenizer))
    n_tokens = sum(len(one.tokens) - 1 for source in sources for one in source.documents)
    with Progress(n_tokens) as progress:
        for source in sources:
            source.logprobs.extend(
                evaluation.document_logprobs(
                    model, source.documents, stride, args.batch_size, context_length, progress.advance
                )
            )
    if args.json:
        records = _token_records if args.per_token else _file_records
        lines = (line for source in sources for line in records(source, tokenizer))
        given = {"model": args.model or BUNDLED, "stride": stride}
        write_out("".join(json_line(given | line) for line in lines))
    else:
        write_out(table(_rows(sources)))
    if not args.quiet:
        cli.note("score", f"{progress.summary()}, context length {context_length}, stride {stride}")


def context_and_stride(args: argparse.Namespace, model: GPT2) -> tuple[int, int]:
    """The tokens that a window reads, and those by which windows move.

    Raises:
        Failure: one is too large for the model.
    """
    longest = model.config.n_positions
    if args.context is not None and args.context > longest:
        raise Failure(BAD_FLAGS, f"--context {args.context}: the model's context length is {longest}")
    context_length = longest if args.context is None else int(args.context)
    stride = default_stride(context_length) if args.stride is None else int(args.stride)
    if stride > context_length:
        raise Failure(
            BAD_FLAGS, f"--stride must be from 1 to the context length of {context_length}, got {stride}"
        )
    return context_length, stride


def _read(args: argparse.Namespace, tokenizer: Tokenizer) -> Iterator[Source]:
    """All texts as tokens, before anything is computed, so that a mistake in the last one costs no wait."""
    encode = bare_document if args.no_end_tokens else document

    def source(path: str | None, texts: Iterator[str] | Sequence[str]) -> Source:
        try:
            return Source(path, [encode(text, tokenizer) for text in texts])
        except ValueError as error:
            name = {None: "--text", STDIN: "stdin"}.get(path, path)
            prefix = "" if str(name) in str(error) else f"{name}: "
            raise Failure(BAD_FLAGS, f"{prefix}{error}") from error

    for path in args.files:
        yield source(
            path,
            _from_stdin(args) if path == STDIN else documents([Path(path)], args.text_field, args.separator),
        )
    if args.text is not None:
        yield source(None, [args.text])


def _from_stdin(args: argparse.Namespace) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "stdin")
        file.write_bytes(read_bytes(STDIN))
        try:
            yield from documents([file], args.text_field, args.separator)
        except ValueError as error:
            raise ValueError(str(error).replace(str(file), "stdin")) from error


def metrics(score: Score) -> dict[str, Any]:
    return {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "word_perplexity": score.word_perplexity,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.n_tokens,
        "bytes": score.n_bytes,
        "words": score.n_words,
    }


def _file_records(source: Source, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    yield {"path": source.path, **metrics(source.score), "documents": len(source.documents)}


def _token_records(source: Source, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """One for each document, with its predicted tokens and their log-probabilities in nats."""
    scored = zip(source.documents, source.scores, source.logprobs, strict=True)
    for i, (one, score, logprobs) in enumerate(scored):
        predicted = list(one.tokens[1:])
        yield {
            "path": source.path,
            "document": i,
            **metrics(score),
            "tokens": predicted,  # in place of their number
            "token_strings": [tokenizer.token_string(token) for token in predicted],
            "logprobs": [number(logprob) for logprob in logprobs.tolist()],
        }


def _rows(sources: list[Source]) -> Iterator[list[str]]:
    """The table: a heading, a row a file, and their total if there are several."""
    yield ["", "loss", "perplexity", "word perplexity", "bits/byte", "tokens", "bytes", "words", "documents"]
    for source in sources:
        name = "--text" if source.path is None else source.path
        yield _row(name, source.score, len(source.documents))
    if len(sources) > 1:
        total = sum((source.score for source in sources), Score(0.0, 0, 0, 0))
        yield _row("total", total, sum(len(source.documents) for source in sources))


def _row(name: str, score: Score, n_documents: int) -> list[str]:
    perplexities = (f"{value:,.2f}" for value in (score.perplexity, score.word_perplexity))
    counts = (f"{count:,}" for count in (score.n_tokens, score.n_bytes, score.n_words, n_documents))
    return [name, f"{score.loss:.4f}", *perplexities, f"{score.bits_per_byte:.4f}", *counts]
