"""What `generate` can be asked for on its command line, and which askings make no sense."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from minigpt.cli import (
    BAD_FLAGS,
    DONE,
    FAILED,
    INTERRUPTED,
    NO_MODEL,
    OUT_OF_MEMORY,
    TOO_LONG,
    Failure,
)
from minigpt.cli import fields as options
from minigpt.cli.inputs import STDIN, check_stdin_once
from minigpt.cli.model_flags import ModelFlags, add_model_flags
from minigpt.cli.outputs import check_file
from minigpt.cli.parser import Parser
from minigpt.sampler import Beam
from minigpt.sampler.events import OVERFLOWS
from minigpt.sampler.registry import find, name_of, names
from minigpt.sampler.strategy import Strategy

ABOUT = """Continue a text with a GPT-2.

The text goes to stdout, everything else to stderr. Several texts are separated by a line "---".
Without a model the bundled one writes, a small teller of fairy tales; --model gpt2 fetches the real one.
"""

EPILOG = """strategies:
{strategies}

examples:
  python -m minigpt.generate "Once upon a time" --top-p 0.9 --echo    sampling, the prompt shown before the text
  python -m minigpt.generate "Once upon a time" --top-p 0.9 --seed 7  the same text every time
  python -m minigpt.generate "Once upon a time"                       greedy: always the likeliest word
  python -m minigpt.generate "Once upon a time" --num-beams 5         beam search
  python -m minigpt.generate "Once upon a time" --num-beams 5 --show-beams --lattice beams.json      watch them
  python -m minigpt.generate -p "The king" -p "The queen" --json      two prompts, as JSON
  python -m minigpt.generate -f story.txt --stop "The End"            continue a file up to these words
  python -m minigpt.generate -i --top-p 0.9                           write on together, line by line
