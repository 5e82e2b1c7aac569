"""Top-p, top-n-sigma, XTC and Mirostat: against oracles that follow their sources line by line."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from choices import kept
from fakes import FakeModel, scrambled
from torch import Tensor

from minigpt.sampler import BeamSample, Greedy, Sample, generate
from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.events import Request
from minigpt.sampler.processors import XTC, EtaCutoff, Mirostat, TopNSigma, TopP, chain
from minigpt.sampler.processors.mirostat import REMEMBERED

NONE = float("-inf")
V = 12


def random_logits(seed: int, rows: int = 1) -> Tensor:
    return 2 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------ top-p


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("keep", [1, 3])
def test_top_p_drops_the_beginning_of_the_sorted_row(dtype: torch.dtype, keep: int) -> None:
    """With and without equal logits, of which torch's own sort decides, as in transformers."""
    rows = 3 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    for logits in (rows.to(dtype), rows.round().to(dtype)):
        ranked, order = logits.sort()
        for p in (0.0, 0.3, 0.9, 0.999, 1.0):
            dropped = (ranked.softmax(-1).cumsum(-1) <= 1 - p) & (torch.arange(1000) < 1000 - keep)
            expected = logits.masked_fill(dropped.scatter(1, order, dropped), NONE)
            assert TopP(p, keep)(logits, torch.zeros(4, 1).long()).equal(expected)


# ------------------------------------------------------------------------------ top-n-sigma


@pytest.mark.parametrize("n", [0.1, 0.5, 1.0, 2.0, 50.0])
def test_top_n_sigma_measures_from_the_best_in_standard_deviations(n: float) -> None:
    for seed in range(20):
        row = random_logits(seed)
        row[0, :3] = NONE  # what is ruled out counts neither in the mean nor in the deviation
        rest = row[0, 3:].tolist()
        limit = max(rest) - n * statistics.pstdev(rest)
        assert kept(TopNSigma(n)(row, torch.tensor([[0]]))) == [
            [3 + i for i, logit in enumerate(rest) if logit >= limit]
        ]


def test_top_n_sigma_keeps_the_same_tokens_at_any_temperature() -> None:
    row = random_logits(0, rows=5)
    alike = {str(kept(TopNSigma(0.8)(row / t, torch.zeros(5, 1).long()))) for t in (0.01, 1.0, 100.0)}
    assert len(alike) == 1


@pytest.mark.parametrize("step", [TopNSigma(1.0), EtaCutoff(0.5), XTC(1.0), Mirostat(1.0)])
def test_one_token_or_none_stays_so(step: TopNSigma) -> None:
    rows = torch.full((2, V), NONE)
    rows[0, 4] = 1.5
    assert step(rows, torch.tensor([[1], [2]])).equal(rows)


# ------------------------------------------------------------------------------ XTC


def without_top_choices(row: list[float], threshold: float, keep: int) -> list[int]:
    total = sum(math.exp(logit) for logit in row)
    ranked = sorted(range(len(row)), key=lambda token: -row[token])
    likely = [token for token in ranked if math.exp(row[token]) / total >= threshold]
    dropped = likely[:-1]
    return sorted(set(range(len(row))) - set(dropped[: len(row) - keep]))


@pytest.mark.parametrize("keep", [1, 2, V - 1])
@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3, 1.0])
def test_xtc_drops_the_likely_ones_but_the_last(threshold: float, keep: int) -> None:
    for seed in range(20):
        row = random_logits(seed)
        found = kept(XTC(1.0, threshold, keep=keep)(row, torch.tensor([[0]])))
        assert found == [without_top_choices(row[0].tolist(), threshold, keep)]


def test_xtc_keeps_as_many_as_it_must_of_those_that_are_left() -> None:
    row = torch.tensor([[3.0, 2.9, 2.8, NONE, NONE]])
    assert kept(XTC(1.0, keep=2)(row, torch.tensor([[0]]))) == [[1, 2]]


