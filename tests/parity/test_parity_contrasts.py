"""What contrastive search and DoLa are made of, against transformers' own hidden states.

transformers 5.23 has both methods only as remote code, so the searches are recomputed here, by the papers,
from the outputs of its GPT2LMHeadModel.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from reference import pair
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import GPT2LMHeadModel

from minigpt import GPT2
from minigpt.cache import NoCache
from minigpt.sampler import Strategy, generate
from minigpt.sampler.strategies.contrastive import Contrastive
from minigpt.sampler.strategies.dola import DoLa

PROMPTS = [[3, 4, 5], [7, 8, 9, 1, 2, 3], [60]]
N_NEW = 9


@cache
def models() -> tuple[GPT2, GPT2LMHeadModel]:
    with TemporaryDirectory() as directory:
        return pair(Path(directory), spread=0.3, n_layer=6)


@torch.no_grad()
def their_states(text: list[int]) -> list[Tensor]:
    """Every layer's state after every token, all through the final norm, as their last one is: each (S, D)."""
    theirs = models()[1]
    *early, last = theirs(torch.tensor([text]), output_hidden_states=True).hidden_states
    return [theirs.transformer.ln_f(x)[0] for x in early] + [last[0]]


def texts(strategy: Strategy) -> list[list[int]]:
    found: Any = generate(models()[0], PROMPTS, strategy, max_new_tokens=N_NEW, end_tokens=[])
    return [group[0].tokens for group in found]


def test_residuals_are_their_hidden_states() -> None:
    ours = models()[0]
    for text in PROMPTS:
        with torch.no_grad():
            streams = ours.lens_states(torch.tensor([text]), NoCache(ours.config))[:, 0]
        torch.testing.assert_close(streams, torch.stack(their_states(text)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.3, 6)])
def test_contrastive_search(alpha: float, k: int) -> None:
    def step(text: list[int]) -> int:
        h = their_states(text)[-1]
        best = models()[1].lm_head(h[-1]).softmax(-1).topk(k)
        likeness = [
            cosine_similarity(their_states([*text, v])[-1][-1:], h).max() for v in best.indices.tolist()
        ]
        values = (1 - alpha) * best.values - alpha * torch.stack(likeness)
        return int(best.indices[values.argmax()])

    assert texts(Contrastive(penalty_alpha=alpha, top_k=k)) == [by(step, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(("asked", "layers"), [("high", [3, 5]), ("low", [2]), ([1, 4], [1, 4])])
def test_dola(asked: Any, layers: list[int]) -> None:
    def step(text: list[int]) -> int:
        p = models()[1].lm_head(torch.stack([x[-1] for x in their_states(text)])).double().softmax(-1)
        last = p[-1]
        middles = {j: (last + p[j]) / 2 for j in layers}
        apart = {j: sum((q * (q / m).log()).sum() for q in (last, p[j])) for j, m in middles.items()}
        early = p[max(layers, key=lambda j: apart[j])]
        return int((last / early * (last >= 0.1 * last.max())).argmax())

    assert texts(DoLa(dola_layers=asked)) == [by(step, prompt) for prompt in PROMPTS]


@torch.no_grad()
def by(step: Any, prompt: list[int]) -> list[int]:
    text = list(prompt)
    for _ in range(N_NEW):
        text.append(step(text))
    return text[len(prompt) :]
