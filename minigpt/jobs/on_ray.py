"""The same job by Ray Data: an actor pool that holds the model once per worker, on one machine or on many.

What travels is which block to do and how it ended. The workers read and write the files themselves, so the paths
must mean the same on every node. Ray does a dead worker's block again.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from minigpt.cli import BAD_FLAGS, FAILED, Failure
from minigpt.errors import InvalidRequest
from minigpt.jobs.blocks import Block
from minigpt.jobs.job import Job, Report, Worker
from minigpt.jobs.output import Done
from minigpt.lazy import ray, ray_data

LOCAL = "local"  # the address that starts Ray on this machine
STDERR = 2  # its number among the files of a process
PATIENCE = 10.0  # seconds until a cluster that does not answer counts as not there


@dataclass(frozen=True)
class RayCluster:
    """Where to compute: the cluster's address, how many workers, and what each of them takes."""

    address: str
    workers: int | None = None  # None: as many as the cluster has room for
    cpus: int = 1
    gpus: int = 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Joins the cluster, or starts one on this machine, and leaves it at the end.

        Raises:
            OSError: it cannot be reached.
        """
        # A cluster that starts here sends no statistics, and its core's remarks do not stand among ours on stderr.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        host, _, port = self.address.rpartition("/")[2].rpartition(":")
        try:
            if host and port.isdecimal():  # Ray itself would try for minutes
                socket.create_connection((host, int(port)), PATIENCE).close()
            with _nothing_on_stderr():  # Ray's core says there how it logs; what goes wrong is raised
                ray.init(
                    address=self.address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"Ray at {self.address}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()

    @property
    def n_workers(self) -> int:
        if self.workers is not None:
            return self.workers
        there = ray.cluster_resources()
        room = there.get("GPU", 0) // self.gpus if self.gpus else there.get("CPU", 1) // self.cpus
        return max(1, int(room))


@contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """Keeps what libraries in C write to stderr from it."""
    with ExitStack() as stack:
        with suppress(OSError):  # it is closed
            kept, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, STDERR)
            os.close(nowhere)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, STDERR)
        yield


class RayWorker:
    """One worker of the pool; it loads the model with its first block, so that a failure has a place to go."""

    def __init__(self, job: Job, directory: str) -> None:
        with suppress(OSError):  # relative names of models mean there what they mean here
            os.chdir(directory)
        self._job = job
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self._worker = self._worker or self._job.worker()
            return {**self._worker.do(Block(**row))._asdict(), "code": 0, "error": ""}
        except (Failure, InvalidRequest, OSError) as error:  # for the driver, which reports them
            code = getattr(error, "code", BAD_FLAGS if isinstance(error, InvalidRequest) else FAILED)
            return {**Done(row["number"], 0, 0, 0, 0)._asdict(), "code": code, "error": str(error)}


def run_on_ray(job: Job, blocks: Sequence[Block], cluster: RayCluster, report: Report) -> Iterator[Done]:
    """Does the blocks on a cluster; yields how each ended, in the order in which they do.

    Raises:
        OSError: the cluster cannot be reached.
        Failure: a worker could not load the model, read a file or write one.
    """
    with cluster.joined():
        context = ray_data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        n = min(cluster.n_workers, len(blocks))
        rows = [block._asdict() for block in blocks]
        ends = ray_data.from_items(rows, override_num_blocks=len(rows)).map(
            RayWorker, fn_constructor_args=(job, os.getcwd()), num_cpus=cluster.cpus, num_gpus=cluster.gpus,
            compute=ray_data.ActorPoolStrategy(min_size=1, max_size=n, initial_size=n),
        )  # fmt: skip
        for row in ends.iter_rows():
            code, error = row.pop("code"), row.pop("error")
            if error:
                raise Failure(code, error)
            done = Done(**row)
            report(done.read)
            yield done
