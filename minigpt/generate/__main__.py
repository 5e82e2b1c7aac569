"""Generates text from the command line: `minigpt generate "Once upon a time"`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from minigpt import cli
from minigpt.cli import DONE, FAILED, INTERRUPTED
from minigpt.cli.inputs import STDIN, read_text, stdin_is_piped
from minigpt.generate.flags import parser
from minigpt.generate.hints import hints, same_texts
from minigpt.generate.many import write_many
from minigpt.generate.repl import Repl
from minigpt.generate.replay import replay
from minigpt.generate.settings import GenerateSettings
from minigpt.generate.shards import write_shards
from minigpt.generate.writing import write_texts
from minigpt.jobs.flags import JobFlags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    return cli.run("generate", parser, generate, argv)


def generate(args: argparse.Namespace) -> int:
    """The whole command: read the prompts, load the model, continue the prompts."""
    if args.replay is not None:
        replay(args.replay, args.lattice)
        return DONE
    settings = GenerateSettings.of(args)  # what is wrong is said before anything slow begins
    job = JobFlags.of(args)
    if job.out is not None or settings.prompts_file is not None:
        code = write_many(settings) if job.out is None else write_shards(settings, job)
        note_hints(settings, hints(settings, texts=()))
        return code
    texts = prompt_texts(settings)
    model, tokenizer = settings.model.load()
    strategy = settings.strategy.build(settings.model, tokenizer)
    if settings.interactive:
        Repl(args, settings, model, tokenizer, strategy).run("".join(texts))
        return DONE
    session = write_texts(settings, model, tokenizer, strategy, texts)
    note_hints(settings, (*hints(settings, texts), *same_texts(session.results())))
    if session.interrupted:
        return INTERRUPTED
    return FAILED if session.failures else DONE


def note_hints(settings: GenerateSettings, lines: Iterable[str]) -> None:
    """Remarks at the end, for a mistake is answered with one line."""
    if not settings.quiet:
        for line in lines:
            cli.note("generate", line)


def prompt_texts(settings: GenerateSettings) -> list[str]:
    """All prompts, in the order of the help: PROMPT, --prompt, --file; without any a pipe, or an empty one."""
    texts = [read_text(STDIN) if text == STDIN else text for text in settings.prompts]
    if settings.file is not None:
        texts.append(read_text(settings.file, "--file"))
    if not texts and not settings.interactive and stdin_is_piped():
        texts.append(read_text(STDIN))
    return texts or [""]


if __name__ == "__main__":
    sys.exit(main())
