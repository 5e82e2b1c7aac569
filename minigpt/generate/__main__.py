"""Writes text from the command line: `python -m minigpt.generate "Once upon a time"`."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from minigpt import cli
from minigpt.cli import DONE, INTERRUPTED
from minigpt.cli import fields as options
from minigpt.cli.inputs import read_text
from minigpt.cli.model_flags import ModelFlags
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
    wanted = ModelFlags.of(args)
    model, tokenizer = wanted.load()
    strategy = options.build_strategy(kind, args, options.Loaded(wanted, tokenizer))
    if args.interactive:
        return Repl(args, model, tokenizer, strategy).run(*texts)
    session = begin(args, model, tokenizer, strategy, texts)
    interrupted = session.decode()
    session.show()
    return INTERRUPTED if interrupted else DONE


def prompt_texts(args: argparse.Namespace) -> list[str]:
    """All prompts, in the order of the help: PROMPT, --prompt, --file; one empty one if there is none."""
    texts = [read_text("-") if text == "-" else text for text in flags.prompts_given(args)]
    if args.file is not None:
        texts.append(read_text(args.file, "--file"))
    return texts or [""]


if __name__ == "__main__":
    sys.exit(main())
