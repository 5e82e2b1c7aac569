"""Contrastive search: likely tokens that say something new."""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import pytest
import torch
from alone import in_a_batch_as_alone, texts
from fakes import FakeModel, counting, scrambled, tiny_gpt2
from torch.nn.functional import cosine_similarity
from traced import traced

from minigpt.cache import NoCache
from minigpt.cli import Failure
from minigpt.cli import strategy_flags as options
from minigpt.sampler import Greedy, generate, stream
from minigpt.sampler.api import run
from minigpt.sampler.events import Finished, TokenGenerated
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.contrastive import Contrastive

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [4], [0, 0, 3, 0]]
GPT2 = tiny_gpt2()
TABLE = FakeModel(scrambled(23))
MODELS = pytest.mark.parametrize("model", [GPT2, TABLE], ids=["gpt2", "table"])


def hidden(model: Any, text: list[int]) -> torch.Tensor:
    """The last hidden state of every token, read without a cache: (S, D)."""
    cache = NoCache(model.config) if model is GPT2 else model.new_cache(len(text))
    return model.hidden_states(torch.tensor([text]), cache)[0]


@torch.no_grad()
def by_the_paper(model: Any, prompt: list[int], n: int, alpha: float, k: int) -> list[int]:
    """Su et al. 2022, equation 5, every candidate's whole text read anew."""
    text = list(prompt)
    for _ in range(n):
        h = hidden(model, text)
        p = model.unembed(h[-1]).softmax(-1)
        values = {}
        for v in p.topk(k).indices.tolist():
            likeness = cosine_similarity(hidden(model, [*text, v])[-1:], h).max()
            values[v] = (1 - alpha) * p[v] - alpha * likeness
        text.append(max(values, key=lambda v: values[v]))
    return text[len(prompt) :]


@MODELS
@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.3, 3), (1.0, 5), (0.9, 7)])
def test_it_is_the_papers_search(model: Any, alpha: float, k: int) -> None:
    found = texts(model, PROMPTS, Contrastive(penalty_alpha=alpha, top_k=k), max_new_tokens=9)
    assert found == [by_the_paper(model, prompt, 9, alpha, k) for prompt in PROMPTS]
    assert found != texts(model, PROMPTS, Greedy(), max_new_tokens=9)


@MODELS
@pytest.mark.parametrize("strategy", [Contrastive(penalty_alpha=0), Contrastive(top_k=1)], ids=["alpha", "k"])
def test_at_its_limits_it_is_greedy(model: Any, strategy: Contrastive) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 12, "end_tokens": [2, 13], "top_logprobs": 2}
    for ours, greedy in zip(
        generate(model, PROMPTS, strategy, **limits), generate(model, PROMPTS, **limits), strict=True
    ):
        assert (ours[0].tokens, ours[0].finish_reason) == (greedy[0].tokens, greedy[0].finish_reason)
        assert ours[0].logprobs == pytest.approx(greedy[0].logprobs, abs=1e-5)
        assert [[t for t, _ in top] for top in ours[0].top_logprobs] == [
            [t for t, _ in top] for top in greedy[0].top_logprobs
        ]


def test_of_equals_the_first_is_taken() -> None:
    """In a wide row, where `topk` takes any; with alpha 0 as greedy does, else the first of equal worth."""
    flat = FakeModel(lambda text: [0.0, *[1.0] * 40])
    for alpha in (0.0, 0.5):
        assert texts(flat, [[3]], Contrastive(penalty_alpha=alpha), max_new_tokens=3) == [[1, 1, 1]]


class Rounding(FakeModel):
    """Each row of a batch is off in its last bits, by another amount, as a processor's kernels may be."""

    def hidden_states(self, tokens: Any, cache: Any) -> Any:
        x = super().hidden_states(tokens, cache)
        return x + 5e-7 * torch.rand(x.shape)

    def unembed(self, x: Any) -> Any:
        return x.round(decimals=3)


@pytest.mark.parametrize("seed", range(3))
def test_candidates_that_are_equal_but_for_rounding_are_equal(seed: int) -> None:
    torch.manual_seed(seed)
    flat = Rounding(lambda text: [0.0, *[1.0] * 40])
    banned = Contrastive(penalty_alpha=0.5, no_repeat_ngram_size=1)
    assert texts(flat, [[3]], Contrastive(penalty_alpha=0.5), max_new_tokens=3) == [[1, 1, 1]]
    assert texts(flat, [[3]], banned, max_new_tokens=3) == [[1, 2, 4]]


