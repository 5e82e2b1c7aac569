"""The flags of `minigpt generate`, and its help."""

from __future__ import annotations

import argparse
from typing import Any

from minigpt.cli import (
    BAD_FLAGS,
    DONE,
    FAILED,
    INTERRUPTED,
    NO_MODEL,
    OUT_OF_MEMORY,
    TOO_LONG,
)
from minigpt.cli.parser import Parser
from minigpt.cli.text_flags import add_decoding_flags, add_file_flag, add_special_flag, text_parser
from minigpt.jobs.flags import add_job_flags
from minigpt.sampler.events import OVERFLOWS

EXITS = (DONE, FAILED, BAD_FLAGS, NO_MODEL, TOO_LONG, OUT_OF_MEMORY, INTERRUPTED)
ABOUT = """Generate text with GPT-2.

The text goes to stdout, everything else to stderr. Several texts are separated by a line "---".
The default model is bundled and writes fairy tales; --model gpt2 downloads OpenAI's.
"""
MANY = """A text's random numbers follow from --seed and its prompt's id: the one given, or the file's name, a colon and
the number of its line. Workers, shards, restarts and the order of arrival change no token (--dtype bfloat16 may)."""
EPILOG = """strategies:
{strategies}

examples:
  minigpt generate "Once upon a time" --top-p 0.9 --echo           sampling; the prompt is shown before the text
  minigpt generate "Once upon a time" --top-p 0.9 --seed 7         the same text every time
  minigpt generate "Once upon a time"                              greedy: always the most likely token
  minigpt generate "Once upon a time" --num-beams 5 --show-beams   beam search, shown live
  minigpt generate "Once upon a time" --num-beams 5 --lattice beams.svg      ... and as a picture
  minigpt generate "Once upon a time" --explain --top 5            the probability of each token, and the alternatives
  minigpt generate -p "The king" -p "The queen" --json             two prompts, as JSON
  minigpt generate -f story.txt --stop "The End"                   continue a file up to these words
  cat story.txt | minigpt generate                                 ... or stdin
  minigpt generate --prompts many.jsonl --output texts.txt         thousands of prompts; resumes after Ctrl-C
  minigpt generate --prompts s3://bucket/in --out s3://bucket/out --ray auto  millions, on a Ray cluster: docs/scale.md
  minigpt generate -i --top-p 0.9                                  interactive: write a text in turns
"""


def parser() -> Parser:
    """The parser of the command's flags."""
    parser, groups = text_parser(
        "generate", EXITS, EPILOG, usage="minigpt generate [PROMPT] [options]", about=ABOUT
    )
    _add_input_flags(groups["input"])
    _add_length_flags(groups["length"])
    add_decoding_flags(groups)
    _add_beam_flags(groups["beams"])
    _add_output_flags(parser.add_argument_group("output"))
    add_job_flags(parser.add_argument_group("many prompts", MANY), "as the input; jsonl for .txt")
    return parser


def _add_input_flags(group: Any) -> None:
    group.add_argument(
        "-p", "--prompt", action="append", default=[], metavar="TEXT", help="a prompt; repeat it for a batch"
    )
    add_file_flag(group)
    group.add_argument(
        "--prompts", metavar="PATH", dest="prompts_file",
        help='many prompts: a .jsonl file of objects with "prompt" and perhaps "id", "max_new_tokens", "seed", or a .txt '
        "file, one a line; texts come as they are finished, each with its id, and do not depend on the others; with "
        "--output the same command goes on after it was stopped; with --out also .parquet, a folder, a glob or a URL",
    )  # fmt: skip
    add_special_flag(group)
    group.add_argument(
        "--heal", action="store_true",
        help="token healing, for prompts that end in a space or within a word: their last tokens are chosen anew, together "
        "with what follows",
    )  # fmt: skip
    group.add_argument(
        "-i", "--interactive", action="store_true", help="interactive mode (!help lists its commands)"
    )


def _add_length_flags(group: Any) -> None:
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help="maximum number of new tokens (default: 50, or what fits the context length if that is less)",
    )  # fmt: skip
    group.add_argument(
        "--overflow", choices=OVERFLOWS,
        help="when prompt and new tokens exceed the context length: error (the default), truncate the start of the "
        "prompt, stop at the limit, or slide the window (the default with -i)",
    )  # fmt: skip
    group.add_argument(
        "--stride", type=int, metavar="N",
        help="with --overflow slide: tokens by which the window shifts; 1 keeps the most context and recomputes "
        "the KV cache for every token (default: half the context length)",
    )  # fmt: skip


def _add_beam_flags(group: Any) -> None:
    group.add_argument(
        "--show-beams", action="store_true",
        help="show the beams live on stderr, each with its score: the sum of its tokens' log-probabilities, divided by "
        "their number to the power of --length-penalty",
    )  # fmt: skip
    group.add_argument(
        "--lattice", metavar="FILE",
        help="save the beam-search trace (tokens, parents, scores): FILE.json, or FILE.svg for a picture",
    )  # fmt: skip
    group.add_argument(
        "--replay", metavar="FILE",
        help="generate nothing: show a saved trace step by step, or draw it with --lattice FILE.svg",
    )  # fmt: skip


def _add_output_flags(group: Any) -> None:
    group.add_argument(
        "--stream", action=argparse.BooleanOptionalAction,
        help="show a single text as it is generated (default: on a terminal)",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="one JSON object a line for each text")
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: also the top N tokens at each step"
    )
    group.add_argument(
        "--explain", action="store_true",
        help="probability, rank and entropy of each token before and after filtering: a table on stderr, or in the JSON",
    )  # fmt: skip
    group.add_argument(
        "--top", type=int, metavar="N", help="with --explain: also the N most likely tokens at each step"
    )
    group.add_argument("--echo", action="store_true", help="print the prompt before its text")
    group.add_argument("--quiet", action="store_true", help="errors only on stderr")
    group.add_argument("-o", "--output", metavar="FILE", help="write to FILE (atomically) instead of stdout")
