"""Knowledge distillation: a model learns the next token of its text, and what other models, its teachers, expect there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from minigpt.model import GPT2
from minigpt.pretrained import load
from minigpt.tokenizer import Tokenizer
from minigpt.training.initial_model import InitialModel

# Shapes below:  B rows · T tokens · V vocab_size


class Distillation:
    """The targets of a student: in place of each next token, a distribution over all tokens.

    It is (1 - weight) on the text's own next token, plus weight times the mean of the teachers' probabilities, at
    temperature 1. As cross-entropy is linear in its target, the loss against it is

        (1 - weight) * cross-entropy with the text + weight * cross-entropy with the teachers,

    and the latter is the Kullback-Leibler divergence from the teachers to the student, plus the teachers' entropy, of
    which the student's gradient knows nothing.

    Args:
        teachers: models with the student's vocabulary; frozen and in evaluation mode from now on.
        weight: that of the teachers, above 0 and at most 1.
        autocast: the precision in which the teachers compute; that of the student.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; GPT-2 distilled: Sanh et al. 2019 (arXiv:1910.01108);
    several models of other seeds into one of their size: Kim et al. 2025 (arXiv:2509.14786).

    >>> from contextlib import nullcontext
    >>> from minigpt import GPT2Config
    >>> teachers = [GPT2(GPT2Config(vocab_size=5, n_positions=8, n_embd=4, n_layer=1, n_head=1)) for _ in range(2)]
    >>> targets = Distillation(teachers, 0.5, nullcontext)(torch.tensor([[3, 1, 4, 1]]))
    >>> targets.shape, targets.argmax(-1).tolist()  # at least half of each is on the next token
    (torch.Size([1, 3, 5]), [[1, 4, 1]])
    """

    def __init__(
        self, teachers: Sequence[GPT2], weight: float, autocast: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.weight, self.autocast = weight, autocast

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The distributions to be learned, in float32, one for each token but the first: (B, T + 1)  ->  (B, T, V)."""
        inputs, next_tokens = rows[:, :-1], rows[:, 1:]
        targets = torch.zeros(*inputs.shape, self.teachers[0].config.vocab_size, device=rows.device)
        targets.scatter_(-1, next_tokens.unsqueeze(-1), 1 - self.weight)
        for teacher in self.teachers:
            with self.autocast():
                logits = teacher(inputs)
            probabilities = torch.softmax(logits, dim=-1, dtype=torch.float32)
            targets.add_(probabilities, alpha=self.weight / len(self.teachers))
        return targets


def load_teachers(names: Sequence[str], student: InitialModel, context: int) -> dict[str, GPT2]:
    """The teachers by their names: folders, or names as of `minigpt.load`.

    Args:
        names: of the teachers.
        student: whose tokens they must read.
        context: how many tokens they must read at once.

    Raises:
        OSError: a model does not exist.
        ValueError: it cannot teach this student.
    """
    teachers = {}
    for name in names:
        try:
            teacher, tokenizer = load(name)
        except OSError as error:
            raise OSError(f"--teacher: {error}") from error
        _check(name, teacher, tokenizer, student, context)
        teachers[name] = teacher
    return teachers


def _check(name: str, teacher: GPT2, tokenizer: Tokenizer, student: InitialModel, context: int) -> None:
    """Refuses a teacher whose probabilities are not of the student's tokens, or that cannot read as many."""
    if teacher.quantization:
        raise ValueError(
            f"--teacher {name} has {teacher.quantization} weights, which are for inference: use the original"
        )
    if tokenizer.fingerprint() != student.tokenizer.fingerprint():
        or_begin = (
            "" if student.base else f"begin with --tokenizer {name}, or "
        )  # --init has a tokenizer already
        raise ValueError(
            f"--teacher {name} has another tokenizer than this run, and its probabilities are of its own tokens: "
            f"{or_begin}give a teacher with this run's tokenizer"
        )
    theirs, ours = teacher.config.vocab_size, student.model.config.vocab_size
    if theirs != ours:
        raise ValueError(
            f"--teacher {name} has a vocabulary of {theirs:,}, the model to train one of {ours:,}: "
            "give a teacher with as many tokens"
        )
    if teacher.config.n_positions < context:
        longest = teacher.config.n_positions
        raise ValueError(
            f"--teacher {name} has a context length of {longest}, less than this run's {context}: "
            f"add --context {longest}, or give another teacher"
        )
