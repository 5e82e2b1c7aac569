"""One process or many: which rows each reads, how their results are summed, how a model is distributed."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from minigpt.model import GPT2

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # rank 0 may tokenise for long while the others wait


@dataclass(frozen=True)
class Processes:
    """The rank of this process and how many there are; one, unless torchrun started it."""

    rank: int = 0
    world_size: int = 1

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

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.world_size > 1:
            dist.barrier()


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
        with report_first_failure():  # inside, because losing the connection is a failure, too
            yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


class Whole:
    """A model that every process holds whole; several processes average their gradients (DDP)."""

    def __init__(self, model: GPT2, processes: Processes) -> None:
        self.model = model
        self.forward: nn.Module = DistributedDataParallel(model) if processes.world_size > 1 else model

    def last_of_step(self, last: bool) -> AbstractContextManager[None]:
        """Around a batch: gradients are exchanged after a step's last one only."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()

    def gathered(self) -> GPT2:
        """The model with all its weights in this process."""
        return self.model


class Sharded:
    """A model of which each process holds a shard of every tensor: PyTorch's FSDP2."""

    def __init__(self, model: GPT2) -> None:
        self.skeleton = copy.deepcopy(model).to("meta")
        self.model = model
        # named, or it would be over GPUs on a machine that has some, whatever --device says
        mesh = init_device_mesh(model.device.type, (dist.get_world_size(),))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        self.forward: nn.Module = model

    def last_of_step(self, last: bool) -> AbstractContextManager[None]:
        assert isinstance(self.forward, FSDPModule)
        self.forward.set_requires_gradient_sync(last)
        return nullcontext()

    def gathered(self) -> GPT2:
        """A copy with all its weights in this process; all processes must ask at the same time."""
        options = StateDictOptions(full_state_dict=True)
        self.skeleton.load_state_dict(get_model_state_dict(self.model, options=options), assign=True)
        return self.skeleton
