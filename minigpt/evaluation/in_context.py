"""How much a model makes of what it has read in the same context: later tokens, and repeated ones, should cost less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from minigpt.model import GPT2

# Shapes below:  B rows · T tokens

EARLY, LATE = 50, 500  # the tokens that are compared, counted from 1


@torch.inference_mode()
def token_losses(model: GPT2, tokens: Tensor, batch_size: int = 8) -> Tensor:
    """The loss of every token but the first, in nats.

    Shapes: (B, T)  ->  (B, T - 1)
    """
    parts = []
    for rows in torch.split(tokens.to(model.device), batch_size):
        logits = model(rows[:, :-1]).float()
        parts.append(F.cross_entropy(logits.mT, rows[:, 1:], reduction="none"))
    return torch.cat(parts)


def in_context_learning(losses: Tensor, early: int = EARLY, late: int = LATE, width: int = 1) -> float:
    """The in-context learning score: the loss at a late token minus that at an early one, in nats; negative is better.

    Args:
        losses: as from `token_losses`, of texts that begin where the rows do: (B, T - 1).
        early: which token, counted from 1; the first is never predicted.
        late: which token.
        width: how many tokens up to and including each are averaged; 1 is the published definition, more are steadier.

    Raises:
        ValueError: the rows are shorter than `late`, or there are not `width` tokens before `early`.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads": the 500th token minus the 50th.

    >>> in_context_learning(torch.tensor([[5.0, 4.0, 3.0, 1.0]]), early=2, late=5)
    -4.0
    """
    if late > losses.size(1) + 1 or early - width < 1:
        raise ValueError(
            f"losses of tokens 2 to {losses.size(1) + 1} say nothing of {width} up to token {early} and {late}: "
            "give longer texts, or other tokens"
        )
    # Token n, counted from 1, is predicted at index n - 2.
    at = [losses[:, token - 1 - width : token - 1].double().mean() for token in (early, late)]
    return float(at[1] - at[0])


def induction(model: GPT2, first: int, n_rows: int = 32, length: int = 100, seed: int = 0) -> float:
    """How many nats a random sequence costs less when it comes a second time: the mean over the second half's tokens.

    Nothing but copying helps here: a model that does not copy scores 0, one that copies for sure scores ln(vocab_size)
    or more, for random tokens cost more than an even guess.

    Args:
        model: in evaluation mode.
        first: the token that every row begins with; the end-of-text token, as a rule.
        n_rows: how many sequences.
        length: tokens of a sequence, which stands twice in its row.
        seed: of the sequences.

    Raises:
        ValueError: two sequences do not fit into the context length.

    Source: after Olsson et al. 2022, "In-context Learning and Induction Heads", on repeated random tokens.
    """
    if 2 * length + 1 > model.config.n_positions:
        raise ValueError(f"2 x {length} tokens and the first do not fit: at most {model.config.n_positions}")
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(model.config.vocab_size, (n_rows, length), generator=generator)
    rows = torch.cat([torch.full((n_rows, 1), first), once, once], dim=1)
    losses = token_losses(model, rows)
    # The second sequence's first token cannot be known; nor can the first one's.
    return float((losses[:, 1:length] - losses[:, length + 1 :]).double().mean())
