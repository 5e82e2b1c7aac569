"""Writes text from the command line: `python -m minigpt.generate "Once upon a time"`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt import cli, options
from minigpt.cli import BAD_FLAGS, DONE, INTERRUPTED, TOO_LONG, Failure
from minigpt.sampler import names, prepare
from minigpt.sampler.strategy import PromptTooLong, Request
from minigpt.session import Session

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

ABOUT = """Continue a text with a GPT-2.

The text goes to stdout, everything else to stderr. Several texts are separated by a line "---".
Without a model the bundled one writes, a small teller of fairy tales; --model gpt2 fetches the real one.
"""

EXAMPLES = """examples:
  python -m minigpt.generate "Once upon a time" --top-p 0.9 --echo    sampling, the prompt shown before the text
  python -m minigpt.generate "Once upon a time" --top-p 0.9 --seed 7  the same text every time
  python -m minigpt.generate "Once upon a time"                       greedy: always the likeliest word
  python -m minigpt.generate "Once upon a time" --num-beams 5         beam search
  python -m minigpt.generate -p "The king" -p "The queen" --json      two prompts, as JSON
  python -m minigpt.generate -f story.txt --stop "The End"            continue a file up to these words

exit codes: 0 done, 2 wrong flags, 3 no such model, 4 prompt too long, 5 out of memory, 130 Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("generate", write, argv)


def write(argv: Sequence[str]) -> int:
    """The whole command: read the flags, load the model, write the texts."""
    args = parser().parse(argv)
    if args.quiet:
        warnings.simplefilter("ignore")
    strategy_type = options.chosen_strategy(args)  # what is wrong is said before anything slow begins
    cli.check_model_flags(args)
    check_numbers(args)
    check_output(args)
    options.build_strategy(strategy_type, args, loaded=None)
    texts = prompt_texts(args)
    model, tokenizer = cli.load(args)
    strategy = options.build_strategy(strategy_type, args, options.Loaded(args, tokenizer))
    requests = make_requests(args, model, tokenizer, texts)
    session = Session(args, model, tokenizer, strategy, texts, requests)
    interrupted = session.decode()
    session.show()
    return INTERRUPTED if interrupted else DONE


def parser() -> cli.Parser:
    usage = "python -m minigpt.generate [PROMPT] [options]"
    parser = cli.Parser("generate", usage=usage, description=ABOUT, epilog=EXAMPLES)
    parser.add_argument("text", nargs="?", metavar="PROMPT", help="the text to continue; - reads stdin")
    cli.add_model_flags(parser)
    groups = {name: parser.add_argument_group(name) for name in ("input", "length", "strategy")}
    _add_input_flags(groups["input"])
    groups["length"].add_argument(
        "--max-new-tokens", type=int, default=50, metavar="N", help="the most tokens to write (default: 50)"
    )
    groups["length"].add_argument(
        "--overflow", choices=["error", "truncate", "stop", "slide"], default="error",
        help="when prompt and text exceed the model's window: refuse (the default), drop the prompt's beginning,"
        " end at its edge, or (not there yet) slide it",
    )  # fmt: skip
    groups["strategy"].add_argument(
        "--strategy", choices=names(), metavar="NAME",
        help=f"{', '.join(names())}; unless given, the flags below decide: those of sampling imply sample, "
        "--num-beams implies beam, both beam-sample, none greedy",
    )  # fmt: skip
    for name in ("sampling", "beams", "control"):
        groups[name] = parser.add_argument_group(name)
    options.add_flags(groups)
    groups["control"].add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    _add_output_flags(parser.add_argument_group("output"))
    return parser


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


def _add_output_flags(group: Any) -> None:
    group.add_argument(
        "--stream", action=argparse.BooleanOptionalAction,
        help="show one text as it is written (default: on a terminal)",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="one JSON object a line for each text")
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="with --json: also the N likeliest at each step"
    )
    group.add_argument("--echo", action="store_true", help="print the prompt before its text")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    group.add_argument(
        "--output", metavar="FILE", help="write to FILE, whole or not at all, and not to stdout"
    )


def prompt_texts(args: argparse.Namespace) -> list[str]:
    """All prompts, in the order of the help: PROMPT, --prompt, --file; one empty one if there is none."""
    given = [*_positional(args), *args.prompt]
    if (*given, args.file).count("-") > 1:
        raise Failure(BAD_FLAGS, "stdin can be read once only, but - stands for it several times")
    texts = [_from_stdin() if text == "-" else text for text in given]
    if args.file == "-":
        texts.append(_from_stdin())
    elif args.file is not None:
        try:
            texts.append(_decode(Path(args.file).read_bytes(), args.file))
        except OSError as error:
            raise Failure(
                BAD_FLAGS,
                f"--file {args.file} cannot be read: {error.strerror}; name a text file, or - for stdin",
            ) from error
    return texts or [""]


def _positional(args: argparse.Namespace) -> list[str]:
    return [] if args.text is None else [args.text]


def _from_stdin() -> str:
    return _decode(sys.stdin.buffer.read(), "stdin")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise Failure(BAD_FLAGS, f"{name} is not UTF-8: byte {error.start}; convert it first") from error


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
    if args.overflow == "slide":
        raise Failure(BAD_FLAGS, "--overflow slide is not there yet; use truncate or stop")


def check_output(args: argparse.Namespace) -> None:
    """Refuses flags that contradict each other, before anything is computed; settles `--stream`."""
    prompts = len(_positional(args)) + len(args.prompt) + (args.file is not None)
    several = prompts > 1 or (args.num_return_sequences or 1) > 1
    if args.stream and (several or args.json or args.output):
        raise Failure(
            BAD_FLAGS, "--stream shows one text as it grows: not several, and not --json or --output"
        )
    if args.stream is None:
        args.stream = sys.stdout.isatty() and not (several or args.json or args.output)
    if args.logprobs is not None and not args.json:
        raise Failure(BAD_FLAGS, "--logprobs goes into the JSON: add --json")
    if args.output is not None:
        path = Path(args.output).resolve()
        if not path.parent.is_dir():
            raise Failure(BAD_FLAGS, f"--output {args.output}: there is no such folder to write into")
        # The file will be replaced, which must not happen to /dev/null.
        if path.exists() and not path.is_file():
            raise Failure(BAD_FLAGS, f"--output {args.output!r} is a folder or a device; name a file")


def make_requests(
    args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer, texts: list[str]
) -> list[Request]:
    try:
        prompts = [
            tokenizer.encode(text, allow_special=args.allow_special) or _nothing(tokenizer) for text in texts
        ]
        requests = prepare(
            model,
            prompts,
            max_new_tokens=args.max_new_tokens,
            stop=tokenizer.stop_at(*args.stop) if args.stop else None,
            overflow=args.overflow,
            top_logprobs=args.logprobs or 0,
        )
    except PromptTooLong as error:
        raise Failure(TOO_LONG, error) from error
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    for request in requests:
        if request.dropped and not args.quiet:
            cli.note("generate", f"left out the {request.dropped} oldest of {len(request.prompt) + request.dropped}"
                                 " prompt tokens")  # fmt: skip
    return requests


def _nothing(tokenizer: Tokenizer) -> list[int]:
    """What stands for an empty prompt: the token after which texts began in training."""
    if tokenizer.end_token is None:
        raise Failure(BAD_FLAGS, "this model's tokenizer has no <|endoftext|> to begin with: give a prompt")
    return [tokenizer.end_token]


if __name__ == "__main__":
    sys.exit(main())
