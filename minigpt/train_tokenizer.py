"""Trains a byte-level BPE on text: `minigpt train-tokenizer book.txt --vocab-size 4096 --out tok`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from minigpt import cli
from minigpt.atomic import named_folder, whole_folder
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, Failure
from minigpt.cli.outputs import check_folder
from minigpt.cli.parser import Parser
from minigpt.data.documents import documents, fingerprint
from minigpt.json_files import counted
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.files import END_OF_TEXT

FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")  # what the command writes
FEWEST, MOST = 257, 1_000_000  # tokens; the library takes memory for all of them at once
SAMPLE = 1_000_000  # characters on which the closing line measures

ABOUT = """Train a GPT-2-style tokenizer, a byte-level BPE, on your own text.

It begins with <|endoftext|>, which is id 0, and the 256 bytes, and merges the most frequent adjacent pair of
tokens into a new one until there are --vocab-size tokens. So any text can be encoded, and frequent strings of
yours take few tokens. In a text file, documents are separated by lines <|endoftext|>; a .jsonl file has one JSON
object a line; of a folder, all .txt and .jsonl files are read.
"""

EXAMPLES = """examples:
  minigpt train-tokenizer tales.txt --vocab-size 4096 --out tok       one file
  minigpt train-tokenizer books/ --vocab-size 16384 --out tok         a folder of .txt and .jsonl files
  minigpt train-tokenizer web.jsonl --text-field content --vocab-size 8192 --out tok

then:
  minigpt train --data tales.txt --tokenizer tok --out tales
  python -c "import minigpt; print(minigpt.Tokenizer.load('tok').encode('Once upon a time'))"

choosing a vocabulary size: 1000 to 8000 for a small model and some megabytes of text; GPT-2 has 50257.
The same text gives the same files; transformers reads them, too.
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("train_tokenizer", parser, train_tokenizer, argv)


def train_tokenizer(args: argparse.Namespace) -> int:
    """The whole command: check the flags, learn the merges, save the tokenizer."""
    check_numbers(args)
    out = named_folder("--out", args.out)
    check_out(out, args.text)
    try:
        tokenizer, bytes_per_token = learn(args)
    except (OSError, ValueError) as error:  # the text cannot be read
        raise Failure(BAD_FLAGS, error) from error
    save(tokenizer, out)
    if not args.quiet:
        note_result(args, tokenizer.vocab_size, bytes_per_token)
    return DONE


def parser() -> Parser:
    usage = "minigpt train-tokenizer FILE_OR_DIR... --vocab-size N --out DIR [options]"
    exits = (DONE, FAILED, BAD_FLAGS, INTERRUPTED)
    parser = Parser("train_tokenizer", exits, EXAMPLES, usage=usage, description=ABOUT)
    parser.add_argument(
        "text", nargs="+", type=Path, metavar="FILE_OR_DIR", help="training text, UTF-8: files and folders"
    )
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="N",
        help=f"vocabulary size, at least {FEWEST}: {END_OF_TEXT}, the 256 bytes, and the merges",
    )  # fmt: skip
    parser.add_argument(
        "--out", "-o", required=True, metavar="DIR", help="folder to write the tokenizer into"
    )
    parser.add_argument(
        "--min-frequency", type=int, default=2, metavar="N",
        help="minimum pair frequency (default: 2)",
    )  # fmt: skip
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field of a .jsonl object that holds the text (default: text)",
    )
    parser.add_argument(
        "--separator", metavar="TEXT",
        help=f"text that separates documents of .txt files, wherever it stands (default: lines {END_OF_TEXT})",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="errors only on stderr")
    return parser


def check_numbers(args: argparse.Namespace) -> None:
    if not FEWEST <= args.vocab_size <= MOST:
        raise Failure(
            BAD_FLAGS,
            f"--vocab-size must be from {FEWEST}, which is {END_OF_TEXT} and the 256 bytes, to {MOST},"
            f" got {args.vocab_size}",
        )
    if args.min_frequency < 1:
        raise Failure(BAD_FLAGS, f"--min-frequency must be at least 1, got {args.min_frequency}")


def save(tokenizer: Tokenizer, out: Path) -> None:
    """Writes the tokenizer's files; a new folder gets its name when it is whole, even if the process is killed."""
    if out.exists():
        tokenizer.save_pretrained(out)
        return
    with whole_folder(out) as aside:
        tokenizer.save_pretrained(aside)


def check_out(out: Path, text: Sequence[Path]) -> None:
    """Refuses a folder that cannot be written into, or should not be."""
    for name in FILES:
        if (out / name).exists():
            raise Failure(BAD_FLAGS, f"--out {out} holds a tokenizer already ({name}): name another folder")
    check_folder("--out", out)
    for folder in text:
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            raise Failure(
                BAD_FLAGS,
                f"--out {out} lies in {folder}, so merges.txt would be text to train on next time: "
                "name a folder elsewhere",
            )


def learn(args: argparse.Namespace) -> tuple[Tokenizer, float]:
    """The tokenizer, and its bytes per token at the beginning of the text."""
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError:
        raise Failure(
            BAD_FLAGS, "training needs the package tokenizers: pip install 'minigpt[train]'"
        ) from None
    settings = {"trained_on": {"sha256": fingerprint(args.text)}}
    learner = ByteLevelBPETokenizer()
    interruptible(
        learner.train_from_iterator,
        documents(args.text, args.text_field, args.separator),
        vocab_size=args.vocab_size,
        min_frequency=min(args.min_frequency, sys.maxsize),
        special_tokens=[END_OF_TEXT],
        show_progress=sys.stderr.isatty() and not args.quiet,
    )
    learned = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(
        learned["vocab"],
        [(left, right) for left, right in learned["merges"]],
        settings=settings,
    )
    sample = list(beginning(documents(args.text, args.text_field, args.separator), SAMPLE))
    n_tokens = sum(len(tokenizer.encode(text)) for text in sample)
    return tokenizer, sum(len(text.encode()) for text in sample) / n_tokens


def interruptible(learn: Callable[..., object], texts: Iterable[str], **how: Any) -> None:
    """Calls `learn(texts, **how)` such that Ctrl-C ends it at the next text.

    The library reads the texts in threads of its own, while the thread that called it does not handle SIGINT.
    """
    interrupted = False

    def until_interrupted() -> Iterator[str]:
        for text in texts:
            if interrupted:
                raise KeyboardInterrupt
            yield text

    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            pool.submit(learn, until_interrupted(), **how).result()
        except KeyboardInterrupt:
            interrupted = True
            raise


def beginning(texts: Iterable[str], n_characters: int) -> Iterator[str]:
    """The first texts, the last of them cut, so that they have so many characters in all.

    >>> list(beginning(["once", "upon", "a time"], 6))
    ['once', 'up']
    """
    for text in texts:
        yield text[:n_characters]
        n_characters -= len(text)
        if n_characters <= 0:
            return


def note_result(args: argparse.Namespace, n_tokens: int, bytes_per_token: float) -> None:
    if n_tokens < args.vocab_size:
        cli.note(
            "train_tokenizer",
            f"only {n_tokens} tokens, not {args.vocab_size}: no further pair occurs"
            f" {counted(args.min_frequency, 'times')}; give more text, or lower --min-frequency or --vocab-size",
        )
    cli.note(
        "train_tokenizer",
        f"{n_tokens} tokens, {bytes_per_token:.2f} bytes per token at the text's beginning, saved in {args.out}",
    )


if __name__ == "__main__":
    sys.exit(main())
