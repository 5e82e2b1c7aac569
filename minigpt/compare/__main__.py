"""Compares decoding methods on the same prompts: `python -m minigpt.compare "Once upon a time"`."""

from __future__ import annotations

import argparse
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt import cli
from minigpt.atomic import replace_text
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, TOO_LONG, Failure
from minigpt.cli import fields as options
from minigpt.cli.model_flags import ModelFlags, add_model_flags
from minigpt.cli.outputs import check_file
from minigpt.cli.parser import Parser
from minigpt.cli.progress import late_bar
from minigpt.cli.terminal import write_out
from minigpt.compare import methods
from minigpt.compare.measuring import Judge, Measure
from minigpt.compare.methods import METHODS, Method
from minigpt.compare.report import HUMAN, Report, Row, surroundings
from minigpt.compare.writing import write
from minigpt.data.documents import documents
from minigpt.data.prompts import Given, Prompt, from_file, passages
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.tokenizer import Tokenizer

ABOUT = """Compare decoding methods: what they write from the same prompts, and what it costs.

Of one PROMPT, the texts side by side. Of many prompts, a table: quality, diversity, repetition and cost of each
method, beside the same figures of human text where the prompts come with their true continuation.
"""

EPILOG = """methods, unless --method names others; each is what `python -m minigpt.generate` takes:
{methods}

examples:
  python -m minigpt.compare "Once upon a time"                            every method's text
  python -m minigpt.compare "Once upon a time" --method greedy --method "hot: --temperature 1.3 --top-k 40"
  python -m minigpt.compare --prompts prompts.txt                         a prompt a line: a table of figures
  python -m minigpt.compare --prompts told.jsonl --json out.json          {{"prompt": ..., "text": ...}} a line: and human text
  python -m minigpt.compare --held-out val.txt --plot quality.png         50 prompts cut from a text, and how it goes on
  python -m minigpt.compare --held-out val.txt --model gpt2 --judge gpt2-large --markdown table.md
"""
N_PROMPTS, PROMPT_TOKENS = 50, 32


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("compare", compare, argv)


def compare(argv: Sequence[str]) -> int:
    """The whole command: read flags and prompts, load the model, run and measure the methods, show them."""
    args = parser().parse(argv)
    if args.quiet:
        warnings.simplefilter("ignore")
    wanted = ModelFlags.of(args)  # what is wrong is said before anything slow begins
    check_flags(args)
    check_outputs(args)
    chosen = methods.chosen(args.method, args.seed)
    given = read(args)
    model, tokenizer = wanted.load()
    prompts = prompts_of(args, given, tokenizer)
    check_fit(prompts, args.max_new_tokens, model.config.n_positions)
    strategies = [(one, one.strategy(options.Loaded(wanted, tokenizer))) for one in chosen]
    run = Run(args, tokenizer, Measure(model, tokenizer, prompts, judge(wanted, args.judge)))
    interrupted = run.all(strategies)
    show(args, report(run, interrupted))
    return INTERRUPTED if interrupted else DONE


