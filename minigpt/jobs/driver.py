"""Running a job from the command line: what is left of it is done, here or on Ray, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from minigpt import cli
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, Failure
from minigpt.cli.model_flags import ModelFlags
from minigpt.cli.progress import late_bar
from minigpt.jobs.blocks import Source
from minigpt.jobs.extras import require
from minigpt.jobs.flags import SHARD_ROWS, JobFlags
from minigpt.jobs.job import Job, Work, run_here
from minigpt.jobs.on_ray import run_on_ray
from minigpt.jobs.output import REJECTED, Done, Output
from minigpt.jobs.plan import Plan, plan
from minigpt.jobs.storage import folder
from minigpt.json_files import counted


@dataclass(frozen=True)
class Task:
    """What a command asks a job for."""

    command: str
    unit: str  # what a row is called in messages, in the plural
    model: ModelFlags
    flags: JobFlags
    facts: Mapping[str, Any]  # all that decides the results, beside the input and the model
    begin: Callable[[], Work]
    kinds: Mapping[str, Any]  # of the records' fields; see `jobs.parquet.arrow_type`
    reserved: frozenset[str] = frozenset()  # names that a column of the input does not keep
    format: str | None = None  # unless a flag says otherwise; None: as the input
    quiet: bool = False


def known_facts(out: str) -> dict[str, Any]:
    """What the manifest of the job in a folder says; nothing if there is none.

    Raises:
        Failure: it cannot be read.
    """
    try:
        return Output(folder(out), "", {}).manifest() or {}
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error


def run_job(task: Task, source: Callable[[], Source]) -> int:
    """Does what is left of a job, and says how it ended; the exit code.

    Args:
        task: what is asked for.
        source: finds the files of the input.

    Raises:
        Failure: the input cannot be used, or the folder holds the output of another job.
        OSError: a file cannot be read or written, or Ray cannot be reached.
    """
    try:
        job, cut = _prepared(task, source())
        done = job.output.all_done()
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    began, before = time.perf_counter(), sum(one.read for one in done.values())
    interrupted = False
    try:
        _run(task, job, cut, done)
    except KeyboardInterrupt:
        interrupted, done = True, job.output.all_done()  # a block may be done, and not yet counted
    finally:
        if any(one.rejected for one in done.values()):
            job.output.write_rejected(sorted(number for number, one in done.items() if one.rejected))
    if not task.quiet:
        cli.note(task.command, _summary(task, [*done.values()], before, time.perf_counter() - began))
    if interrupted:
        n = f"{sum(one.read for one in done.values()):,} of {cut.n_rows:,} {task.unit}"
        cli.note(task.command, f"interrupted: {n} are done; the same command goes on from there")
        return INTERRUPTED
    return FAILED if any(one.rejected for one in done.values()) else DONE


def _prepared(task: Task, source: Source) -> tuple[Job, Plan]:
    """The job, its input cut into blocks, and its output begun or found to be that of the same job."""
    flags = task.flags
    format = flags.format or task.format or ("parquet" if source.is_parquet else "jsonl")
    if format == "parquet":
        require("pyarrow", "data", "Parquet")
    if source.holds(str(flags.out)):
        raise ValueError(
            f"--out {flags.out} lies in {source.path}, whose files are the input: name another folder"
        )
    shard_rows = flags.shard_rows or known_facts(str(flags.out)).get("shard_rows", SHARD_ROWS)
    cut = plan(source, shard_rows, format == "parquet")
    if not cut.blocks:
        raise ValueError(f"{source.path} holds no {task.unit}: there is nothing to do")
    output = Output(folder(str(flags.out)), format, task.kinds, task.reserved, cut.schema)
    facts = {"command": task.command, "format": format, "shard_rows": shard_rows, **task.facts}
    output.begin({**facts, "model": task.model.sha256(), "input": cut.sha256})
    return Job(source, output, task.begin), cut


def _run(task: Task, job: Job, cut: Plan, done: dict[int, Done]) -> None:
    """Does the blocks that are not done, and adds them to those that are."""
    left = [block for block in cut.blocks if block.number not in done]
    if not left:
        return
    cluster = task.flags.cluster(task.model)
    with late_bar(
        total=cut.n_rows, initial=sum(one.read for one in done.values()), unit=f" {task.unit}"
    ) as bar:
        ends = run_on_ray(job, left, cluster, bar.update) if cluster else run_here(job, left, bar.update)
        for one in ends:
            done[one.number] = one


def _summary(task: Task, done: list[Done], before: int, seconds: float) -> str:
    """The closing line."""
    _, read, written, rejected, tokens = map(sum, zip(*done, strict=True)) if done else [0] * 5
    parts = [f"{counted(read, task.unit)} read" + (f" ({before:,} of them before)" if before else "")]
    parts += [f"{written:,} written"]
    parts += [f"{rejected:,} rejected" + (f" ({task.flags.out}/{REJECTED})" if rejected else "")]
    parts += [counted(tokens, "tokens"), f"{seconds:.1f} s"]
    seed = task.facts.get("seed")
    return ", ".join(parts + ([f"seed {seed}"] if seed is not None else []))
