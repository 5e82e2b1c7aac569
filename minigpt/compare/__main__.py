"""Compares decoding methods on the same prompts: `minigpt compare "Once upon a time"`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from minigpt import cli
from minigpt.cli import DONE, FAILED, INTERRUPTED, Failure
from minigpt.cli.outputs import attempt, save
from minigpt.cli.strategy_flags import Loaded
from minigpt.cli.terminal import write_out
from minigpt.compare.flags import parser
from minigpt.compare.inputs import check_fit, encoded, read
from minigpt.compare.measuring import Judge, Measure
from minigpt.compare.report import Report, surroundings
from minigpt.compare.run import Comparison
from minigpt.compare.settings import CompareSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    return cli.run("compare", parser, compare, argv)


def compare(args: argparse.Namespace) -> int:
    """The whole command: read the prompts, load the model, run and measure the methods, show them."""
    settings = CompareSettings.of(args)  # what is wrong is said before anything slow begins
    given = read(settings)
    model, tokenizer = settings.model.load()
    prompts = encoded(settings, given, tokenizer)
    check_fit(prompts, settings.max_new_tokens, model.config.n_positions)
    loaded = Loaded(settings.model, tokenizer)
    methods = [(method, method.strategy(loaded)) for method in settings.methods]
    judge = None if settings.judge is None else Judge(*settings.model.beside(settings.judge).load())
    comparison = Comparison(settings, tokenizer, Measure(model, tokenizer, prompts, judge))
    comparison.run(methods)
    return show(comparison)


def show(comparison: Comparison) -> int:
    """Prints the table, and writes the files that were asked for; the exit code.

    Raises:
        InvalidRequest: every method failed.
        Failure: a file cannot be written, or Ctrl-C came before any method was done.
    """
    failures, settings = comparison.failures, comparison.settings
    for name, error in failures.items():
        if len(failures) == len(settings.methods):
            raise type(error)(f"{name}: {error}")
        cli.note("compare", Failure(FAILED, f"{name} failed and is left out: {error}"))
    done = any(row.strategy for row in comparison.rows)  # the row of human text has none
    if comparison.interrupted and not done:  # files of an earlier run stay
        raise Failure(INTERRUPTED, "interrupted before any method was done")
    report = report_of(comparison)
    beside = settings.text is not None
    width = shutil.get_terminal_size((100, 24)).columns
    write_out(report.texts_table(width) if beside else report.metrics_table())
    if settings.markdown is not None:
        save("--markdown", settings.markdown, report.texts_markdown() if beside else report.markdown())
    if settings.json is not None:
        save("--json", settings.json, report.json())
    if settings.plot is not None:
        attempt("--plot", settings.plot, report.plot)
    if comparison.interrupted:
        return INTERRUPTED
    return FAILED if failures else DONE


def report_of(comparison: Comparison) -> Report:
    """All that is known of a comparison, as it stands."""
    facts = {
        "settings": comparison.settings.record(),
        **surroundings(comparison.measure.model),
        "interrupted": comparison.interrupted,
        "failures": {name: str(error) for name, error in comparison.failures.items()},
    }
    prompts = [comparison.tokenizer.decode(list(prompt.tokens)) for prompt in comparison.measure.prompts]
    return Report(facts, prompts, comparison.rows)


if __name__ == "__main__":
    sys.exit(main())
