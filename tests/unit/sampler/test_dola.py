"""DoLa: the last layer's prediction against that of an early one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alone import in_a_batch_as_alone, texts
from fakes import FakeModel, counting, scrambled, tiny_gpt2
from torch import Tensor
from traced import traced

from minigpt.cache import NoCache
from minigpt.sampler import Greedy, Sample, generate
from minigpt.sampler.engine.contrast import contrast
from minigpt.sampler.strategies.dola import DoLa, _layers, divergence

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [4], [0, 0, 3, 0]]
DEEP = tiny_gpt2(n_layer=7, tie_word_embeddings=False)
TABLE = FakeModel(scrambled(23))
MODELS = pytest.mark.parametrize("model", [DEEP, TABLE], ids=["gpt2", "table"])


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


@torch.no_grad()
def scores_by_the_paper(text: list[int], layers: list[int], alpha: float) -> Tensor:
    """Chuang et al. 2023, equations 2 to 6, one text alone and without a cache."""
    streams = DEEP.lens_states(torch.tensor([text]), NoCache(DEEP.config))[:, 0, -1]
    *early, last = (DEEP.unembed(x).double().softmax(-1) for x in streams)
    jsd = {j: kl(last, (last + early[j]) / 2) / 2 + kl(early[j], (last + early[j]) / 2) / 2 for j in layers}
    premature = early[max(jsd, key=lambda j: jsd[j])]
    return (last / premature).log().where(last >= alpha * last.max(), torch.tensor(float("-inf")))


def by_the_paper(prompt: list[int], n: int, layers: list[int], alpha: float) -> list[int]:
    text = list(prompt)
    for _ in range(n):
        text.append(int(scores_by_the_paper(text, layers, alpha).argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("alpha", [0.1, 0.0, 0.5])
@pytest.mark.parametrize(
    ("asked", "layers"), [("high", [3, 5]), ("low", [2]), ((0, 1, 4, 6), [0, 1, 4, 6]), ([5], [5])]
)
def test_it_is_the_papers_method(asked: Any, layers: list[int], alpha: float) -> None:
    found = texts(DEEP, PROMPTS, DoLa(dola_layers=asked, relative_top=alpha), max_new_tokens=8)
    assert found == [by_the_paper(prompt, 8, layers, alpha) for prompt in PROMPTS]
    assert found != texts(DEEP, PROMPTS, Greedy(), max_new_tokens=8)


def test_each_text_has_a_layer_of_its_own() -> None:
    """Or the above would prove little: in one batch some choose the one layer, some the other."""
    x = DEEP.lens_states(torch.tensor([[token] for token in range(23)]), NoCache(DEEP.config))[:, :, -1]
    p = DEEP.unembed(x).log_softmax(-1)
    assert divergence(p[[3, 5]], p[-1]).argmax(0).sum() in range(5, 19)


def test_the_divergence_is_half_of_both_ways_to_the_middle() -> None:
    p, q = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(1)).double().softmax(-1)
    expected = [((kl(a, (a + b) / 2) + kl(b, (a + b) / 2)) / 2).item() for a, b in zip(p, q, strict=True)]
    assert divergence(p.log(), q.log()).tolist() == pytest.approx(expected)
    assert divergence(q.log(), p.log()).tolist() == pytest.approx(expected)
    assert divergence(p.log(), p.log()).tolist() == pytest.approx([0] * 5)


def test_certainties_have_a_divergence_too() -> None:
    """A probability of 0 on one side, on the other, and on both."""
    p, q = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0.0]]).log()
    assert divergence(p, q).item() == pytest.approx(torch.log(torch.tensor(2.0)).item() / 2)


def test_only_plausible_tokens_are_contrasted() -> None:
    better = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]]).log()
    worse = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.125, 0.125]]).log()
    prediction = contrast(better, better, worse, 0.5)
    expected = torch.tensor([[2, 1, 0, 0], [0.5, 1, 2, 2]]).log()
    assert prediction.scores.equal(expected)
    assert prediction.fallback_scores is better


def test_if_no_plausible_token_is_left_the_likeliest_of_the_others_is_taken() -> None:
    """As when the model is sure of the end of a text that may not end yet."""
    sure = FakeModel(lambda text: [1.0, 3.0, 2.0, 9.0, 0.0])
    strategy = DoLa(min_new_tokens=2, no_repeat_ngram_size=1)
    ((text,),) = generate(sure, [[4]], strategy, max_new_tokens=4, end_tokens=[3])
    assert (text.tokens, text.finish_reason) == ([1, 2, 3], "eos")
    ban = DoLa(processors=(lambda logits, tokens: logits.index_fill(1, torch.tensor(3), float("-inf")),))
    assert texts(sure, [[4]], ban, max_new_tokens=2) == [[1, 1]]
    drawn = [
        generate(
            sure, [[4]], DoLa(do_sample=True, min_new_tokens=1, seed=seed), max_new_tokens=1, end_tokens=[3]
        )[0][0]
        for seed in range(20)
    ]
    assert {1, 2} <= {text.tokens[0] for text in drawn} <= {0, 1, 2, 4}
    with pytest.raises(ValueError, match=r"^no token is left to choose after 2 prompt tokens"):
        generate(sure, [[4, 4]], DoLa(bad_words=[[token] for token in range(5)]))


def test_where_the_early_layer_knows_nothing_the_last_one_decides() -> None:
    """The fake's only early layer is uniform, so that subtracting it moves all scores alike."""
    assert texts(TABLE, PROMPTS, DoLa(), max_new_tokens=9) == texts(
        TABLE, PROMPTS, Greedy(), max_new_tokens=9
    )
    drawn = texts(TABLE, PROMPTS, DoLa(do_sample=True, seed=5, relative_top=0.2), max_new_tokens=9)
    assert drawn == texts(TABLE, PROMPTS, Sample(seed=5, min_p=0.2), max_new_tokens=9)


