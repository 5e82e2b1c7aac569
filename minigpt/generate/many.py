"""Many prompts from a file: their texts are written as they are finished, and a killed run is gone on from."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from minigpt import cli
from minigpt.cli import DONE, FAILED, INTERRUPTED, Failure
from minigpt.cli.machine import peak_memory
from minigpt.cli.outputs import reason
from minigpt.cli.progress import late_bar
from minigpt.cli.terminal import is_terminal, utf8, write_out
from minigpt.data.prompt_rows import PromptRow, RejectedRow, read_rows
from minigpt.generate import growing_file
from minigpt.generate.growing_file import GrowingFile
from minigpt.generate.job import PromptsFile, check_same, job_of, second_models, with_seed
from minigpt.generate.records import Written, record, with_columns
from minigpt.generate.settings import GenerateSettings
from minigpt.json_files import counted
from minigpt.sampler.events import Completion
from minigpt.sampler.many import Answer, complete_many
from minigpt.tokenizer import Tokenizer


class Output(Protocol):
    """Where results go."""

    def add(self, index: int, text: bytes, failed: bool) -> None: ...


class Stdout:
    """Results go to stdout."""

    def add(self, index: int, text: bytes, failed: bool) -> None:
        write_out(text.decode())


@dataclass
class Results:
    """The results of rows, written one after the other, and counted."""

    settings: GenerateSettings
    tokenizer: Tokenizer
    seed: int | None
    output: Output
    n_positions: int  # of the model
    prompt_tokens: int = 0
    generated: int = 0
    rows: int = 0
    failures: list[str] = field(default_factory=list)  # the first one's message
    n_failed: int = 0
    n_cut: int = 0  # rows whose oldest tokens the model did not see
    began: float = field(default_factory=time.perf_counter)

    def answer(self, answer: Answer[PromptRow]) -> None:
        """Writes what became of a row."""
        if answer.error is not None:
            self.fail(answer.row, str(answer.error))
            return
        assert answer.request is not None
        self.rows += 1
        self.prompt_tokens += len(answer.request.prompt)
        self.n_cut += answer.request.dropped > 0 or len(answer.request.prompt) > self.n_positions
        self.generated += sum(len(text.tokens) for text in answer.completions)
        show = self._as_json if self.settings.json else self._as_text
        texts = [show(answer, i, completion) for i, completion in enumerate(answer.completions)]
        self.output.add(answer.row.index, utf8("".join(texts)), failed=False)

    def fail(self, row: PromptRow | RejectedRow, message: str) -> None:
        """Writes why a row has no text."""
        self.rows += 1
        self.n_failed += 1
        self.failures = self.failures or [f"{row.id}: {message}"]
        failed = {"id": row.id, "error": message, "prompt_index": row.index}
        text = _line(failed) if self.settings.json else f"--- {row.id}\nerror: {message}\n"
        self.output.add(row.index, utf8(text), failed=True)

    def _as_json(self, answer: Answer[PromptRow], index: int, completion: Completion) -> str:
        row, request = answer.row, answer.request
        assert request is not None
        timing = {
            "prompt_tokens": len(request.prompt),
            "generated_tokens": len(completion.tokens),
            "total_s": round(time.perf_counter() - self.began, 4),
        }
        seed = row.seed if self.seed is not None and row.seed is not None else self.seed
        written = Written(row.prompt, request, completion, row.index, index, seed, timing)
        fields = {"id": row.id, **record(written, self.settings, self.tokenizer)}
        return _line(with_columns(fields, row.columns))

    def _as_text(self, answer: Answer[PromptRow], index: int, completion: Completion) -> str:
        prompt = answer.row.prompt if self.settings.echo else ""
        return f"--- {answer.row.id}\n{prompt}{completion.text}\n"

    def summary(self) -> str:
        """What was done, in one line."""
        seconds = time.perf_counter() - self.began
        parts = [
            counted(self.rows, "prompts"),
            f"{self.n_failed:,} failed",
            f"prompt {counted(self.prompt_tokens, 'tokens')}",
            f"generated {self.generated:,} at {self.generated / seconds:,.0f} tok/s",
            f"peak memory {peak_memory() / 1e6:.0f} MB",
        ]
        return ", ".join(parts + ([f"seed {self.seed}"] if self.seed is not None else []))


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def write_many(settings: GenerateSettings) -> int:
    """Continues the prompts of `--prompts FILE`; the exit code.

    Raises:
        Failure: the file of prompts cannot be read, or `--output` holds the results of another job.
    """
    assert settings.prompts_file is not None
    prompts = PromptsFile.read(settings.prompts_file)
    job, begun = job_of(settings, prompts), None
    if settings.output is not None:
        begun = growing_file.begun(settings.output)
        if begun is not None:
            check_same(settings.output, begun, job)
            settings = with_seed(settings, begun.get("seed"))
    model, tokenizer = settings.model.load()
    strategy = settings.strategy.build(settings.model, tokenizer)
    seed = strategy.seed_in_use
    file = None
    if settings.output is not None:
        job |= {"model": settings.model.sha256(), **second_models(settings), "seed": seed}
        if begun is not None:
            check_same(settings.output, begun, job)
        file = GrowingFile(settings.output, prompts.n_lines, job)
    results = Results(settings, tokenizer, seed, file or Stdout(), model.config.n_positions)
    answers = complete_many(
        model, tokenizer, _good_rows(prompts, file, results), strategy,
        stop=settings.stop, allow_special=settings.allow_special, heal=settings.heal, stride=settings.stride,
        max_new_tokens=settings.max_new_tokens, overflow=settings.overflow, top_logprobs=settings.top_logprobs,
    )  # fmt: skip
    return _write_all(settings, answers, results, file, prompts.n_lines)


def _good_rows(prompts: PromptsFile, file: GrowingFile | None, results: Results) -> Iterator[PromptRow]:
    """The rows that are still to be continued; those that cannot be are answered at once."""
    for row in read_rows(prompts.path):
        if file is not None and file.status[row.index]:
            continue
        if isinstance(row, RejectedRow):
            results.fail(row, row.reason)
        else:
            yield row


def _write_all(
    settings: GenerateSettings,
    answers: Iterator[Answer[PromptRow]],
    results: Results,
    file: GrowingFile | None,
    n_rows: int,
) -> int:
    before = file.count(growing_file.DONE) + file.count(growing_file.FAILED) if file else 0
    seen = file is None and is_terminal(sys.stdout)  # results show by themselves how far it is
    code = DONE
    try:
        with nullcontext() if seen else late_bar(total=n_rows, initial=before, unit="prompt") as bar:
            for answer in answers:
                results.answer(answer)
                if bar is not None:
                    bar.update(before + results.rows - bar.n)
        if file is not None:
            file.finish()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        if file is None:
            raise
        message = f"--output {file.file}: {reason(error)}; the same command goes on from {file.part}"
        raise Failure(FAILED, message) from error
    finally:
        if file is not None:
            file.close()
    n_failed = file.count(growing_file.FAILED) if file else results.n_failed
    if code == DONE and n_failed:
        code = FAILED
    _closing_lines(settings, results, before, n_failed, code)
    return code


def _closing_lines(
    settings: GenerateSettings, results: Results, before: int, n_failed: int, code: int
) -> None:
    """The closing lines on stderr."""
    if n_failed:
        first = f", first {results.failures[0]}" if results.failures else ""
        cli.note("generate", f"{n_failed:,} of {counted(before + results.rows, 'prompts')} failed{first}")
    if settings.quiet:
        return
    if before:
        cli.note("generate", f"{counted(before, 'prompts')} done before")
    if code == INTERRUPTED and settings.output is not None:
        cli.note("generate", f"interrupted; the same command goes on from {settings.output}.part")
    if results.n_cut:
        cli.note("generate", f"left out the oldest tokens of {counted(results.n_cut, 'prompts')}")
    cli.note("generate", results.summary())
