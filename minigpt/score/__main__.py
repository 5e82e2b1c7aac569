"""Measures how well a model predicts a text: `minigpt score story.txt`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minigpt import cli
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, Failure
from minigpt.cli.inputs import STDIN, check_stdin_once, stdin_is_piped
from minigpt.cli.model_flags import ModelFlags, add_model_flags
from minigpt.cli.parser import Parser
from minigpt.data.text import is_jsonl
from minigpt.evaluation.scoring_windows import BATCH_SIZE
from minigpt.jobs.flags import JobFlags, add_job_flags
from minigpt.options import check_count, flag_of
from minigpt.score.last_word import score_last_words
from minigpt.score.many import score_many
from minigpt.score.texts import score_texts

ABOUT = """Measure how well a GPT-2 predicts a text: loss, perplexity, bits per byte.

A file holds documents, separated by lines <|endoftext|>; a .jsonl file, one object with a "text" a line; a
folder, such files. Each document is scored independently between <|endoftext|> tokens: all tokens but the first of
these are predicted. With --no-end-tokens (or a tokenizer without such a token): all but the text's first token.

A text longer than the context length is read in windows that move by --stride tokens; each scores only tokens not
scored before, with the others as context. A small stride is exact and slow, the whole context length fast.
"""

EPILOG = """metrics (lower is better):
  loss             nats per token
  perplexity       exp(loss); comparable only across models with the same tokenizer
  word perplexity  per word between white space; comparable across models on the same text
  bits/byte        compressed size of the text; comparable across models, and texts of one language

Hugging Face's perplexity, exp(model(ids, labels=ids).loss), is `perplexity` with --no-end-tokens. Their recipe for
longer texts counts the last target as part of a window: --context 1023 --stride 512 has the windows of its max_length
1024, stride 512. In the mean, the recipe counts one token too few of each window after the first.

examples:
  minigpt score story.txt                                 a table
  minigpt score story.txt --stride 1                      every token with the maximum context
  minigpt score a.txt b.txt --model gpt2 --json           two files under another model, as JSON
  minigpt score --text "Once upon a time" --json --per-token     per-token log-probabilities
  minigpt score --last-word lambada_test_en.jsonl         LAMBADA last-word accuracy
  minigpt score corpus/ --out losses --ray                losses per document into Parquet, on all cores
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("score", parser, score, argv)


def score(args: argparse.Namespace) -> int:
    """The whole command: check the flags, load the model, score the texts."""
    wanted, job = ModelFlags.of(args), JobFlags.of(args)  # what is wrong is said before anything slow begins
    check_flags(args)
    if job.out is not None:
        return score_many(args, wanted, job)
    model, tokenizer = wanted.load()
    try:
        (score_last_words if args.last_word else score_texts)(args, model, tokenizer)
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    return DONE


def parser() -> Parser:
    usage = "minigpt score [FILE...] [options]"
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, OUT_OF_MEMORY, INTERRUPTED)
    parser = Parser("score", exits, EPILOG, usage=usage, description=ABOUT)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="texts, UTF-8; - reads stdin, and so does a pipe without FILE",
    )
    add_model_flags(parser)
    add_input_flags(parser.add_argument_group("input"))
    add_window_flags(parser.add_argument_group("windows"))
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a line for each file")
    group.add_argument(
        "--per-token", action="store_true",
        help="with --json: one object for each document, with tokens, token_strings and logprobs",
    )  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="errors only on stderr")
    add_job_flags(parser.add_argument_group("many documents"), "parquet")
    return parser


def add_input_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--text", metavar="TEXT", help="a text to score, after the files if there are any")
    group.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field of a .jsonl object that holds the text (default: text)",
    )
    group.add_argument(
        "--separator", metavar="TEXT",
        help="text that separates documents of a file, wherever it stands (default: lines <|endoftext|>)",
    )  # fmt: skip
    group.add_argument(
        "--last-word", metavar="FILE",
        help="LAMBADA instead: accuracy of the last word of each text in this .jsonl file",
    )  # fmt: skip
    group.add_argument(
        "--no-end-tokens", action="store_true", help="score texts without <|endoftext|> before and after them"
    )


def add_window_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--context", type=int, metavar="N", help="context length to use (default: the model's)"
    )
    group.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens by which windows move (default: half the context length)",
    )
    group.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, metavar="N",
        help=f"windows per batch; does not affect results (default: {BATCH_SIZE})",
    )  # fmt: skip


def check_flags(args: argparse.Namespace) -> None:
    """Refuses what is wrong whatever the model and the text are."""
    for name in ("context", "stride", "batch_size"):
        check_count(flag_of(name), getattr(args, name))
    if args.last_word is not None:
        for flag in ("files", "text", "separator", "context", "stride", "no_end_tokens", "per_token"):
            if getattr(args, flag):
                name = "FILE" if flag == "files" else flag_of(flag)
                raise Failure(BAD_FLAGS, f"--last-word does not use {name}: leave it out")
        if not is_jsonl(Path(args.last_word)):
            raise Failure(
                BAD_FLAGS, f"--last-word needs a .jsonl file, one text a line, got {args.last_word}"
            )
    elif not args.files and args.text is None:
        if args.out is not None or not stdin_is_piped():
            raise Failure(BAD_FLAGS, "no input: name a file, - for stdin, or give --text")
        args.files = [STDIN]
    if args.per_token and not args.json:
        raise Failure(BAD_FLAGS, "--per-token has no effect without --json: add it")
    check_stdin_once(args.files)
    files = [] if args.out is not None else args.files  # what a job reads may be a glob, or a URL
    for file in (*files, *filter(None, [args.last_word])):
        if file != STDIN and not Path(file).exists():
            raise Failure(BAD_FLAGS, f"{file} does not exist: name a text file, or - for stdin")


if __name__ == "__main__":
    sys.exit(main())