def test_more_candidates_than_tokens_are_all_of_them() -> None:
    found = texts(GPT2, PROMPTS, Contrastive(top_k=99), max_new_tokens=5)
    assert found == texts(GPT2, PROMPTS, Contrastive(top_k=23), max_new_tokens=5)


def test_it_goes_on_where_greedy_goes_round() -> None:
    """What it is for. After i the model likes i - 1 a little better than i + 1; its state is that liking."""
    model = FakeModel(lambda text: [{-1: 5.0, 1: 4.9}.get(token - text[-1], 0.0) for token in range(9)])
    assert texts(model, [[1]], Greedy(), max_new_tokens=6) == [[0, 1, 0, 1, 0, 1]]
    assert texts(model, [[1, 2]], Greedy(), max_new_tokens=6) == [[1, 0, 1, 0, 1, 0]]
    assert texts(model, [[1, 2]], Contrastive(top_k=2), max_new_tokens=6) == [[3, 4, 5, 6, 7, 8]]


def test_likeness_to_padding_counts_for_nothing() -> None:
    """To state 0 state 1 is opposed and 2 unrelated; but padding, here of state 2, is unrelated to 1, too."""
    states = {0: [1.0, 0, 0.5], 1: [-1.0, 0, -0.5], 2: [0, 1.0, 0]}
    model = FakeModel(lambda text: states[text[-1] if text else 2])
    strategy = Contrastive(penalty_alpha=0.5, top_k=3)
    assert texts(model, [[0]], strategy, max_new_tokens=1) == [[1]]
    assert texts(model, [[0], [2, 2, 2]], strategy, max_new_tokens=1)[0] == [1]


# What all strategies promise


@MODELS
@pytest.mark.parametrize(
    "strategy",
    [Contrastive(), Contrastive(penalty_alpha=0.9, top_k=7, repetition_penalty=1.8, min_new_tokens=3)],
)
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(model: Any, strategy: Contrastive) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": [2, 11, 13, 17]}
    batch = in_a_batch_as_alone(model, PROMPTS, strategy, **limits)
    assert {text.finish_reason for text in batch} == {"eos", "length"}


def test_tokens_come_one_pass_each() -> None:
    """One for the prompts; then the pass that weighs a token's candidates is also the one that reads it."""
    model = FakeModel(counting(10))
    tokens = stream(model, [0], Contrastive(penalty_alpha=0.1, top_k=3), max_new_tokens=4)
    assert [(next(tokens), len(model.reads)) for _ in range(4)] == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert model.reads == [(1, 1), (3, 1), (3, 1), (3, 1), (3, 1)]


def test_events_come_token_by_token() -> None:
    model = FakeModel(scrambled(9), end_tokens=[2, 3])
    reported: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for event in run(model, prepare(model, [[1], [4, 5, 6], [7, 7]], max_new_tokens=8), Contrastive()):
        if isinstance(event, TokenGenerated):
            reported[event.prompt_index].append(event.token)
        elif isinstance(event, Finished):
            assert reported[event.prompt_index] == event.completions[0].tokens


def test_logprobs_are_those_of_the_unprocessed_model() -> None:
    strategy = Contrastive(repetition_penalty=1.8, logit_bias={3: 4.0})
    ((text,),) = generate(GPT2, [[1, 2]], strategy, max_new_tokens=6, top_logprobs=23)
    logprobs = GPT2(torch.tensor([[1, 2, *text.tokens]])).log_softmax(-1)[0, 1:-1]
    expected = logprobs.gather(1, torch.tensor(text.tokens)[:, None])[:, 0].tolist()
    assert text.logprobs == pytest.approx(expected, abs=1e-4)
    assert text.score == pytest.approx(sum(expected), abs=1e-3)
    assert [
        dict(top)[token] for top, token in zip(text.top_logprobs, text.tokens, strict=True)
    ] == text.logprobs


def test_stop_ends_a_text() -> None:
    strategy = Contrastive(penalty_alpha=0.1)
    model = FakeModel(counting(10))
    ((text,),) = generate(model, [[2]], strategy, max_new_tokens=7, stop=lambda new: new[-2:] == [4, 5])
    assert (text.tokens, text.finish_reason) == ([3, 4, 5], "stop")


def test_what_the_processors_rule_out_is_no_candidate() -> None:
    """Though it be among the k likeliest, and a token unlike all others."""
    bans = {token: float("-inf") for token in range(2, 23)}
    ((text,),) = generate(
        GPT2, [[5]], Contrastive(penalty_alpha=1, top_k=9, logit_bias=bans), max_new_tokens=8
    )
    assert set(text.tokens) == {0, 1}


