"""Validation: how well a model predicts text that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.data.token_file import TokenFile
from minigpt.data.windows import CircularTokens
from minigpt.evaluation.perplexity import Score
from minigpt.tokenizer import Tokenizer
from minigpt.training.distributed import Processes


class Validation:
    """Windows of a held-out text, side by side, the same ones each time.

    The documents are joined, as in training, so that a window may hold the end of one and the beginning of
    the next; `minigpt.score` reads each document alone. If the text has more than `most` tokens, windows
    are taken at equal distances.

    Args:
        tokens: the held-out documents.
        length: the context length.
        most: how many tokens to read, about.
        tokenizer: knows how many bytes each token is.

    Raises:
        ValueError: the text is too short for anything to be predicted.
    """

    def __init__(self, tokens: TokenFile, length: int, most: int, tokenizer: Tokenizer) -> None:
        joined = CircularTokens(tokens.ids, tokens.spans)
        if len(joined) < 2:
            raise ValueError("the validation text is a single token: hold out more, or give a file as --val")
        self.length = min(length, len(joined) - 1)
        n = (len(joined) - 1) // self.length
        chosen = np.unique(np.linspace(0, n - 1, max(1, min(n, most // self.length))).astype(np.int64))
        rows = [joined.read(int(i) * self.length, self.length + 1) for i in chosen]
        self.windows = torch.from_numpy(np.stack(rows).astype(np.int64))
        self.n_tokens = self.windows[:, 1:].numel()
        sizes = torch.tensor([len(spelled or b"") for spelled in tokenizer.token_bytes()])
        self.n_bytes = int(sizes[self.windows[:, 1:]].sum())

    @torch.no_grad()
    def score(
        self,
        model: nn.Module,
        batch_size: int,
        device: torch.device,
        processes: Processes,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> Score:
        """The model's loss on all windows; the ranks share the work."""
        batches = torch.split(self.windows, batch_size)
        nats = torch.zeros((), device=device)
        model.eval()
        for first in range(0, len(batches), processes.world_size):
            # A sharded model must be called by all ranks at once: one without a batch left reads one for nothing.
            own = first + processes.rank
            batch = batches[own % len(batches)].to(device)
            with autocast():
                logits = model(batch[:, :-1])
            nats += sum_loss(logits, batch[:, 1:]) * (own < len(batches))
        model.train()
        return Score(processes.total(nats).item(), self.n_tokens, self.n_bytes, n_words=0)


def sum_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum of every target's negative log-probability, in float32.

    Shapes: logits (B, T, V), targets (B, T), or (B, T, V) where each is a distribution over tokens  ->  ()
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(0, 1), reduction="sum")
