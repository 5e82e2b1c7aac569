"""Scoring many documents on the command line: a row of metrics for each, in shards."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minigpt import evaluation
from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.inputs import STDIN
from minigpt.cli.model_flags import ModelFlags
from minigpt.cli.table import number
from minigpt.evaluation.perplexity import Document, bare_document, document
from minigpt.jobs.blocks import Source
from minigpt.jobs.driver import Task, run_job
from minigpt.jobs.flags import JobFlags
from minigpt.jobs.job import Work
from minigpt.jobs.output import Outcome
from minigpt.jobs.rows import Row
from minigpt.options import flag_of
from minigpt.score.texts import context_and_stride, metrics

KINDS = {
    "id": str, "loss": float, "perplexity": float, "word_perplexity": float, "bits_per_byte": float, "tokens": int,
    "bytes": int, "words": int, "model": str, "stride": int,
}  # fmt: skip
UNUSED = ("text", "last_word", "json", "per_token")  # flags that have no meaning beside --out


def score_many(args: argparse.Namespace, model: ModelFlags, flags: JobFlags) -> int:
    """Scores every document of a file, a folder or a glob into shards; the exit code.

    Raises:
        Failure: the flags do not go together, or the input cannot be used.
    """
    for name in UNUSED:
        if getattr(args, name):
            raise Failure(BAD_FLAGS, f"{flag_of(name)} cannot be used with --out: leave one of them out")
    if len(args.files) != 1 or args.files[0] == STDIN:
        raise Failure(
            BAD_FLAGS, "--out needs one FILE: a .jsonl, .parquet or .txt file, a folder of them, or a glob"
        )
    names = ("text_field", "no_end_tokens", "context", "stride", "dtype", "quantize")
    facts = {name: getattr(args, name) for name in names}
    task = Task(
        "score",
        "documents",
        model,
        flags,
        facts,
        Scoring(args, model),
        KINDS,
        format="parquet",
        quiet=args.quiet,
    )
    field = args.text_field
    return run_job(
        task,
        lambda: Source.of(
            args.files[0], text=field, reads=(field, "id"), drops=frozenset({field, "id"}), documents=True
        ),
    )


@dataclass(frozen=True)
class Scoring:
    """Scores documents, once it has loaded the model."""

    args: argparse.Namespace
    model: ModelFlags

    def __call__(self) -> Work:
        model, tokenizer = self.model.load()
        context_length, stride = context_and_stride(self.args, model)
        encode = bare_document if self.args.no_end_tokens else document

        def work(rows: Sequence[Row], rows_before: int) -> Iterator[Outcome]:
            readable: list[tuple[int, str, Document]] = []
            for position, row in enumerate(rows):
                given = row.values.get("id")
                name = row.id if given is None else str(given)
                try:
                    readable.append((position, name, encode(self._text(row), tokenizer)))
                except ValueError as error:
                    yield Outcome(position, name, reason=str(error))
            documents = [one for _, _, one in readable]
            every = evaluation.document_logprobs(
                model, documents, stride, self.args.batch_size, context_length
            )
            for (position, name, one), logprobs in zip(readable, every, strict=True):
                score = one.score(logprobs)
                measured = {metric: number(value) for metric, value in metrics(score).items()}
                record = {"id": name, **measured, "model": self.model.name, "stride": stride}
                yield Outcome(position, name, [record], tokens=score.n_tokens)

        return work

    def _text(self, row: Row) -> str:
        """The text of a row.

        Raises:
            ValueError: there is none.
        """
        text = row.values.get(self.args.text_field)
        if row.reason or text is None:
            raise ValueError(row.reason or f"it lacks the field {self.args.text_field}")
        if not isinstance(text, str):
            raise ValueError(f"{self.args.text_field} must be a text, got {text!r:.60}")
        return text.strip("\r\n")