"""


def parser() -> Parser:
    usage = "python -m minigpt.generate [PROMPT] [options]"
    strategies = "\n".join(f"  {name:21}{_first_line(find(name))}" for name in names())
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, TOO_LONG, OUT_OF_MEMORY, INTERRUPTED)
    parser = Parser("generate", exits, EPILOG.format(strategies=strategies), usage=usage, description=ABOUT)
    parser.add_argument("text", nargs="?", metavar="PROMPT", help="the text to continue; - reads stdin")
    add_model_flags(parser)
    groups = {name: parser.add_argument_group(name) for name in ("input", "length", "strategy")}
    _add_input_flags(groups["input"])
    groups["length"].add_argument(
        "--max-new-tokens", type=int, default=50, metavar="N", help="the most tokens to write (default: 50)"
    )
    groups["length"].add_argument(
        "--overflow", choices=OVERFLOWS,
        help="when prompt and text exceed the model's window: refuse (the default), drop the prompt's beginning,"
        " end at its edge, or slide it along (the default of -i)",
    )  # fmt: skip
    groups["length"].add_argument(
        "--stride", type=int, metavar="N",
        help="with --overflow slide: move by N tokens at once; 1 keeps the most context and reads all of it"
        " again for every token (default: half the window)",
    )  # fmt: skip
    groups["strategy"].add_argument(
        "--strategy", choices=names(), metavar="NAME",
        help="one of those listed at the end; unless given, the flags below decide: those of sampling imply sample, "
        "--num-beams beam, both beam-sample, --penalty-alpha contrastive, and so on; none implies greedy",
    )  # fmt: skip
    for name in ("sampling", "beams", "control"):
        groups[name] = parser.add_argument_group(name)
    options.add_flags(groups)
    groups["control"].add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    _add_beam_flags(groups["beams"])
    _add_output_flags(parser.add_argument_group("output"))
    return parser


def _first_line(strategy: type[Strategy]) -> str:
    return (strategy.__doc__ or "").partition("\n")[0]


def _add_input_flags(group: Any) -> None:
    group.add_argument(
        "-p", "--prompt", action="append", default=[], metavar="TEXT", help="repeat for a batch"
    )
    group.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="one prompt, UTF-8; - reads stdin; a newline at its very end is left out",
    )
    group.add_argument(
        "--allow-special",
        action="store_true",
        help="read <|endoftext|> in a prompt as the token, not as text",
    )
    group.add_argument(
        "-i", "--interactive", action="store_true", help="type, see the text go on, type again; !help there"
    )


def _add_beam_flags(group: Any) -> None:
    group.add_argument("--show-beams", action="store_true", help="draw all beams on stderr while they grow")
    group.add_argument(
        "--lattice", metavar="FILE", help="save all that the beams did: tokens, parents and scores, as JSON"
    )
    group.add_argument("--replay", metavar="FILE", help="write nothing; draw the beams of a saved --lattice")


def _add_output_flags(group: Any) -> None:
    group.add_argument(
        "--stream", action=argparse.BooleanOptionalAction,
        help="show one text as it is written (default: on a terminal)",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="one JSON object a line for each text")
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: also the N likeliest at each step"
    )
    group.add_argument(
        "--explain", action="store_true",
        help="how likely each token was, and what the options made of that: into the JSON, or a table on stderr",
    )  # fmt: skip
    group.add_argument("--echo", action="store_true", help="print the prompt before its text")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    group.add_argument(
        "--output", metavar="FILE", help="write to FILE, whole or not at all, and not to stdout"
    )


def check(args: argparse.Namespace) -> type[Strategy]:
    """The strategy that the flags ask for, if they make sense; settles what was left open.

    What takes longest to find is looked for last, and torch is needed for the last step only.
    """
    chosen = options.chosen_strategy(args)
    ModelFlags.of(args)
    check_numbers(args)
    check_input(args)
    check_beams(args, chosen)
    check_output(args)
    options.build_strategy(chosen, args, loaded=None)
    return chosen


def prompts_given(args: argparse.Namespace) -> list[str]:
    """PROMPT and --prompt, in the order of the help."""
    return [*([] if args.text is None else [args.text]), *args.prompt]


def check_numbers(args: argparse.Namespace) -> None:
    """Refuses numbers and texts that no model can make sense of."""
    if args.max_new_tokens < 1:
        raise Failure(BAD_FLAGS, f"--max-new-tokens must be at least 1, got {args.max_new_tokens}")
    if args.logprobs is not None and args.logprobs < 0:
        raise Failure(BAD_FLAGS, f"--logprobs must be at least 0, got {args.logprobs}")
    if (args.min_new_tokens or 0) > args.max_new_tokens:
        most = args.max_new_tokens
        raise Failure(BAD_FLAGS, f"--min-new-tokens {args.min_new_tokens} exceeds --max-new-tokens {most}")
    for flag, words in (("--stop", args.stop), ("--bad-words", args.bad_words or ())):
        if "" in words:
            raise Failure(BAD_FLAGS, f"{flag} needs at least one character, got ''")
    args.overflow = args.overflow or ("slide" if args.interactive else "error")
    if args.stride is not None and args.overflow != "slide":
        raise Failure(BAD_FLAGS, f"--stride has no meaning with --overflow {args.overflow}: it is for slide")
    if args.stride is not None and args.stride < 1:
        raise Failure(BAD_FLAGS, f"--stride must be at least 1, got {args.stride}")


def check_input(args: argparse.Namespace) -> None:
    """Refuses to read stdin for two purposes."""
    inputs = [*prompts_given(args), args.file]
    check_stdin_once(inputs)
    if STDIN in inputs and args.interactive:
        raise Failure(
            BAD_FLAGS, "--interactive reads from stdin what you type, so - cannot stand for it, too"
        )


def check_output(args: argparse.Namespace) -> None:
    """Refuses flags that contradict each other, before anything is computed; settles `--stream`."""
    prompts = len(prompts_given(args)) + (args.file is not None)
    several = prompts > 1 or (args.num_return_sequences or 1) > 1
    if args.interactive and (several or args.json or args.output or args.stream is False):
        raise Failure(
            BAD_FLAGS, "--interactive shows one text as it grows: not several, and not --json, --output"
            " or --no-stream",
        )  # fmt: skip
    if args.stream and (several or args.json or args.output or args.show_beams):
        raise Failure(
            BAD_FLAGS,
            "--stream shows one text as it grows: not several, and not --json, --output or --show-beams",
        )
    if args.stream is None:
        alone = not (several or args.json or args.output or args.show_beams)
        args.stream = args.interactive or (alone and sys.stdout.isatty())
    if args.logprobs is not None and not args.json:
        raise Failure(BAD_FLAGS, "--logprobs goes into the JSON: add --json")
    if args.explain and args.quiet and not args.json:
        raise Failure(BAD_FLAGS, "--explain writes its table to stderr, which --quiet forbids: add --json")
    if args.output is not None:
        check_file("--output", args.output)


def check_beams(args: argparse.Namespace, strategy: type[Strategy]) -> None:
    """Refuses to show beams where there are none."""
    for flag, given in (("--show-beams", args.show_beams), ("--lattice", args.lattice)):
        if given and not issubclass(strategy, Beam):
            raise Failure(
                BAD_FLAGS,
                f"{flag} has no meaning for {name_of(strategy)}, which has no beams: add --num-beams 5",
            )
        if given and args.interactive:
            raise Failure(BAD_FLAGS, f"{flag} is for one text, --interactive for many: leave one out")
    if args.show_beams and args.quiet:
        raise Failure(BAD_FLAGS, "--show-beams draws on stderr, which --quiet forbids: leave one out")
    if args.lattice is not None:
        check_file("--lattice", args.lattice)
