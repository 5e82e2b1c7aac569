"""Greedy decoding and sampling: what is chosen, how often, and what is reported of it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from fakes import FakeModel, after_last, counting, scrambled, tiny_gpt2
from scipy.stats import chisquare
from torch import Tensor

from minigpt.sampler import Beam, BeamSample, Completion, Greedy, Sample, Strategy, generate
from minigpt.sampler.processors import TopK, TopP

NONE = float("-inf")
CHANCES = [0.4, 0.3, 0.15, 0.1, 0.05, 0.0]
STRATEGIES: list[Strategy] = [
    Greedy(),
    Sample(seed=1, num_return_sequences=3),
    Beam(num_beams=3, num_return_sequences=3),
    BeamSample(num_beams=3, num_return_sequences=3, seed=1),
]
BY_NAME = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)


def tokens_of(found: list[list[Completion]]) -> list[list[list[int]]]:
    return [[text.tokens for text in group] for group in found]


def assert_as_often_as(expected: dict[Any, float], drawn: list[Any]) -> None:
    """Seeds are fixed, so this cannot fail by bad luck; a skew of a few percent would."""
    counts = Counter(drawn)
    assert set(counts) <= {outcome for outcome, chance in expected.items() if chance > 0}
    possible = [outcome for outcome, chance in expected.items() if chance > 0]
    observed = [counts[outcome] for outcome in possible]
    assert chisquare(observed, [expected[outcome] * len(drawn) for outcome in possible]).pvalue > 0.01


# Greedy


def test_greedy_takes_the_likeliest_and_sampling_one_token_does_too() -> None:
    model, prompts = FakeModel(scrambled(9)), [[1], [2, 3], [4, 5, 6]]
    greedy = generate(model, prompts, max_new_tokens=6)
    for prompt, (text,) in zip(prompts, greedy, strict=True):
        for i, token in enumerate(text.tokens):
            logits = model.rule((*prompt, *text.tokens[:i]))
            assert logits[token] == max(logits)
    limits: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-6}]
    for options in limits:
        found = generate(model, prompts, Sample(seed=0, **options), max_new_tokens=6)
        assert tokens_of(found) == tokens_of(greedy), options


def test_ties_go_to_the_first() -> None:
    ((text,),) = generate(FakeModel(lambda text: [0.0, 1.0, 1.0]), [[0]], max_new_tokens=2)
    assert text.tokens == [1, 1]


# How often each token is drawn


def test_sampling_draws_each_token_as_often_as_the_model_says() -> None:
    """Each of the texts has a generator of its own, so this also shows that neighbouring seeds share nothing."""
    model = FakeModel(after_last({i: [*CHANCES[i:], *CHANCES[:i]] for i in range(6)}))
    (group,) = generate(model, [[0]], Sample(seed=3, num_return_sequences=2500), max_new_tokens=2)
    pairs = {(a, b): CHANCES[a] * [*CHANCES[a:], *CHANCES[:a]][b] for a in range(6) for b in range(6)}
    assert_as_often_as(pairs, [tuple(text.tokens) for text in group])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0.5}, [chance**2 for chance in CHANCES]),
        ({"temperature": 2.0}, [chance**0.5 for chance in CHANCES]),
        ({"top_k": 2}, [0.4, 0.3, 0, 0, 0, 0]),
        ({"top_p": 0.75}, [0.4, 0.3, 0.15, 0, 0, 0]),
        ({"min_p": 0.3}, [0.4, 0.3, 0.15, 0, 0, 0]),
        ({"temperature": 2.0, "top_k": 4, "top_p": 0.6}, [0.4**0.5, 0.3**0.5, 0, 0, 0, 0]),
        ({"logit_bias": {0: NONE}}, [0, 0.3, 0.15, 0.1, 0.05, 0]),
    ],
    ids=str,
)
def test_sampling_follows_the_processed_distribution(options: dict[str, Any], expected: list[float]) -> None:
    model = FakeModel(lambda text: torch.tensor(CHANCES).log().tolist())
    strategy = Sample(seed=5, num_return_sequences=1000, **options)
    (group,) = generate(model, [[0]], strategy, max_new_tokens=1)
    chances = {i: chance / sum(expected) for i, chance in enumerate(expected)}
    assert_as_often_as(chances, [text.tokens[0] for text in group])


# Seeds


def test_a_seed_gives_the_same_text_and_another_seed_another() -> None:
    model = FakeModel(scrambled(50, spread=0.1))
    once, again, other = (
        tokens_of(generate(model, [[1]], Sample(seed=seed), max_new_tokens=20)) for seed in (7, 7, 8)
    )
    assert once == again != other


@pytest.mark.parametrize("kind", [Sample, BeamSample])
def test_without_a_seed_there_is_one_to_repeat_with(kind: Any) -> None:
    model, strategy = FakeModel(scrambled(50, spread=0.1)), kind()
    assert isinstance(strategy.seed, int)
    assert strategy.seed != kind().seed
    first = generate(model, [[1]], strategy, max_new_tokens=20)
    assert first == generate(model, [[1]], strategy, max_new_tokens=20)
    assert first == generate(model, [[1]], kind(seed=strategy.seed), max_new_tokens=20)


def test_sampling_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    for strategy in STRATEGIES:
        generate(FakeModel(scrambled(9)), [[1]], strategy, max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_texts_of_a_prompt_leave_the_first_ones_as_they_were() -> None:
    model = FakeModel(scrambled(50, spread=0.1), end_tokens=[0, 1, 2])
    three, five = (
        {tuple(text.tokens) for text in generate(model, [[1]], Sample(seed=7, num_return_sequences=n))[0]}
        for n in (3, 5)
    )
    assert len(three) == 3 < len(five) == 5
    assert three < five


def test_texts_come_best_first() -> None:
    model = FakeModel(scrambled(50), end_tokens=[0, 1, 2, 3])
    for group in generate(model, [[1], [2]], Sample(seed=7, num_return_sequences=5)):
        scores = [text.score for text in group]
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)


# What is reported of a text


@BY_NAME
def test_logprobs_are_those_of_a_full_pass_of_the_unprocessed_model(strategy: Strategy) -> None:
    options = {"repetition_penalty": 1.5, "logit_bias": {3: 2.0}, "no_repeat_ngram_size": 2}
    strategy = type(strategy)(**{**vars(strategy), **options})
    model, prompts = tiny_gpt2(), [[1, 2, 3], [4], [5, 6, 7, 8]]
    found = generate(model, prompts, strategy, max_new_tokens=6, top_logprobs=4, end_tokens=[9, 10])
    for prompt, group in zip(prompts, found, strict=True):
        for text in group:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *text.tokens]]))[0, len(prompt) - 1 : -1]
            logprobs = logits.log_softmax(-1)
            expected = logprobs[range(len(text.tokens)), text.tokens]
            assert text.logprobs == pytest.approx(expected.tolist(), abs=1e-5)
            best = logprobs.topk(4)
            assert [[token for token, _ in top] for top in text.top_logprobs] == best.indices.tolist()
            values = [[value for _, value in top] for top in text.top_logprobs]
            assert torch.allclose(torch.tensor(values), best.values, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES[:2])
def test_the_score_is_the_sum_of_logprobs(strategy: Strategy) -> None:
    strategy = type(strategy)(**{**vars(strategy), "repetition_penalty": 3.0})
    for group in generate(FakeModel(scrambled(9)), [[1], [2]], strategy, max_new_tokens=5, end_tokens=[3]):
        assert [text.score for text in group] == [sum(text.logprobs) for text in group]


@BY_NAME
def test_results_are_plain_numbers_and_top_logprobs_only_if_asked_for(strategy: Strategy) -> None:
    for group in generate(tiny_gpt2(), [[1, 2]], strategy, max_new_tokens=3):
        for text in group:
            assert {type(token) for token in text.tokens} == {int}
            assert {type(value) for value in (*text.logprobs, text.score)} == {float}
            assert text.top_logprobs == []


def test_top_logprobs_of_a_small_vocabulary_are_all() -> None:
    ((text,),) = generate(FakeModel(scrambled(3)), [[1]], max_new_tokens=2, top_logprobs=10)
    assert [len(top) for top in text.top_logprobs] == [3, 3]


# Processors


@BY_NAME
def test_every_strategy_obeys_the_processors(strategy: Strategy) -> None:
    options: dict[str, Any] = {"bad_words": [[2], [1, 3]], "no_repeat_ngram_size": 2, "min_new_tokens": 3}
    strategy = type(strategy)(**{**vars(strategy), **options})
    model = FakeModel(scrambled(8), end_tokens=[0, 7])
    for prompt, group in zip([[1], [4, 1]], generate(model, [[1], [4, 1]], strategy), strict=True):
        for text in group:
            whole = [*prompt, *text.tokens]
            runs = list(pairwise(whole))
            assert 2 not in text.tokens
            assert (1, 3) not in runs
            assert len(set(runs)) == len(runs)
            assert len(text.tokens) > 3
            assert not {0, 7} & set(text.tokens[:-1])


@BY_NAME
def test_users_bring_their_own_processors(strategy: Strategy) -> None:
    """They see the whole text, prompt included and padding not, after the penalties, before the temperature."""
    seen: list[tuple[int, ...]] = []

    def only_odd(logits: Tensor, tokens: Tensor) -> Tensor:
        assert len(logits) == len(tokens)
        assert (logits[:, 0] == NONE).all(), "the logit bias comes first"
        assert logits.grad_fn is None
        seen.extend(map(tuple, tokens.tolist()))
        return logits.index_fill(1, torch.tensor([0, 2, 4]), NONE)

    strategy = type(strategy)(**{**vars(strategy), "processors": (only_odd,), "logit_bias": {0: NONE}})
    found = generate(FakeModel(scrambled(6)), [[4], [2, 4]], strategy, max_new_tokens=4)
    assert {token % 2 for group in found for text in group for token in text.tokens} == {1}
    assert {text for text in seen if text[-1] == 4} == {(4,), (2, 4)}  # 4 stands in the prompts alone


def test_own_processors_come_before_the_cut_offs() -> None:
    """TopK(1) as one's own leaves nothing for the temperature and a wide top_k to change."""
    model = FakeModel(scrambled(9))
    own = Sample(processors=(TopK(1), TopP(0.5)), temperature=50.0, top_k=8)
    assert tokens_of(generate(model, [[1]], own)) == tokens_of(generate(model, [[1]]))


@BY_NAME
@pytest.mark.parametrize("after", [0, 2])
def test_ruling_out_every_token_is_told(strategy: Strategy, after: int) -> None:
    def nothing_after(logits: Tensor, tokens: Tensor) -> Tensor:
        return logits if tokens.size(1) < 3 + after else torch.full_like(logits, NONE)

    strategy = type(strategy)(**{**vars(strategy), "processors": (nothing_after,)})
    message = r"^no token is left to choose after 3 prompt tokens: the options rule out every one"
    with pytest.raises(ValueError, match=message):
        generate(FakeModel(counting(6)), [[1, 2, 3], [3, 2, 1]], strategy, max_new_tokens=5)


@BY_NAME
def test_logits_that_are_no_numbers_are_told(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match=r"logits are not finite numbers, as float16 can cause\)"):
        generate(FakeModel(lambda text: [float("nan")] * 4), [[1]], strategy)