def parser() -> Parser:
    usage = "python -m minigpt.compare [PROMPT | --prompts FILE | --held-out FILE] [options]"
    listed = "\n".join(f"  {name:18}  {flags or '(no flags)'}" for name, flags in METHODS.items())
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, TOO_LONG, OUT_OF_MEMORY, INTERRUPTED)
    parser = Parser("compare", exits, EPILOG.format(methods=listed), usage=usage, description=ABOUT)
    parser.add_argument("text", nargs="?", metavar="PROMPT", help="one text to continue")
    add_model_flags(parser)
    group = parser.add_argument_group("input")
    group.add_argument(
        "--prompts", metavar="FILE",
        help='a prompt a line; a .jsonl file, one object with a "prompt" a line, and perhaps a human "text" after it',
    )  # fmt: skip
    group.add_argument("--held-out", metavar="FILE", help="cut prompts, and what follows, from this text")
    group.add_argument(
        "--n-prompts", type=int, metavar="N", help=f"with --held-out: how many (default: {N_PROMPTS})"
    )
    group.add_argument(
        "--prompt-tokens", type=int, metavar="N", help=f"with --held-out: how long (default: {PROMPT_TOKENS})"
    )
    group = parser.add_argument_group("methods")
    group.add_argument(
        "--method", action="append", default=[], metavar="NAME:FLAGS",
        help="instead of those below; repeatable; a NAME of those alone will do",
    )  # fmt: skip
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="the most tokens a text has (default: 128)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="for draws and --held-out (default: 0)"
    )
    group.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="prompts continued at once (default: 8)"
    )
    group.add_argument("--judge", metavar="NAME_OR_DIR", help="another model, whose perplexity is told too")
    group = parser.add_argument_group("output")
    group.add_argument("--markdown", metavar="FILE", help="the table for a page")
    group.add_argument("--json", metavar="FILE", help="settings, figures and texts, as one object")
    group.add_argument("--plot", metavar="FILE.png", help="quality against diversity, as a picture")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    return parser


# ------------------------------------------------------------------------------ checks


