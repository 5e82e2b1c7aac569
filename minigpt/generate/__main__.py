"""Writes text from the command line: `python -m minigpt.generate "Once upon a time"`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from minigpt import cli
from minigpt.cli import BAD_FLAGS, DONE, INTERRUPTED, Failure
from minigpt.cli import fields as options
from minigpt.generate import settings as flags
from minigpt.generate.beam_screen import replay
from minigpt.generate.repl import Repl
from minigpt.generate.session import begin


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("generate", write, argv)


def write(argv: Sequence[str]) -> int:
    """The whole command: read the flags, load the model, write the texts."""
    args = flags.parser().parse(argv)
    if args.replay is not None:
        return replay(args.replay)
    if args.quiet:
        warnings.simplefilter("ignore")
    kind = flags.check(args)  # what is wrong is said before anything slow begins
    texts = prompt_texts(args)
    model, tokenizer = cli.load(args)
    strategy = options.build_strategy(kind, args, options.Loaded(args, tokenizer))
    if args.interactive:
        return Repl(args, model, tokenizer, strategy).run(*texts)
    session = begin(args, model, tokenizer, strategy, texts)
    interrupted = session.decode()
    session.show()
    return INTERRUPTED if interrupted else DONE


def prompt_texts(args: argparse.Namespace) -> list[str]:
    """All prompts, in the order of the help: PROMPT, --prompt, --file; one empty one if there is none."""
    texts = [_from_stdin() if text == "-" else text for text in flags.prompts_given(args)]
    if args.file == "-":
        texts.append(_from_stdin())
    elif args.file is not None:
        try:
            texts.append(cli.decoded(Path(args.file).read_bytes(), args.file))
        except OSError as error:
            raise Failure(
                BAD_FLAGS,
                f"--file {args.file} cannot be read: {error.strerror}; name a text file, or - for stdin",
            ) from error
    return texts or [""]


def _from_stdin() -> str:
    return cli.decoded(sys.stdin.buffer.read(), "stdin")


if __name__ == "__main__":
    sys.exit(main())
