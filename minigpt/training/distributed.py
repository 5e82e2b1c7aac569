"""One process or many: which rows each reads, how their results are summed, how a model is distributed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from minigpt.atomic import UNFINISHED
from minigpt.model import GPT2

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # rank 0 may tokenise for long while the others wait


class Disconnected(OSError):
    """Another process of the run is gone."""


@dataclass(frozen=True)
class Processes:
    """The rank of this process and how many there are, over all hosts; one, unless torchrun started it.

    Args:
        rank: over all hosts.
        world_size: the number of processes.
        local_rank: among those of this host.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes files and messages."""
        return self.rank == 0

    def share(self, numbers: range) -> range:
        """This process's share of some windows; all get equally many."""
        each = len(numbers) // self.world_size
        return numbers[self.rank * each : (self.rank + 1) * each]

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, element by element."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0, for all."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world_size > 1:
            dist.barrier()

    def in_turns(self, work: Callable[[], T]) -> T:
        """Does some work of which all but the first find the result: in a folder of their host, or one that all share.

        First rank 0, then the first process of each other host, then all others.
        """
        own = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for turn in range(3):
            if turn == own:
                result = work()
            self.wait()
        return result

    def check_shared(self, folder: Path) -> None:
        """Checks that a folder is the same one for all processes, on whichever host they are.

        Raises:
            ValueError: it is not.
        """
        if self.world_size == 1:
            return
        mark = folder / self.broadcast(f"{UNFINISHED}{uuid4().hex}")
        if self.is_main:
            mark.mkdir(parents=True)
        self.wait()
        seen = self.gather(mark.exists())
        if self.is_main:
            mark.rmdir()
        if not all(seen):
            raise ValueError(
                f"--out {folder} is another folder for {seen.count(False)} of {len(seen)} processes: "
                "name one that all hosts share"
            )


@contextmanager
def report_first_failure() -> Iterator[None]:
    """Lets only the first process that fails report why; the others exit without a message.

    They fail alike, as at a wrong flag, or because they have lost the connection to the first one.
    """
    store, rank, _ = next(rendezvous("env://"))
    try:
        yield
    except (Exception, KeyboardInterrupt):
        try:
            reporter = store.compare_set("minigpt/failed", "", str(rank))
        except RuntimeError:  # rank 0, which kept the store, has failed and is gone
            reporter = b""
        if reporter != str(rank).encode():
            raise SystemExit(1) from None
        raise


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Joins the processes that torchrun started; a process started by itself is the only one."""
    if "RANK" not in os.environ:
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        # Both inside, because losing the connection is a failure, too.
        with report_first_failure(), _disconnection():
            yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()


@contextmanager
def _disconnection() -> Iterator[None]:
    """Says in one line that another process is gone; gloo raises a plain RuntimeError, NCCL a class of its own."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise Disconnected(
            f"another process of this run is gone ({reason}); torchrun starts all again as often as --max-restarts "
            "says, afterwards use --resume"
        ) from error


class Replicated:
    """A model that every process holds whole; several processes average their gradients (DDP)."""

    def __init__(self, model: GPT2, processes: Processes) -> None:
        self.model = model
        self.forward: nn.Module = DistributedDataParallel(model) if processes.world_size > 1 else model

    def last_of_step(self, last: bool) -> AbstractContextManager[None]:
        """Around a batch: gradients are exchanged after a step's last one only."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()


class Sharded:
    """A model of which each process holds a shard of every tensor: PyTorch's FSDP2."""

    def __init__(self, model: GPT2) -> None:
        self.model = model
        # With the device's name, or it would be over GPUs on a machine that has some, whatever --device says.
        mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "next_logits")  # so that all processes together can generate, too
        self.forward: nn.Module = model

    def last_of_step(self, last: bool) -> AbstractContextManager[None]:
        """Around a batch: gradients are exchanged after a step's last one only."""
        assert isinstance(self.forward, FSDPModule)
        self.forward.set_requires_gradient_sync(last)
        return nullcontext()
