"""What a training run will need, worked out from its shape before it is started: memory in each process, and time.

The formulas are on docs/scale.md, where `scripts/scale.py` compares them with what this machine needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from minigpt.config import GPT2Config
from minigpt.training.hardware import forward_flops, training_flops

FLOAT32, BFLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class Plan:
    """How a model is to be trained.

    Args:
        config: its shape; every sequence fills the context length.
        rows: sequences in a batch of one process, --batch-size / processes.
        accumulate: such batches for each step.
        processes: which share weights and optimiser among them (--shard), one on each GPU.
        dtype: of matrix products, "bfloat16" or "float32"; weights are float32.
        recompute: --gradient-checkpointing.
        teachers: the shapes of --teacher, for distillation.
    """

    config: GPT2Config
    rows: int
    accumulate: int = 1
    processes: int = 1
    dtype: str = "bfloat16"
    recompute: bool = False
    teachers: tuple[GPT2Config, ...] = ()

    @property
    def tokens(self) -> int:
        """How many a process reads at once."""
        return self.rows * self.config.n_positions

    @property
    def tokens_of_step(self) -> int:
        """How many all processes read in a step."""
        return self.tokens * self.accumulate * self.processes

    @property
    def other_parameters(self) -> int:
        """Outside the blocks: embeddings, the last norm, an untied head."""
        return self.config.n_parameters - self.config.n_layer * self.config.block_parameters


class Memory(NamedTuple):
    """Bytes in each process when they are most, at the beginning of a backward pass.

    (With fewer tokens at once than the width, gradients of the embeddings may be more, at its end.)

    Args:
        state: the process's share of weights, gradients, and AdamW's two averages.
        gathered: what it holds of the others' shares at that time.
        copies: of weights in bfloat16, which the backward pass will need.
        activations: of the blocks and the last norm, kept for the backward pass.
        logits: and, in float32, their log-softmax, its gradient, and theirs.
        teachers: all their weights, and in float32 the distributions that are to be learned from them.
    """

    state: int
    gathered: int
    copies: int
    activations: int
    logits: int
    teachers: int

    @property
    def total(self) -> int:
        return sum(self)


def memory(plan: Plan) -> Memory:
    """The most memory that each process will need for a step with AdamW, without dropout, beyond torch itself.

    >>> round(memory(Plan(GPT2Config(), rows=8)).total / 2**30, 1)  # the smallest GPT-2, on one GPU
    10.0
    """
    c = plan.config
    blocks = 1 if plan.recompute else c.n_layer  # whose copies are there at a time
    block = 4 * c.n_embd**2 + 2 * c.n_embd * c.mlp_dim
    matrices = blocks * block + c.vocab_size * c.n_embd
    return Memory(
        state=4 * FLOAT32 * c.n_parameters // plan.processes,
        gathered=_gathered(plan),
        copies=0 if plan.dtype == "float32" else BFLOAT16 * matrices,
        activations=_activations(plan),
        logits=(_size(plan) + 3 * FLOAT32) * c.vocab_size * plan.tokens,
        teachers=_teachers(plan),
    )


def _teachers(plan: Plan) -> int:
    """Weights that no process shares, and what the mean of the teachers' probabilities takes, however many they are."""
    if not plan.teachers:
        return 0
    weights = sum(teacher.n_parameters for teacher in plan.teachers)
    return FLOAT32 * (weights + plan.config.vocab_size * plan.tokens)


def _activations(plan: Plan) -> int:
    c = plan.config
    norm = plan.tokens * ((FLOAT32 + _size(plan)) * c.n_embd + 2 * FLOAT32)
    if not plan.recompute:
        return c.n_layer * block_activations(plan) + norm
    inputs = FLOAT32 * c.n_embd * c.n_layer * plan.tokens
    free = 3 * FLOAT32 * c.vocab_size * plan.tokens  # all but the logits, when a block is computed again
    return inputs + max(norm, block_activations(plan) - free)


def _gathered(plan: Plan) -> int:
    """Weights and gradients of other processes that FSDP has fetched: embeddings, this block, and the next."""
    if plan.processes == 1:
        return 0
    return 2 * FLOAT32 * plan.other_parameters + 3 * FLOAT32 * plan.config.block_parameters


def block_activations(plan: Plan) -> int:
    """Bytes that one block keeps for its backward pass.

    Of each token: x before each norm in float32; in the dtype of products both norms' results, queries, keys,
    values, attention's result, and the MLP's hidden layer before and after its activation; the norms' means and
    deviations, and attention's normaliser for each head, in float32.
    """
    c = plan.config
    for_products = (2 + 3 + 1) * c.n_embd + 2 * c.mlp_dim
    return plan.tokens * (FLOAT32 * (2 * c.n_embd + 4 + c.n_head) + _size(plan) * for_products)


def _size(plan: Plan) -> int:
    return FLOAT32 if plan.dtype == "float32" else BFLOAT16


class Seconds(NamedTuple):
    """Of one step: computing, and fetching and adding up what is sharded; both go on at the same time."""

    computing: float
    communicating: float

    @property
    def total(self) -> float:
        return max(self)


def seconds(plan: Plan, flops_per_second: float, bytes_per_second: float) -> Seconds:
    """How long a step will take.

    Every batch fetches all weights for its forward pass and again for its backward pass; the gradients are
    added up once a step. Recomputing costs a forward pass more, a teacher one of its own.

    Args:
        plan: what is trained.
        flops_per_second: that a process reaches: its peak, times a utilisation (MFU).
        bytes_per_second: from each process to the others.

    >>> plan = Plan(GPT2Config(), rows=8, accumulate=8, processes=8)
    >>> seconds(plan, flops_per_second=400e12, bytes_per_second=50e9)  # doctest: +ELLIPSIS
    Seconds(computing=0.14..., communicating=0.14...)
    """
    c, others = plan.config, (plan.processes - 1) / plan.processes
    forward_only = [*plan.teachers, c] if plan.recompute else plan.teachers
    flops = training_flops(c, c.n_parameters, c.n_positions)
    flops += sum(forward_flops(each, each.n_parameters, c.n_positions) for each in forward_only)
    n_bytes = FLOAT32 * c.n_parameters * (2 * plan.accumulate + 1) * others
    return Seconds(plan.tokens * plan.accumulate * flops / flops_per_second, n_bytes / bytes_per_second)