def coins(xtc: XTC, n: int = 400) -> list[bool]:
    """At which new tokens top choices are excluded."""
    row = torch.tensor([[1.0, 0.9, -9.0]])
    start = xtc.prompt_length
    return [kept(xtc(row, torch.zeros(1, start + i).long())) != [[0, 1, 2]] for i in range(n)]


def test_the_coin_is_that_of_the_seed_the_text_and_the_new_token() -> None:
    plain = coins(XTC(0.3, stream=RandomStream(7, [1])))
    assert coins(XTC(0.3, stream=RandomStream(7, [1]), prompt_length=5)) == plain  # n counts new tokens
    streams = [RandomStream(8, [1]), RandomStream(7, [1], 1), RandomStream(7, [2])]
    others = [*(coins(XTC(0.3, stream=stream)) for stream in streams), [*plain[1:], False]]
    for other in (plain, *others):
        assert 80 < sum(other) < 160  # of 400: 120 expected, deviation 9
    for other in others:
        # 168 expected, deviation 10
        assert 120 < sum(a != b for a, b in zip(plain, other, strict=True)) < 220
    assert coins(XTC(1.0), 50) == [True] * 50
    assert coins(XTC(1e-9), 50) == [False] * 50


def test_each_text_of_a_prompt_has_coins_of_its_own() -> None:
    strategy = Sample(xtc_probability=0.5, xtc_threshold=0.2, seed=3)
    request = Request(prompt=(5, 6, 7, 8), max_new_tokens=9)
    (step,) = chain(strategy, request, index=6, keep=2)
    coins = RandomStream(3, [5, 6, 7, 8], 6, purpose="xtc")
    assert step == XTC(0.5, 0.2, step.stream, prompt_length=4, keep=2)
    assert [step.stream.uniform(n) for n in range(9)] == [coins.uniform(n) for n in range(9)]
    (drawn,) = chain(Sample(xtc_probability=0.5), request)
    assert isinstance(drawn, XTC)  # without a seed one is drawn, and kept


# ------------------------------------------------------------------------------ Mirostat


class Oracle:
    """Algorithm 2 as the paper has it: one number that each call changes, by the model's own surprise."""

    def __init__(self, tau: float, eta: float) -> None:
        self.tau, self.eta, self.mu = tau, eta, 2 * tau

    def offer(self, row: list[float]) -> dict[int, float]:
        total = sum(math.exp(logit) for logit in row)
        self.surprise = {token: -math.log2(math.exp(logit) / total) for token, logit in enumerate(row)}
        likeliest = min(self.surprise, key=self.surprise.__getitem__)
        left = [token for token, bits in self.surprise.items() if bits <= self.mu or token == likeliest]
        mass = sum(2 ** -self.surprise[token] for token in left)
        return {token: 2 ** -self.surprise[token] / mass for token in left}

    def choose(self, token: int) -> None:
        self.mu -= self.eta * (self.surprise[token] - self.tau)


def logits_after(text: tuple[int, ...]) -> list[float]:
    return scrambled(V, spread=2.0)(text)


def offer(step: Mirostat, *texts: tuple[int, ...]) -> list[list[int]]:
    logits = torch.tensor([logits_after(text) for text in texts])
    return kept(step(logits, torch.tensor(texts)))


@pytest.mark.parametrize(("tau", "eta"), [(1.0, 0.1), (2.0, 0.5), (2.5, 1.0), (3.3, 0.1)])
def test_mirostat_is_the_papers_algorithm(tau: float, eta: float) -> None:
    step, oracle, text = Mirostat(tau, eta), Oracle(tau, eta), (0,)
    sizes = set()
    for i in range(60):
        offered = oracle.offer(logits_after(text))
        assert offer(step, text) == [sorted(offered)]
        sizes.add(len(offered))
        token = sorted(offered)[(7 * i) % len(offered)]
        oracle.choose(token)
        text = (*text, token)
    assert len(sizes) > 1


def walked(step: Mirostat, text: tuple[int, ...], begin: int) -> list[list[int]]:
    """What is offered after each of the text's beginnings."""
    return [offer(step, text[:n])[0] for n in range(begin, len(text) + 1)]


