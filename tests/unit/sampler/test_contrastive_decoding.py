"""Contrastive decoding: the model's prediction against a weaker model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alone import in_a_batch_as_alone, texts
from fakes import FakeModel, after_last, counting, scrambled, tiny_gpt2
from torch import Tensor
from traced import traced

from minigpt.cli import Failure
from minigpt.cli import strategy_flags as options
from minigpt.sampler import Greedy, PromptTooLong, Sample, generate
from minigpt.sampler.strategies.contrastive_decoding import ContrastiveDecoding

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [4], [0, 0, 3, 0]]
EXPERT = tiny_gpt2(n_layer=3)
AMATEUR = tiny_gpt2(seed=1, n_layer=1, n_embd=8, n_positions=20)
TABLES = FakeModel(scrambled(23)), FakeModel(scrambled(23, seed=1))
MODELS = pytest.mark.parametrize(("model", "amateur"), [(EXPERT, AMATEUR), TABLES], ids=["gpt2", "table"])
CLUELESS = FakeModel(lambda text: [0.0] * 23)


@torch.no_grad()
def scores_by_the_paper(text: list[int], alpha: float, tau: float) -> Tensor:
    """Li et al. 2022, equations 1 and 2, one text alone and without a cache."""
    expert = EXPERT(torch.tensor([text]))[0, -1].double().softmax(-1)
    amateur = (AMATEUR(torch.tensor([text]))[0, -1].double() / tau).softmax(-1)
    return (expert / amateur).log().where(expert >= alpha * expert.max(), torch.tensor(float("-inf")))


def by_the_paper(prompt: list[int], n: int, alpha: float, tau: float) -> list[int]:
    text = list(prompt)
    for _ in range(n):
        text.append(int(scores_by_the_paper(text, alpha, tau).argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("tau", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("alpha", [0.1, 0.0, 0.5])
def test_it_is_the_papers_method(alpha: float, tau: float) -> None:
    strategy = ContrastiveDecoding(amateur=AMATEUR, relative_top=alpha, amateur_temperature=tau)
    found = texts(EXPERT, PROMPTS, strategy, max_new_tokens=9)
    assert found == [by_the_paper(prompt, 9, alpha, tau) for prompt in PROMPTS]
    assert found != texts(EXPERT, PROMPTS, Greedy(), max_new_tokens=9)


def test_an_amateur_without_a_clue_changes_nothing() -> None:
    """All its tokens are equally likely: the plain choice, and the plain draw among the plausible tokens."""
    assert texts(EXPERT, PROMPTS, ContrastiveDecoding(amateur=CLUELESS), max_new_tokens=9) == texts(
        EXPERT, PROMPTS, Greedy(), max_new_tokens=9
    )
    strategy = ContrastiveDecoding(amateur=CLUELESS, do_sample=True, relative_top=0.2, seed=5)
    drawn = texts(TABLES[0], PROMPTS, strategy, max_new_tokens=9)
    assert drawn == texts(TABLES[0], PROMPTS, Sample(min_p=0.2, seed=5), max_new_tokens=9)


def test_an_amateur_that_knows_as_much_leaves_nothing() -> None:
    """Every plausible token has the score 0, so the first is taken."""
    seen: list[Any] = []
    spy = lambda scores, tokens: seen.append(scores) or scores  # noqa: E731
    strategy = ContrastiveDecoding(amateur=EXPERT, processors=(spy,))
    ((text,),) = generate(EXPERT, [[1, 2]], strategy, max_new_tokens=5)
    assert all(set(row[0].tolist()) == {0.0, float("-inf")} for row in seen)
    assert text.tokens == [row[0].tolist().index(0) for row in seen]


def test_what_the_amateur_likes_loses() -> None:
    expert = FakeModel(after_last({0: [0.4, 0.35, 0.2, 0.05]}))
    amateur = FakeModel(after_last({0: [0.8, 0.1, 0.099, 0.001]}))
    found = {
        alpha: texts(
            expert, [[0]], ContrastiveDecoding(amateur=amateur, relative_top=alpha), max_new_tokens=1
        )
        for alpha in (0.0, 0.1, 0.5, 0.99)
    }
    assert found == {0.0: [[3]], 0.1: [[3]], 0.5: [[1]], 0.99: [[0]]}


# What all strategies promise


@MODELS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"do_sample": True, "seed": 1, "temperature": 1.3, "top_k": 9},
    ],
    ids=["greedy", "processed", "drawn"],
)
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(
    model: Any, amateur: Any, options: dict[str, Any]
) -> None:
    strategy = ContrastiveDecoding(amateur=amateur, **options)
    limits: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": [2, 13, 17]}
    in_a_batch_as_alone(model, PROMPTS, strategy, **limits)


def test_without_options_of_sampling_nothing_is_drawn() -> None:
    assert ContrastiveDecoding(amateur=AMATEUR).seed is None
    assert ContrastiveDecoding(amateur=AMATEUR, do_sample=True, top_p=0.9).seed is not None
    found = [
        texts(
            EXPERT,
            PROMPTS,
            ContrastiveDecoding(amateur=AMATEUR, do_sample=True, temperature=2.0, seed=seed),
            max_new_tokens=9,
        )
        for seed in (3, 3, 4)
    ]
    assert found[0] == found[1] != found[2]


def test_processors_act_on_the_contrast_and_the_trace_shows_both() -> None:
    seen: list[Any] = []
    spy = lambda scores, tokens: seen.append(scores) or scores  # noqa: E731
    strategy = ContrastiveDecoding(amateur=AMATEUR, relative_top=0, logit_bias={3: 1.5}, processors=(spy,))
    ((text,),) = traced(EXPERT, [[1, 2]], strategy, max_new_tokens=1)
    bias = torch.zeros(23).index_fill(0, torch.tensor(3), 1.5)
    expected = scores_by_the_paper([1, 2], 0, 1) + bias
    assert seen[0][0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    (trace,) = text.traces
    assert [stage.stage for stage in trace.stages] == ["contrastive-decoding", "LogitBias", "<lambda>"]
    logits = EXPERT(torch.tensor([[1, 2]]))[0, -1]
    assert trace.before.probability == pytest.approx(logits.softmax(-1)[text.tokens[0]].item(), abs=1e-5)


def test_logprobs_are_those_of_the_unprocessed_model() -> None:
    strategy = ContrastiveDecoding(amateur=AMATEUR, do_sample=True, repetition_penalty=1.8, seed=1)
    ((text,),) = generate(EXPERT, [[1, 2]], strategy, max_new_tokens=6, top_logprobs=23)
    logprobs = EXPERT(torch.tensor([[1, 2, *text.tokens]])).log_softmax(-1)[0, 1:-1]
    expected = logprobs.gather(1, torch.tensor(text.tokens)[:, None])[:, 0].tolist()
    assert text.logprobs == pytest.approx(expected, abs=1e-4)
    assert [
        dict(top)[token] for top, token in zip(text.top_logprobs, text.tokens, strict=True)
    ] == text.logprobs


def test_stop_ends_a_text() -> None:
    strategy = ContrastiveDecoding(amateur=FakeModel(lambda text: [0.0] * 10))
    model = FakeModel(counting(10))
    ((text,),) = generate(model, [[2]], strategy, max_new_tokens=7, stop=lambda new: new[-2:] == [4, 5])
    assert (text.tokens, text.finish_reason) == ([3, 4, 5], "stop")


def test_both_models_read_each_token_once() -> None:
    expert, amateur = FakeModel(scrambled(23)), FakeModel(scrambled(23, seed=1))
    generate(expert, PROMPTS, ContrastiveDecoding(amateur=amateur), max_new_tokens=4)
    assert expert.reads == amateur.reads == [(5, 7), (5, 1), (5, 1), (5, 1)]


def test_an_amateur_in_training_forgets_nothing_and_goes_on_training() -> None:
    amateur = tiny_gpt2(seed=1, resid_pdrop=0.5, embd_pdrop=0.5)
    expected = texts(EXPERT, PROMPTS, ContrastiveDecoding(amateur=amateur), max_new_tokens=6)
    assert texts(EXPERT, PROMPTS, ContrastiveDecoding(amateur=amateur.train()), max_new_tokens=6) == expected
    assert all(module.training for module in amateur.modules())
    assert not any(module.training for module in EXPERT.modules())


# What is refused, and the flags


def test_another_vocabulary_is_refused_before_anything_is_computed() -> None:
    expert = FakeModel(counting(10))
    with pytest.raises(
        ValueError,
        match=r"^the amateur \(--amateur\) model has 23 tokens, the model 10: they must share one vocabulary; take one",
    ):
        generate(expert, [[1]], ContrastiveDecoding(amateur=CLUELESS))
    assert expert.reads == []


def test_the_amateurs_window_is_a_limit_too() -> None:
    """20 tokens are read, and one more written."""
    strategy = ContrastiveDecoding(amateur=AMATEUR)
    assert len(texts(EXPERT, [[1] * 18, [2]], strategy, max_new_tokens=3)[0]) == 3
    expert = FakeModel(scrambled(23))
    with pytest.raises(
        PromptTooLong,
        match=r"^the prompt has 18 tokens and needs 21 .*, the amateur \(--amateur\) model's context length is 20: "
        "shorten the prompt, or ask for fewer new tokens$",
    ):
        generate(expert, [[2], [1] * 18, [3]], strategy, max_new_tokens=4)
    with pytest.raises(PromptTooLong, match=r"tokens; overflow slide moves the first model's window only$"):
        generate(expert, [[1] * 18], strategy, max_new_tokens=4, overflow="slide")
    assert expert.reads == []


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_the_amateurs_temperature_is_above_zero(tau: float) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^amateur_temperature \(--amateur-temperature\) must be a number from 1e-06 to 10000, got {tau}$",
    ):
        ContrastiveDecoding(amateur=AMATEUR, amateur_temperature=tau)


def test_relative_top_is_a_share() -> None:
    with pytest.raises(
        ValueError, match=r"^relative_top \(--relative-top\) must be a number from 0 to 1, got 2$"
    ):
        ContrastiveDecoding(amateur=AMATEUR, relative_top=2)


def test_an_amateur_is_needed() -> None:
    with pytest.raises(TypeError, match="amateur"):
        ContrastiveDecoding()  # type: ignore[call-arg]
    with pytest.raises(
        Failure, match=r"^contrastive-decoding needs --amateur: amateur model of the same vocabulary"
    ):
        options.build_strategy(ContrastiveDecoding, Any, None)  # type: ignore[arg-type]
