"""In-context scores: by hand on given losses, and on models of which it is known what they copy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt import GPT2, GPT2Config
from minigpt.evaluation.in_context import in_context_learning, induction, token_losses

CONFIG = GPT2Config(vocab_size=40, n_positions=64, n_embd=16, n_layer=1, n_head=2)


class Copier(nn.Module):
    """Expects what stood `period` tokens before the next one, from the second period on; guesses evenly before."""

    def __init__(self, period: int, sureness: float) -> None:
        super().__init__()
        self.config, self.device = CONFIG, torch.device("cpu")
        self.period, self.sureness = period, sureness

    def forward(self, tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, CONFIG.vocab_size)
        n = max(0, tokens.size(1) - self.period)
        logits[:, self.period :] = self.sureness * F.one_hot(tokens[:, 1 : n + 1], CONFIG.vocab_size)
        return logits


def test_losses_are_those_of_one_token_at_a_time() -> None:
    torch.manual_seed(0)
    model = GPT2(CONFIG).eval()
    tokens = torch.randint(40, (5, 12))
    losses = token_losses(model, tokens, batch_size=2)
    assert losses.shape == (5, 11)
    for row, i in ((0, 0), (3, 4), (4, 10)):
        logprobs = model(tokens[row : row + 1, : i + 1])[0, -1].log_softmax(-1)
        assert losses[row, i].item() == pytest.approx(-logprobs[tokens[row, i + 1]].item(), abs=1e-5)


def test_the_score_is_the_late_loss_minus_the_early_one() -> None:
    # token n costs n, or n + 7
    losses = torch.stack([torch.arange(2.0, 600.0), torch.arange(2.0, 600.0) + 7])
    assert in_context_learning(losses) == 450
    assert in_context_learning(losses, early=10, late=20, width=4) == 10
    assert in_context_learning(losses.flip(1)) == -450


def test_tokens_that_are_not_there() -> None:
    with pytest.raises(ValueError, match="losses of tokens 2 to 100 say nothing of 1 up to token 50 and 500"):
        in_context_learning(torch.zeros(1, 99))
    with pytest.raises(ValueError, match="say nothing of 50 up to token 50"):
        in_context_learning(torch.zeros(1, 599), width=50)


def test_whoever_copies_for_sure_gains_the_cost_of_an_even_guess() -> None:
    found = induction(Copier(20, sureness=100.0), 0, n_rows=4, length=20)
    assert found == pytest.approx(math.log(40), abs=1e-6)


def test_whoever_copies_from_elsewhere_gains_nothing() -> None:
    assert induction(Copier(64, sureness=100.0), 0, n_rows=4, length=20) == pytest.approx(0, abs=1e-6)
    torch.manual_seed(0)
    assert abs(induction(GPT2(CONFIG).eval(), 0, n_rows=4, length=20)) < 0.1


def test_a_sequence_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 x 32 tokens and the first do not fit: at most 64"):
        induction(GPT2(CONFIG).eval(), 0, length=32)