def test_the_probability_is_that_after_the_processors() -> None:
    """Ruling out token 0 leaves 1 sure of itself, but for the penalty of saying once more what was said."""
    model = FakeModel(lambda text: [3.0, 1.0, 0.9 if text[-1] == 2 else -3.0])
    strategy = Contrastive(logit_bias={0: float("-inf")}, top_k=2, penalty_alpha=0.5)
    ((text,),) = traced(model, [[1]], strategy, max_new_tokens=1)
    p = torch.tensor([1.0, -3.0]).softmax(-1)
    states = torch.tensor([[3.0, 1.0, -3.0], [3.0, 1.0, 0.9]])
    values = 0.5 * p - 0.5 * cosine_similarity(states, states[:1])
    (trace,) = text.traces
    assert text.tokens == [1 + int(values.argmax())]
    assert [(stage.stage, stage.removed) for stage in trace.stages] == [("LogitBias", 1), ("contrastive", 0)]
    assert trace.stages[0].probability == pytest.approx(p[text.tokens[0] - 1].item())
    assert trace.after.probability == pytest.approx(values.softmax(-1)[text.tokens[0] - 1].item())


# The window's edge


@MODELS
def test_to_the_windows_edge_as_if_there_was_none(model: Any) -> None:
    """All but the last token can be read there, and that one is then the likeliest."""
    window = model.config.n_positions
    prompts = [[1] * (window - 5), [2, 3]]
    within = texts(model, prompts, Contrastive(), max_new_tokens=5)
    beyond = texts(model, prompts, Contrastive(), max_new_tokens=6)
    assert [text[:5] for text in beyond] == within
    full = torch.tensor([prompts[0] + within[0]])
    x = model.hidden_states(full, NoCache(model.config) if model is GPT2 else model.new_cache(window))
    assert beyond[0][5] == model.unembed(x)[0, -1].argmax()
    assert beyond[1] == by_the_paper(model, prompts[1], 6, 0.6, 4)


@MODELS
def test_texts_that_reach_the_edge_leave_the_others_alone(model: Any) -> None:
    window = model.config.n_positions
    prompts = [[1, 2], [1] * (window - 2), [3] * window, [4, 5, 6]]
    limits: dict[str, Any] = {"max_new_tokens": 9, "overflow": "stop"}
    batch = texts(model, prompts, Contrastive(), **limits)
    assert batch == [texts(model, [prompt], Contrastive(), **limits)[0] for prompt in prompts]
    assert list(map(len, batch)) == [9, 3, 1, 9]
    assert batch[2] == texts(model, [prompts[2]], Greedy(), max_new_tokens=1)[0]


# What is refused, and the flags


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^penalty_alpha \(--penalty-alpha\) must be a number from 0 to 1, got {alpha}$"
    ):
        Contrastive(penalty_alpha=alpha)


@pytest.mark.parametrize("k", [0, -3])
def test_one_candidate_at_least(k: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^top_k \(--top-k\) must be a whole number from 1 to 1024, got {k}$"
    ):
        Contrastive(top_k=k)


@pytest.mark.parametrize("bias", [float("-inf"), float("nan")])
def test_a_text_for_which_no_token_is_left_is_told(bias: float) -> None:
    model = FakeModel(lambda text: [bias] * 5)
    with pytest.raises(ValueError, match=r"^no token is left to choose after 2 prompt tokens"):
        generate(model, [[1, 2]], Contrastive())


def chosen(*flags: str) -> str:
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy")
    options.add_flags(defaultdict(lambda: parser))
    args = parser.parse_args(flags)
    return repr(options.build_strategy(options.chosen_strategy(args), args, None)).partition("(")[0]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--penalty-alpha 0.6", "Contrastive"),
        ("--penalty-alpha 0.6 --top-k 4", "Contrastive"),
        ("--top-k 4", "Sample"),
        ("--dola-layers high", "DoLa"),
        ("--dola-layers 0,2 --relative-top 0.2 --top-p 0.9 --seed 3", "DoLa"),
        ("--amateur small", "ContrastiveDecoding"),
        ("--amateur small --amateur-temperature 0.5 --relative-top 0.2 --top-k 4", "ContrastiveDecoding"),
    ],
)
def test_flags_pick_the_strategy(flags: str, name: str) -> None:
    assert chosen(*flags.split()) == name


def test_what_it_does_not_support_is_reported() -> None:
    with pytest.raises(
        Failure,
        match=r"^--penalty-alpha and --temperature cannot be combined: no strategy has them all; leave one out",
    ):
        chosen("--penalty-alpha", "0.6", "--temperature", "0.7")
    with pytest.raises(Failure, match=r"^--temperature is not supported by contrastive, but by sample, "):
        chosen("--strategy", "contrastive", "--temperature", "0.7")
