"""The flags of a job: where its output goes, and where it runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Any

from minigpt.atomic import named_folder
from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.model_flags import ModelFlags
from minigpt.jobs.extras import require
from minigpt.jobs.on_ray import LOCAL, RayCluster
from minigpt.options import check_count, flag_of

FORMATS = ("parquet", "jsonl")
SHARD_ROWS = 1000


@dataclass(frozen=True)
class JobFlags:
    """What is asked of a job; the fields are the flags."""

    out: str | None = None  # None: no job
    format: str | None = None  # None: as the input
    shard_rows: int | None = None  # None: as the job had it that goes on, or SHARD_ROWS
    ray: str | None = None  # None: in this process
    workers: int | None = None  # None: as many as Ray has room for

    @classmethod
    def of(cls, args: argparse.Namespace) -> JobFlags:
        """Those of a command line.

        Raises:
            Failure: one has a value that it cannot have, or has no effect without another.
        """
        flags = cls(**{field.name: getattr(args, field.name) for field in fields(cls)})
        for name in ("format", "shard_rows", "ray"):
            if getattr(flags, name) is not None and flags.out is None:
                flag = flag_of(name)
                raise Failure(
                    BAD_FLAGS, f"{flag} has no effect without --out DIR: add it, or leave {flag} out"
                )
        if flags.workers is not None and flags.ray is None:
            raise Failure(BAD_FLAGS, "--workers has no effect without --ray: add it, or leave --workers out")
        for flag, value in (("--shard-rows", flags.shard_rows), ("--workers", flags.workers)):
            check_count(flag, value)
        if flags.out is not None:
            named_folder("--out", flags.out)
        flags.check_extras()
        return flags

    def check_extras(self) -> None:
        """Refuses what needs a package that is not installed."""
        try:
            if self.ray is not None:
                require("ray", "ray", "--ray")
                require("pandas", "ray", "--ray")  # which Ray Data imports
            if self.format == "parquet":
                require("pyarrow", "data", "--format parquet")
        except ValueError as error:
            raise Failure(BAD_FLAGS, error) from error

    def cluster(self, model: ModelFlags) -> RayCluster | None:
        """Where Ray computes: a worker takes a GPU, or as many CPUs as it has threads; None without Ray."""
        if self.ray is None:
            return None
        return RayCluster(self.ray, self.workers, cpus=model.threads or 1, gpus=int(model.device == "cuda"))


def add_job_flags(group: Any, default_format: str) -> None:
    """Adds the flags that `JobFlags` reads."""
    group.add_argument(
        "--out", metavar="DIR",
        help="write shards into DIR, a folder or a URL such as s3://bucket/dir; given again after an interruption, "
        "the command resumes where it stopped",
    )  # fmt: skip
    group.add_argument(
        "--format", choices=FORMATS, help=f"with --out: the format of the shards (default: {default_format})"
    )
    group.add_argument(
        "--shard-rows",
        type=int,
        metavar="N",
        help=f"with --out: rows of the input per shard (default: {SHARD_ROWS:,})",
    )
    group.add_argument(
        "--ray", nargs="?", const=LOCAL, metavar="ADDRESS",
        help="with --out: compute by Ray Data on the cluster at ADDRESS, or on this machine; the results are the same",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=int, metavar="N",
        help="with --ray: workers, each with the model (default: one per GPU with --device cuda; else "
        "one per core, or with --threads N one per N cores)",
    )  # fmt: skip