def test_if_only_the_best_is_plausible_it_is_greedy() -> None:
    found = texts(DEEP, PROMPTS, DoLa(relative_top=1), max_new_tokens=9)
    assert found == texts(DEEP, PROMPTS, Greedy(), max_new_tokens=9)


# Layers


@pytest.mark.parametrize(
    ("n_layer", "low", "high"),
    [
        (1, [0], [0]),
        (2, [1], [1]),
        (3, [2], [1]),
        (4, [2], [2]),
        (6, [2], [3, 5]),
        (12, [2, 4], [6, 8, 10]),
        (40, [*range(2, 20, 2)], [*range(20, 40, 2)]),
        (41, [*range(2, 20, 2)], [*range(21, 41, 2)]),
        (48, [*range(2, 20, 2)], [*range(28, 48, 2)]),
    ],
)
def test_halves_are_every_second_layer_and_never_none(n_layer: int, low: list[int], high: list[int]) -> None:
    assert DoLa(dola_layers="low").candidates(n_layer) == low
    assert DoLa().candidates(n_layer) == high


@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_shallow_models_work(n_layer: int) -> None:
    for layers in ("low", "high"):
        (text,) = texts(tiny_gpt2(n_layer=n_layer), [[1, 2]], DoLa(dola_layers=layers), max_new_tokens=5)
        assert len(text) == 5


@pytest.mark.parametrize("layers", [[7], [2, 9]])
def test_a_layer_that_is_not_there_is_told(layers: list[int]) -> None:
    wrong = [layer for layer in layers if layer != 2]
    with pytest.raises(
        ValueError,
        match=rf"^dola_layers \(--dola-layers\) of a model with 7 layers are from 0 to 6, .*; got \[{wrong[0]}\]$",
    ):
        generate(DEEP, [[1]], DoLa(dola_layers=layers), max_new_tokens=1)


@pytest.mark.parametrize("layers", ["middle", [], (), [-1], 3])
def test_layers_are_named_or_counted(layers: Any) -> None:
    with pytest.raises(
        ValueError, match=r'^dola_layers \(--dola-layers\) must be "high", "low" or layer numbers, got '
    ):
        DoLa(dola_layers=layers)


