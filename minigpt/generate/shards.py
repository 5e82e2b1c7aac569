"""Many prompts into a folder of shards: a job, in this process or on Ray."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.strategy_flags import samples
from minigpt.data.prompt_rows import PromptRow, RejectedRow, row_of
from minigpt.generate.job import flags_of, second_models, with_seed
from minigpt.generate.records import FIELDS, Written, record
from minigpt.generate.settings import GenerateSettings
from minigpt.jobs.blocks import Source
from minigpt.jobs.driver import Task, known_facts, run_job
from minigpt.jobs.flags import JobFlags
from minigpt.jobs.job import Work
from minigpt.jobs.output import Outcome
from minigpt.jobs.rows import Row
from minigpt.sampler.many import Answer, complete_many
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

KINDS = {
    "id": str, "prompt": str, "text": str, "prompt_tokens": [int], "tokens": [int], "token_strings": [str],
    "logprobs": [float], "finish_reason": str, "score": float, "seed": int, "prompt_index": int, "index": int,
    "model": str, "strategy": str,
}  # fmt: skip
TOP = {"top_logprobs": [[{"token": int, "string": str, "logprob": float}]]}
LARGEST_SEED = 2**63 - 1  # of Parquet's whole numbers
READS = ("id", "prompt", "max_new_tokens", "seed")


def write_shards(settings: GenerateSettings, flags: JobFlags) -> int:
    """Continues the prompts of `--prompts PATH` into `--out DIR`; the exit code.

    Raises:
        Failure: the prompts cannot be used, or the folder holds the output of another job.
    """
    assert flags.out is not None
    check(settings)
    settings = with_seed(settings, _seed(settings, known_facts(flags.out)))
    seed = settings.strategy.flags.seed if samples(settings.strategy.kind, settings.strategy.flags) else None
    facts = {flag: value for flag, value in flags_of(settings).items() if flag != "--json"}
    task = Task(
        "generate", "prompts", settings.model, flags, {**facts, **second_models(settings), "seed": seed}, Generation(settings),
        {**KINDS, **(TOP if settings.logprobs is not None or settings.top is not None else {})}, frozenset(FIELDS),
        quiet=settings.quiet,
    )  # fmt: skip
    return run_job(task, lambda: Source.of(
        str(settings.prompts_file), text="prompt", reads=READS, drops=frozenset({"id", "prompt"})
    ))  # fmt: skip


def check(settings: GenerateSettings) -> None:
    """Refuses what has no meaning for shards."""
    if settings.prompts_file is None:
        raise Failure(
            BAD_FLAGS, "--out needs --prompts PATH: a .jsonl, .parquet or .txt file, a folder or a glob"
        )
    if settings.output is not None:
        raise Failure(BAD_FLAGS, "--out writes a folder of shards, --output one file: leave one of them out")
    if (settings.strategy.flags.seed or 0) > LARGEST_SEED:
        raise Failure(
            BAD_FLAGS, f"--seed must be at most {LARGEST_SEED} with --out, got {settings.strategy.flags.seed}"
        )
    if settings.echo:
        raise Failure(
            BAD_FLAGS, "--echo has no effect with --out, whose shards have the prompts: leave it out"
        )


def _seed(settings: GenerateSettings, begun: dict[str, Any]) -> int | None:
    """The seed of a job that has none of its own: that which it began with, or a new one."""
    seed = begun.get("seed")
    if seed is None and samples(settings.strategy.kind, settings.strategy.flags):
        return secrets.randbits(32)
    return seed


def _prompt(row: Row, position: int) -> PromptRow | RejectedRow:
    """The prompt that a row stands for, or why it stands for none."""
    if row.reason:
        return RejectedRow(row.id, row.reason)
    one = row_of(row.values, row.id, position)
    if isinstance(one, PromptRow) and (one.seed or 0) > LARGEST_SEED:
        return RejectedRow(one.id, f"its seed exceeds {LARGEST_SEED}, the largest that a shard can hold")
    return one


@dataclass(frozen=True)
class Generation:
    """Continues prompts, once it has loaded the model."""

    settings: GenerateSettings

    def __call__(self) -> Work:
        model, tokenizer = self.settings.model.load()
        strategy = self.settings.strategy.build(self.settings.model, tokenizer)

        def work(rows: Sequence[Row], rows_before: int) -> Iterator[Outcome]:
            good = []
            for position, row in enumerate(rows):
                one = _prompt(row, position)
                if isinstance(one, RejectedRow):
                    yield Outcome(position, one.id, reason=one.reason)
                else:
                    good.append(one)
            for answer in self._answers(model, tokenizer, strategy, good):
                yield self._outcome(answer, tokenizer, strategy, rows_before)

        return work

    def _answers(
        self, model: GPT2, tokenizer: Tokenizer, strategy: Strategy, rows: Sequence[PromptRow]
    ) -> Iterator[Answer[PromptRow]]:
        s = self.settings
        return complete_many(
            model, tokenizer, rows, strategy, stop=s.stop, allow_special=s.allow_special, heal=s.heal, stride=s.stride,
            max_new_tokens=s.max_new_tokens, overflow=s.overflow, top_logprobs=s.top_logprobs,
        )  # fmt: skip

    def _outcome(
        self, answer: Answer[PromptRow], tokenizer: Tokenizer, strategy: Strategy, rows_before: int
    ) -> Outcome:
        """A row's records: what `--json` prints, but for timing, so that a shard is the same whenever it is made."""
        row, request = answer.row, answer.request
        if answer.error is not None or request is None:
            return Outcome(row.index, row.id, reason=str(answer.error))
        seed = strategy.seed_in_use if row.seed is None else row.seed
        records = []
        for i, completion in enumerate(answer.completions):
            written = Written(row.prompt, request, completion, rows_before + row.index, i, seed, {})
            fields = {"id": row.id, **record(written, self.settings, tokenizer)}
            records.append({name: value for name, value in fields.items() if name != "timing"})
        n_tokens = sum(len(completion.tokens) for completion in answer.completions)
        return Outcome(row.index, row.id, records, tokens=n_tokens)
