"""Detects the watermark of a text: `minigpt detect-watermark story.txt`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from minigpt import cli
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, Failure
from minigpt.cli.inputs import STDIN, check_stdin_once, read_text, stdin_is_piped
from minigpt.cli.model_flags import add_source_flags
from minigpt.cli.parser import Parser
from minigpt.cli.table import json_line, table
from minigpt.cli.terminal import write_out
from minigpt.config import GPT2Config
from minigpt.evaluation.watermark import Detection, WatermarkDetector
from minigpt.hub import BUNDLED, tokenizer_files
from minigpt.sampler.processors.watermark import WATERMARK_KEY, WATERMARK_RATIO
from minigpt.tokenizer import Tokenizer

ENOUGH = 4.0  # the z above which a text counts as watermarked; by chance 1 in 2,400 (10 tokens) to 30,000 (many) is

ABOUT = """Detect whether a text was generated with `minigpt generate --watermark`.

A keyed hash of the previous token selects the green list, a fraction of all tokens, which a watermark
makes more likely. Here green tokens are counted; the model's tokenizer is enough for that. Model, ratio and
key must be those used for generation. The exit code is 0 regardless of the result.
"""

EPILOG = """metrics:
  z          standard deviations above the number of green tokens expected by chance; watermarked above 4
  p-value    probability of so many green tokens or more by chance
  green      fraction of green tokens
  tokens     tokens counted: all but the first, repeated bigrams once

examples:
  minigpt generate --top-p 0.9 --watermark --max-new-tokens 200 > story.txt
  minigpt detect-watermark story.txt                            a table
  minigpt detect-watermark *.txt --watermark-key 7 --json       several texts, another key, as JSON
  cat story.txt | minigpt detect-watermark                      stdin
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("detect_watermark", parser, detect, argv)


def detect(args: argparse.Namespace) -> int:
    """The whole command: read the texts and the tokenizer, count, show the result."""
    check_flags(args)
    files = args.files or [STDIN]
    texts = [without_prompt(read_text(path), args.prompt, path) for path in files]
    tokenizer, detector = load(args)
    detections = [detect_in(path, text, tokenizer, detector) for path, text in zip(files, texts, strict=True)]
    if args.json:
        records = zip(files, map(metrics, detections), strict=True)
        lines = ({"model": args.model or BUNDLED, "path": path, **values} for path, values in records)
        write_out("".join(map(json_line, lines)))
    else:
        write_out(table(rows(files, detections)))
    return DONE


def parser() -> Parser:
    usage = "minigpt detect-watermark [FILE...] [options]"
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, INTERRUPTED)
    parser = Parser("detect_watermark", exits, EPILOG, usage=usage, description=ABOUT)
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="UTF-8 texts; - reads stdin, and so does a pipe without FILE"
    )
    add_source_flags(parser.add_argument_group("model"))
    group = parser.add_argument_group("watermark")
    group.add_argument(
        "--watermark-ratio", type=float, default=WATERMARK_RATIO, metavar="SHARE",
        help=f"green-list fraction gamma (default: {WATERMARK_RATIO})",
    )  # fmt: skip
    group.add_argument(
        "--watermark-key", type=int, default=WATERMARK_KEY, metavar="N",
        help=f"secret key (default: {WATERMARK_KEY})",
    )  # fmt: skip
    group.add_argument(
        "--prompt", metavar="TEXT",
        help="the prompt, where the texts begin with it (generate --echo): it is not watermarked, and is left out",
    )  # fmt: skip
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object a line for each file")
    group.add_argument("--quiet", action="store_true", help="errors only on stderr")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Refuses numbers that no watermark has, and stdin named twice."""
    if not 0 < args.watermark_ratio < 1:
        raise Failure(BAD_FLAGS, f"--watermark-ratio must be above 0 and below 1, got {args.watermark_ratio}")
    if args.watermark_key < 1:
        raise Failure(BAD_FLAGS, f"--watermark-key must be at least 1, got {args.watermark_key}")
    if not args.files and not stdin_is_piped():
        raise Failure(BAD_FLAGS, "no input file: name one, or - for stdin")
    check_stdin_once(args.files)


def without_prompt(text: str, prompt: str | None, path: str) -> str:
    """The part of a text that a model generated.

    Raises:
        Failure: the text does not begin with the prompt.
    """
    if prompt is not None and not text.startswith(prompt):
        raise Failure(BAD_FLAGS, f"{path} does not begin with --prompt {prompt!r:.40}: leave it out")
    return text.removeprefix(prompt or "")


def load(args: argparse.Namespace) -> tuple[Tokenizer, WatermarkDetector]:
    """The model's tokenizer, and a detector for as many tokens as the model chooses from."""
    try:
        folder = tokenizer_files(args.model, revision=args.revision, offline=args.offline)
        tokenizer = Tokenizer.load(folder)
        # The model's vocabulary may be larger than the tokenizer's, and the green list is a share of all of it.
        vocab_size = GPT2Config.load(folder).vocab_size
    except (OSError, ValueError) as error:
        raise Failure(NO_MODEL, error) from error
    return tokenizer, WatermarkDetector(vocab_size, args.watermark_ratio, args.watermark_key)


def detect_in(path: str, text: str, tokenizer: Tokenizer, detector: WatermarkDetector) -> Detection:
    try:
        return detector(tokenizer.encode(text))
    except ValueError as error:  # a byte that the vocabulary lacks
        raise Failure(BAD_FLAGS, f"{path}: {error}") from error


def watermarked(detection: Detection) -> bool | None:
    """The verdict; None if the text is too short for one.

    Long enough is a text in which a strong watermark would be detected: one that makes the share of green tokens
    half-way from the ratio to 1. With the default ratio that takes 22 tokens.
    """
    if detection.z > ENOUGH:
        return True
    fewest = 4 * ENOUGH**2 * detection.ratio / (1 - detection.ratio)
    return None if detection.n_scored < fewest else False


VERDICTS = {True: "watermarked", False: "no watermark", None: "too short to judge"}


def metrics(detection: Detection) -> dict[str, Any]:
    return {
        "watermarked": watermarked(detection),
        "z": detection.z,
        "p_value": detection.p_value,
        "green_fraction": detection.green_fraction,
        "tokens": detection.n_scored,
    }


def rows(paths: Sequence[str], detections: Sequence[Detection]) -> Iterator[list[str]]:
    """The table: a heading, and a row a file."""
    yield ["", "z", "p-value", "green", "tokens", "verdict"]
    for path, one in zip(paths, detections, strict=True):
        shown = (("-" if math.isnan(value) else form.format(value)) for form, value in (
            ("{:.2f}", one.z), ("{:.2g}", one.p_value), ("{:.1%}", one.green_fraction)
        ))  # fmt: skip
        yield [path, *shown, f"{one.n_scored:,}", VERDICTS[watermarked(one)]]


if __name__ == "__main__":
    sys.exit(main())
