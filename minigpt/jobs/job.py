"""A job: every row of an input through a model, in blocks, each by one worker that has loaded the model once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from minigpt.jobs.blocks import Block, Source
from minigpt.jobs.output import Done, Outcome, Output
from minigpt.jobs.rows import Row

# Rows, and how many rows of the input come before them -> what became of each.
Work = Callable[[Sequence[Row], int], Iterator[Outcome]]
Report = Callable[[int], object]  # is called with how many more rows are done


@dataclass(frozen=True)
class Job:
    """What is read, what is done with it, and where it goes; it can be pickled, and holds no model."""

    source: Source
    output: Output
    begin: Callable[[], Work]  # loads the model

    def worker(self) -> Worker:
        """What does blocks, once the model is loaded."""
        return Worker(self.source, self.output, self.begin())


@dataclass(frozen=True)
class Worker:
    """Does blocks, one after the other; whoever does a block, and how often, its shard is the same."""

    source: Source
    output: Output
    work: Work

    def do(self, block: Block, report: Report = lambda n: None) -> Done:
        """Reads a block, does the work on its rows, writes its shard, unless that was done before.

        Raises:
            OSError: a file cannot be read or written.
        """
        done = self.output.done(block.number)
        if done is not None:
            return done
        batch = self.source.read(block)
        outcomes = []
        for outcome in self.work(batch.rows, block.rows_before):
            outcomes.append(outcome)
            report(1)
        return self.output.write(block, batch, outcomes)


def run_here(job: Job, blocks: Iterable[Block], report: Report) -> Iterator[Done]:
    """Does the blocks in this process."""
    worker = job.worker()
    return (worker.do(block, report) for block in blocks)