def check_flags(args: argparse.Namespace) -> None:
    """Refuses what no model can make sense of; settles the defaults of --held-out."""
    sources = [args.text is not None, args.prompts is not None, args.held_out is not None]
    if sum(sources) != 1:
        found = "nothing to continue" if not any(sources) else "several sources of prompts"
        raise Failure(BAD_FLAGS, f"{found}: give one of PROMPT, --prompts FILE and --held-out FILE")
    for name, default in (("n_prompts", N_PROMPTS), ("prompt_tokens", PROMPT_TOKENS)):
        if args.held_out is None and getattr(args, name) is not None:
            raise Failure(BAD_FLAGS, f"--{name.replace('_', '-')} is for --held-out FILE: leave it out")
        if args.held_out is not None and getattr(args, name) is None:
            setattr(args, name, default)
    for name in ("n_prompts", "prompt_tokens", "max_new_tokens", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise Failure(BAD_FLAGS, f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.seed < 0:
        raise Failure(BAD_FLAGS, f"--seed must be at least 0, got {args.seed}")
    if args.text == "":
        raise Failure(BAD_FLAGS, "the prompt is empty: give at least a word")


def check_outputs(args: argparse.Namespace) -> None:
    """Refuses files that cannot be written, before anything is computed."""
    for flag in ("markdown", "json", "plot"):
        if getattr(args, flag) is not None:
            check_file(f"--{flag}", getattr(args, flag))
    if args.plot is None:
        return
    if not args.plot.endswith(".png"):
        raise Failure(BAD_FLAGS, f"--plot {args.plot}: it will be a PNG, so name it .png")
    if args.text is not None:
        raise Failure(
            BAD_FLAGS, "--plot shows figures of many texts: give --prompts or --held-out, not PROMPT"
        )
    if find_spec("matplotlib") is None:
        raise Failure(BAD_FLAGS, "--plot takes the package matplotlib: pip install 'minigpt[plot]'")


def check_fit(prompts: Sequence[Prompt], max_new_tokens: int, window: int) -> None:
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt.tokens) + max_new_tokens - 1 > window:
            raise Failure(
                TOO_LONG,
                f"prompt {number} has {len(prompt.tokens)} tokens; with {max_new_tokens} new ones - 1 they exceed the"
                f" model's context length of {window}: shorten it, or lower --max-new-tokens",
            )


# ------------------------------------------------------------------------------ prompts


def read(args: argparse.Namespace) -> list[Given]:
    """Each prompt, and how a human went on if that is known; with --held-out, whole documents."""
    try:
        if args.held_out is not None:
            return [(text, None) for text in documents([Path(args.held_out)])]
        return [(args.text, None)] if args.text is not None else from_file(Path(args.prompts))
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error


def prompts_of(args: argparse.Namespace, given: list[Given], tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts in the model's tokens; human text is cut to as many as a method may write."""
    most = args.max_new_tokens
    try:
        if args.held_out is not None:
            texts = [tokenizer.encode(text) for text, _ in given]
            return passages(texts, args.n_prompts, args.prompt_tokens, most, args.seed)
        return [
            Prompt(
                tuple(tokenizer.encode(text)),
                None if human is None else tuple(tokenizer.encode(human)[:most]),
            )
            for text, human in given
        ]
    except ValueError as error:  # the vocabulary lacks a character, or the text is too short
        raise Failure(BAD_FLAGS, error) from error


def judge(wanted: ModelFlags, name: str | None) -> Judge | None:
    return None if name is None else Judge(*wanted.load_beside(name))


# ------------------------------------------------------------------------------ the run


@dataclass
class Run:
    """One run of the command: what is asked, and the rows that are done."""

    args: argparse.Namespace
    tokenizer: Tokenizer
    measure: Measure
    rows: list[Row] = field(default_factory=list)

    def all(self, chosen: list[tuple[Method, Strategy]]) -> bool:
        """Runs and measures one method after the other; whether Ctrl-C ended it. What is done stays."""
        n_texts = len(self.measure.prompts) * len(chosen)
        try:
            with late_bar(self.args.quiet, total=n_texts, unit="text") as bar:
                self._human()
                for method, strategy in chosen:
                    bar.set_description(method.name)
                    self.rows.append(self._row(method, strategy, bar.update))
        except KeyboardInterrupt:
            return True
        return False

    def _row(self, method: Method, strategy: Strategy, report: Callable[[int], object]) -> Row:
        sizes = (self.args.max_new_tokens, self.args.batch_size)
        try:
            written = write(self.measure.model, self.measure.prompts, strategy, *sizes, report)
            found = self.measure.figures(written.texts) | self.measure.likeness(written.texts) | written.cost
        except ValueError as error:  # the options rule out every token, or the judge lacks a character
            raise Failure(BAD_FLAGS, f"{method.name}: {error}") from error
        return Row(method.name, method.flags, method.strategy_name, found, self._texts(written.texts))

    def _human(self) -> None:
        if humans := self.measure.humans:
            self.rows.append(Row(HUMAN, None, None, self.measure.figures(humans), self._texts(humans)))

    def _texts(self, texts: list[list[int]]) -> list[str]:
        return [self.tokenizer.decode(self.measure.body(text)) for text in texts]


def report(run: Run, interrupted: bool) -> Report:
    """What is known of the run, as it stands."""
    names = (
        "prompts", "held_out", "n_prompts", "prompt_tokens", "max_new_tokens", "seed", "batch_size", "judge"
    )  # fmt: skip
    settings = {"model": run.args.model or "bundled", **{name: getattr(run.args, name) for name in names}}
    prompts = [run.tokenizer.decode(list(prompt.tokens)) for prompt in run.measure.prompts]
    facts = {"settings": settings, **surroundings(run.measure.model), "interrupted": interrupted}
    return Report(facts, prompts, run.rows)


def show(args: argparse.Namespace, found: Report) -> None:
    """Prints the table, and writes the files that were asked for, each whole or not at all."""
    beside = args.text is not None
    width = shutil.get_terminal_size((100, 24)).columns
    write_out(found.texts_table(width) if beside else found.figures_table())
    page = found.texts_markdown if beside else found.markdown
    writers: dict[str, Callable[[Path], None]] = {
        "markdown": lambda path: replace_text(path, page()),
        "json": lambda path: replace_text(path, found.json()),
        "plot": found.plot,
    }
    for flag, put in writers.items():
        name = getattr(args, flag)
        try:
            if name is not None:
                put(Path(name).resolve())  # a link stays one
        except OSError as error:
            raise Failure(FAILED, f"--{flag} {name}: {error.strerror or error}") from error


if __name__ == "__main__":
    sys.exit(main())
