"""Makes a page that shows what a model did: `minigpt explore "Once upon a time" -o page.html`."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from minigpt import cli
from minigpt.cli import DONE
from minigpt.cli.outputs import attempt, real
from minigpt.cli.text_flags import escapes
from minigpt.explore.flags import parser
from minigpt.explore.settings import ExploreSettings, command_line
from minigpt.json_files import counted

if TYPE_CHECKING:
    from minigpt.interp.page import Page


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.run("explore", parser, lambda args: explore(args, argv), argv)


def explore(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """The whole command: read the prompt, load the model, look inside, write the page.

    Args:
        args: the values of the flags.
        argv: the flags themselves, for the page says how it was made.
    """
    settings = ExploreSettings.of(args)  # what is wrong is said before anything slow begins
    page = make(settings, argv)
    attempt("--output", settings.output, page.save)
    if not settings.quiet:
        for line in (*remarks(page, settings.output), *escapes(args)):
            cli.note("explore", line)
    if settings.open and not webbrowser.open(real(settings.output).as_uri()):
        cli.note("explore", f"there is no browser to open: open {settings.output} yourself")
    return DONE


def make(settings: ExploreSettings, argv: Sequence[str]) -> Page:
    """The page that is asked for.

    Raises:
        Failure: there is no such model, or it is not supported.
        PromptTooLong: a prompt and its new tokens do not fit the context length.
        InvalidRequest: a prompt cannot be encoded, or the options rule out every token.
    """
    model, tokenizer = settings.model.load()
    from minigpt.interp.page.data import Origin  # here, for these need torch, and --help need not wait
    from minigpt.interp.page.generation import Asked
    from minigpt.interp.page.page import page_of

    strategy = settings.strategy.build(settings.model, tokenizer)
    asked = Asked(strategy, settings.max_new_tokens, settings.stop, settings.overflow, settings.allow_special)
    origin = Origin(settings.model.name, command_line(argv, strategy.seed_in_use))
    return page_of(model, tokenizer, settings.prompts, asked, origin)


def remarks(page: Page, file: str) -> Iterator[str]:
    """What was left out, what was written, and the seed."""
    runs, seed = page.data["runs"], page.data["provenance"]["seed"]
    for run in runs:
        if dropped := run["dropped"]:
            yield f"left out the {dropped:,} oldest of {dropped + run['prompt_length']:,} prompt tokens"
    sizes = " and ".join(counted(len(run["tokens"]), "tokens") for run in runs)
    seeded = "" if seed is None else f", seed {seed}"
    yield f"{file}: {sizes}, {len(page.html) / 1e6:.1f} MB{seeded}"


if __name__ == "__main__":
    sys.exit(main())
