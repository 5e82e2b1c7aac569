"""Induction forms while a small model learns: two layers do it, with a previous-token head below, and one cannot.

The period of each text is drawn at random: with one period for all, a head that looks back by position would do.
Blocks may hold a token twice: of tokens that are all different, the next is the one that was not seen for longest,
which a model learns instead. Not every seed finds the head soon: of seeds 0, 1 and 2, the third has none in STEPS steps.

Which head comes first depends on what is asked. Induction needs of the head below that the previous token be read,
not that it get all attention: the composition of the two by their weights and the first tenth of the rise in attention
to the previous token come before the induction head, and the rest long after it. So "no later" is said of what the
induction head is built on, and of the beginning; of half of the final share, it would be wrong. The thresholds were
chosen with these seeds in view: the test holds on to what was seen, and is no independent proof.

Source: Olsson et al. 2022: a phase change, in which the scores rise together; the order of learning from the top
down: Bietti et al. 2023, arXiv:2306.00802; one layer cannot: Sanford et al. 2024, arXiv:2408.14332.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt import GPT2, GPT2Config
from minigpt.interp import composition_score, edit, head_statistics, record_text

VOCAB, LENGTH, PERIODS = 32, 32, (5, 13)
STEPS, ROWS, LEARNING_RATE = 700, 64, 2e-3


def repeated_blocks(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """[BOS] and a random block, repeated; and which tokens can be known, as their predecessor was seen in the block.

    Shapes: (B, T + 1), (B, T)
    """
    periods = torch.randint(*PERIODS, (rows, 1), generator=generator)
    places = torch.arange(LENGTH)
    block = torch.randint(1, VOCAB, (rows, LENGTH), generator=generator)
    tokens = block.gather(1, places % periods)
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), tokens], 1), places > periods


def losses(model: GPT2, tokens: Tensor, known: Tensor) -> Tensor:
    """The mean loss of the tokens that can be known, in nats."""
    each = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return each[known.flatten()].mean()


def learned(
    n_layer: int, watch: Callable[[GPT2], None], seed: int = 0, steps: int = STEPS, every: int = 25
) -> float:
    """The loss at the end, of texts that were never seen; `watch` sees the model now and then."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=LENGTH + 1, n_embd=64, n_layer=n_layer, n_head=4, embd_pdrop=0.0,
        attn_pdrop=0.0, resid_pdrop=0.0, eos_token_id=None,
    )  # fmt: skip
    model, generator = GPT2(config), torch.Generator().manual_seed(seed + 1)
    adam = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50)
        loss = losses(model, *repeated_blocks(ROWS, generator))
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        if (step + 1) % every == 0:
            watch(model)
    with torch.no_grad():
        return float(losses(model, *repeated_blocks(256, torch.Generator().manual_seed(3))))


def not_the_previous(pattern: Tensor) -> Tensor:
    """Attention without the token before, and what is left made to sum to 1 again."""
    blind = pattern - pattern.diagonal(-1, -2, -1).diag_embed(-1)
    return blind / blind.sum(-1, keepdim=True)


def test_two_layers_learn_induction_and_never_without_previous_token_attention_below() -> None:
    """Where there is an induction head, it depends on layer 0's attention to the previous token from the first."""
    texts, _ = repeated_blocks(32, torch.Generator().manual_seed(2))
    course: list[tuple[float, float]] = []

    def best(model: GPT2) -> float:
        return float(head_statistics(record_text(model, texts, "blocks.*.attn.pattern")).induction[1].max())

    def watch(model: GPT2) -> None:
        with edit(model, "blocks.0.attn.pattern", not_the_previous):
            blind = best(model)
        course.append((best(model), blind))

    assert learned(2, watch) < 0.2
    assert course[0][0] < 0.2
    assert course[-1][0] > 0.7
    for induction, blind in course:
        if induction > 0.4:
            assert blind < induction / 2


def when(course: Sequence[float], share: float) -> int:
    """The place in a course at which so much of its whole rise is done."""
    goal = course[0] + share * (max(course) - course[0])
    return next(place for place, value in enumerate(course) if value >= goal)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_the_induction_head_is_built_on_comes_no_later(seed: int) -> None:
    texts, _ = repeated_blocks(32, torch.Generator().manual_seed(2))
    course: list[tuple[float, float, float]] = []

    def watch(model: GPT2) -> None:
        statistics = head_statistics(record_text(model, texts, "blocks.*.attn.pattern"))
        composition = max(
            composition_score(model, (0, below), (1, above), through="k")
            for below, above in product(range(4), repeat=2)
        )
        course.append(
            (composition, float(statistics.previous_token[0].max()), float(statistics.induction[1].max()))
        )

    learned(2, watch, seed=seed, steps=200, every=10)
    composition, previous, induction = zip(*course, strict=True)
    assert induction[0] < 0.2
    assert induction[-1] > 0.7
    assert previous[-1] > 2 * previous[0]
    for share in (0.1, 0.5):
        assert when(composition, share) <= when(induction, share)
    assert when(previous, 0.1) <= when(induction, 0.1)


def test_one_layer_does_not() -> None:
    assert learned(1, lambda model: None) > 0.5