def test_what_mirostat_offers_belongs_to_the_text() -> None:
    """Beams fork and change places, drafts are taken back, texts are asked for again: nothing changes."""
    prompt, settings = (1, 2), {"tau": 1.0, "eta": 0.9}
    one, other = (*prompt, 3, 4, 5, 6, 7, 8), (*prompt, 3, 4, 9, 0, 1, 2)
    expected = {text: walked(Mirostat(**settings), text, 2) for text in (one, other)}
    assert expected[one] != expected[other]
    beams = Mirostat(**settings)
    for i, n in enumerate(range(2, len(one) + 1)):
        texts = (one[:n], other[:n]) if i % 2 else (other[:n], one[:n])
        assert offer(beams, *texts) == [
            expected[one if i % 2 else other][i],
            expected[other if i % 2 else one][i],
        ]
    drafts = Mirostat(**settings)
    for i, n in enumerate(range(2, len(one) + 1)):
        for length in (1, 2, 3):  # a draft ahead, of tokens that were or were not on offer
            offer(drafts, one[:n] + (11, 0, 5)[:length])
        assert offer(drafts, one[:n]) == offer(drafts, one[:n]) == [expected[one][i]]


def test_mirostat_forgets_old_texts() -> None:
    step = Mirostat(1.0)
    for i in range(3 * REMEMBERED):
        offer(step, (i % V,) * (1 + i // V), (11,) * (1 + i // V))
    assert len(step._offers) <= 2 * REMEMBERED
    assert step == Mirostat(1.0)  # memory is no setting


@pytest.mark.parametrize("tau", [3.0, 3.5])
def test_mirostat_holds_the_perplexity_that_was_asked_for(tau: float) -> None:
    """That of the text under the model, 2 ** tau, which is what the paper is about; its best tokens alone have about 2.5 bits."""
    model = FakeModel(scrambled(64, spread=1.5), n_positions=512)
    ((written,),) = generate(model, [[0]], Sample(mirostat_tau=tau, seed=1), max_new_tokens=400)
    bits = [-logprob / math.log(2) for logprob in written.logprobs]
    assert statistics.mean(bits[50:]) == pytest.approx(tau, abs=0.1)


def test_without_mirostat_the_surprise_is_another() -> None:
    """Of 64 tokens these are about 4.4 bits each; or else the test above would show nothing."""
    rows = torch.tensor([scrambled(64, spread=1.5)((0, i)) for i in range(50)]).log_softmax(-1)
    assert 4 < float(-(rows.exp() * rows).sum(-1).mean()) / math.log(2) < 5


# ------------------------------------------------------------------------------ in use


@pytest.mark.parametrize(
    "options",
    [
        {"xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"mirostat_tau": 1.5, "mirostat_eta": 0.5},
        {"top_n_sigma": 0.5, "epsilon_cutoff": 0.01, "eta_cutoff": 0.1},
    ],
)
def test_a_batch_changes_nothing(options: dict[str, float]) -> None:
    model, prompts = FakeModel(scrambled(V)), [[1], [2, 3, 4], [5, 6], [1]]
    for strategy in (
        Sample(seed=1, num_return_sequences=2, **options),
        BeamSample(num_beams=3, seed=1, **options),
    ):
        batch = generate(model, prompts, strategy, max_new_tokens=8)
        alone = [generate(model, [prompt], strategy, max_new_tokens=8)[0] for prompt in prompts]
        assert [[text.tokens for text in group] for group in batch] == [
            [text.tokens for text in group] for group in alone
        ]


def test_a_tiny_tau_is_greedy_and_a_tiny_sigma_too() -> None:
    model = FakeModel(scrambled(V))
    (greedy,) = generate(model, [[1]], Greedy(), max_new_tokens=9)[0]
    for strategy in (Sample(mirostat_tau=1e-6), Sample(top_n_sigma=1e-6), Sample(epsilon_cutoff=0.999)):
        (text,) = generate(model, [[1]], strategy, max_new_tokens=9)[0]
        assert text.tokens == greedy.tokens