def test_the_flag_reads_names_and_numbers() -> None:
    assert [_layers(text) for text in ("high", "low", "2", "2,4")] == ["high", "low", (2,), (2, 4)]
    for text in ("middle", "", "2,", "2;4"):
        with pytest.raises(ValueError, match="invalid literal"):
            _layers(text)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_relative_top_is_a_share(share: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^relative_top \(--relative-top\) must be a number from 0 to 1, got {share}$"
    ):
        DoLa(relative_top=share)


# What all strategies promise


@MODELS
@pytest.mark.parametrize(
    "strategy",
    [
        DoLa(dola_layers=[0]),
        DoLa(repetition_penalty=1.8, no_repeat_ngram_size=2, min_new_tokens=3),
        DoLa(do_sample=True, seed=1, temperature=1.3, top_k=9),
    ],
    ids=["greedy", "processed", "drawn"],
)
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(model: Any, strategy: DoLa) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": [2, 13, 17]}
    in_a_batch_as_alone(model, PROMPTS, strategy, **limits)


def test_without_options_of_sampling_nothing_is_drawn() -> None:
    assert DoLa().seed is None
    assert DoLa(do_sample=True, top_p=0.9).seed is not None
    once, again = (
        texts(DEEP, PROMPTS, DoLa(do_sample=True, temperature=2.0, seed=3), max_new_tokens=9) for _ in "12"
    )
    assert once == again
    assert once != texts(DEEP, PROMPTS, DoLa(do_sample=True, temperature=2.0, seed=4), max_new_tokens=9)


def test_processors_act_on_the_contrast_and_the_trace_shows_both() -> None:
    seen: list[Any] = []
    strategy = DoLa(logit_bias={3: 1.5}, processors=(lambda scores, tokens: seen.append(scores) or scores,))
    ((text,),) = traced(DEEP, [[1, 2]], strategy, max_new_tokens=1)
    bias = torch.zeros(23).index_fill(0, torch.tensor(3), 1.5)
    expected = scores_by_the_paper([1, 2], [3, 5], 0.1) + bias
    assert seen[0][0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    (trace,) = text.traces
    assert [stage.stage for stage in trace.stages] == ["dola", "LogitBias", "<lambda>"]
    assert trace.stages[0].removed == int((expected == float("-inf")).sum()) > 0
    logits = DEEP(torch.tensor([[1, 2]]))[0, -1]
    assert trace.before.probability == pytest.approx(logits.softmax(-1)[text.tokens[0]].item(), abs=1e-5)


def test_logprobs_are_those_of_the_unprocessed_model() -> None:
    strategy = DoLa(do_sample=True, repetition_penalty=1.8, seed=1)
    ((text,),) = generate(DEEP, [[1, 2]], strategy, max_new_tokens=6, top_logprobs=23)
    logprobs = DEEP(torch.tensor([[1, 2, *text.tokens]])).log_softmax(-1)[0, 1:-1]
    expected = logprobs.gather(1, torch.tensor(text.tokens)[:, None])[:, 0].tolist()
    assert text.logprobs == pytest.approx(expected, abs=1e-4)
    assert [
        dict(top)[token] for top, token in zip(text.top_logprobs, text.tokens, strict=True)
    ] == text.logprobs


def test_stop_ends_a_text() -> None:
    ((text,),) = generate(
        FakeModel(counting(10)), [[2]], DoLa(), max_new_tokens=7, stop=lambda new: new[-2:] == [4, 5]
    )
    assert (text.tokens, text.finish_reason) == ([3, 4, 5], "stop")


def test_each_token_is_read_once() -> None:
    model = FakeModel(scrambled(23))
    generate(model, PROMPTS, DoLa(), max_new_tokens=4)
    assert model.reads == [(5, 7), (5, 1), (5, 1), (5, 1)]


def test_it_writes_to_the_windows_edge() -> None:
    prompt = [3] * 30
    assert texts(DEEP, [prompt], DoLa(), max_new_tokens=3) == [by_the_paper(prompt, 3, [3, 5], 0.1)]
