"""Drafts change how many passes a text takes, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from fakes import FakeCache, FakeModel, Text, counting, scrambled, tiny_gpt2
from scipy.stats import chisquare
from torch import Tensor

from minigpt.errors import InvalidRequest
from minigpt.sampler import Completion, Greedy, Strategy, generate, stream
from minigpt.sampler.api import run
from minigpt.sampler.events import Finished, PrefillDone, TokenGenerated
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.prompt_lookup import Past, PromptLookup
from minigpt.sampler.strategies.speculative import Speculative

NONE = float("-inf")
TARGET, DRAFT = tiny_gpt2(), tiny_gpt2(seed=1, n_layer=1)
SHORT = tiny_gpt2(seed=2, n_positions=9)  # sees less than the target
DRAFTERS: dict[str, Strategy] = {
    "lookup": PromptLookup(draft_schedule="constant"),
    "short lookup": PromptLookup(draft_schedule="constant", num_draft_tokens=2, max_ngram=1),
    "model": Speculative(draft_schedule="constant", draft=DRAFT),
    "short-sighted model": Speculative(draft_schedule="constant", draft=SHORT, num_draft_tokens=6),
    "itself": Speculative(draft_schedule="constant", draft=TARGET, num_draft_tokens=3),
    "adaptive lookup": PromptLookup(),
    "adaptive model": Speculative(draft=DRAFT),
}
EACH = pytest.mark.parametrize("name", DRAFTERS)
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [4], [0, 0, 3, 0, 0], [1, 2, 1, 2, 1]]


def texts_of(found: list[list[Completion]]) -> list[tuple[list[int], str]]:
    return [(text.tokens, text.finish_reason) for (text,) in found]


def with_options(name: str, **options: Any) -> Strategy:
    kind = type(DRAFTERS[name])
    own = {
        option: getattr(DRAFTERS[name], option)
        for option in ("draft", "num_draft_tokens", "draft_schedule")
        if hasattr(DRAFTERS[name], option)
    }
    return kind(**own, **options)  # type: ignore[attr-defined]


def around(n: int) -> Callable[[Text], Sequence[float]]:
    """`counting`, which begins at 0 where there is nothing but padding."""
    rule = counting(n)
    return lambda text: rule(text or (n - 1,))


# The same text as without


ENDING: dict[str, Any] = {"max_new_tokens": 14, "end_tokens": [2, 5]}


@cache
def many() -> tuple[list[list[int]], list[tuple[list[int], str]]]:
    """200 random prompts, and how Greedy goes on."""
    chance = random.Random(0)
    prompts = [[chance.randrange(23) for _ in range(chance.randrange(1, 19))] for _ in range(200)]
    return prompts, texts_of(generate(TARGET, prompts, **ENDING))


@EACH
def test_greedy_text_is_the_same_with_drafts(name: str) -> None:
    prompts, expected = many()
    for some in (slice(100), slice(100, 180), slice(180, 195), slice(195, 200)):
        assert texts_of(generate(TARGET, prompts[some], DRAFTERS[name], **ENDING)) == expected[some]


@EACH
def test_greedy_text_of_one_prompt_is_the_same_with_drafts(name: str) -> None:
    prompts, expected = many()
    for prompt, text in zip(prompts[:12], expected, strict=False):
        assert texts_of(generate(TARGET, [prompt], DRAFTERS[name], **ENDING)) == [text]


@EACH
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2, "bad_words": [[3], [0, 4]]},
        {"min_new_tokens": 6, "logit_bias": {5: 20.0, 7: NONE}},
    ],
    ids=str,
)
def test_processors_see_what_they_would_see_without(name: str, options: dict[str, Any]) -> None:
    expected = texts_of(generate(TARGET, PROMPTS, Greedy(**options), **ENDING))
    assert texts_of(generate(TARGET, PROMPTS, with_options(name, **options), **ENDING)) == expected
    assert expected != texts_of(generate(TARGET, PROMPTS, **ENDING))


@EACH
def test_log_probabilities_are_those_without(name: str) -> None:
    limits: dict[str, Any] = {**ENDING, "top_logprobs": 3}
    expected = generate(TARGET, PROMPTS, Greedy(repetition_penalty=1.7), **limits)
    found = generate(TARGET, PROMPTS, with_options(name, repetition_penalty=1.7), **limits)
    for (text,), (other,) in zip(found, expected, strict=True):
        assert text.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert text.score == pytest.approx(sum(text.logprobs))
        for top, other_top in zip(text.top_logprobs, other.top_logprobs, strict=True):
            assert [token for token, _ in top] == [token for token, _ in other_top]
            assert [value for _, value in top] == pytest.approx([value for _, value in other_top], abs=1e-4)


@EACH
@pytest.mark.parametrize("overflow", ["error", "stop"])
def test_the_window_is_filled_to_its_edge(name: str, overflow: Any) -> None:
    prompts = [[1] * 23, [1, 2] * 9, [3]] if overflow == "error" else [[1] * 31, [1, 2] * 9, [3], [1] * 32]
    limits: dict[str, Any] = {"max_new_tokens": 10 if overflow == "error" else 31, "overflow": overflow}
    expected = texts_of(generate(TARGET, prompts, **limits))
    assert texts_of(generate(TARGET, prompts, DRAFTERS[name], **limits)) == expected
    assert texts_of(generate(TARGET, prompts[:1], DRAFTERS[name], **limits)) == expected[:1]
    drawing = with_options(name, do_sample=True, seed=1)
    drawn = texts_of(generate(TARGET, prompts, drawing, **limits))
    assert drawn == [texts_of(generate(TARGET, [prompt], drawing, **limits))[0] for prompt in prompts]


def test_a_processor_is_asked_once_for_each_text_in_order() -> None:
    """So one that remembers sees with drafts what it sees without."""
    for name in ("lookup", "short lookup"):
        seen: list[tuple[int, ...]] = []
        spy = lambda scores, tokens, seen=seen: seen.append(tuple(tokens[0].tolist())) or scores  # noqa: E731
        ((text,),) = generate(TARGET, [[1, 2, 1]], with_options(name, processors=(spy,)), max_new_tokens=12)
        assert seen == [(1, 2, 1, *text.tokens[:i]) for i in range(12)]


# Always right, always wrong


@pytest.mark.parametrize("options", [{}, {"seed": 1}], ids=["greedy", "drawn"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_drafts_that_are_always_right_save_k_passes_of_k_plus_1(k: int, options: dict[str, Any]) -> None:
    rule = scrambled(7)
    model, same = FakeModel(rule), FakeModel(rule)
    strategy = Speculative(draft_schedule="constant", draft=same, num_draft_tokens=k, **options)
    ((text,),) = generate(model, [[1, 2, 3]], strategy, max_new_tokens=1 + 4 * (k + 1))
    assert len(text.tokens) == 1 + 4 * (k + 1)
    assert model.reads == [(1, 3)] + 4 * [(1, k + 1)]
    assert same.reads == [(1, 3)] + k * [(1, 1)] + 3 * ([(1, 2)] + (k - 1) * [(1, 1)])
    if not options:
        assert texts_of([[text]]) == texts_of(generate(model, [[1, 2, 3]], max_new_tokens=len(text.tokens)))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_drafts_that_are_always_wrong_cost_no_pass(k: int) -> None:
    """The target counts by ones, the draft by twos."""
    model, wrong = FakeModel(around(9)), FakeModel(lambda text: around(9)((text[-1] + 1,)))
    strategy = Speculative(draft_schedule="constant", draft=wrong, num_draft_tokens=k)
    ((text,),) = generate(model, [[0]], strategy, max_new_tokens=12)
    assert text.tokens == [1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3]
    assert len(model.reads) == 12


def test_a_step_without_drafts_is_that_of_plain_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """`next_logits`, which a model may compute in less time than the logits after each of several tokens."""
    model = tiny_gpt2()
    monkeypatch.setattr(model, "hidden_states", lambda *_: pytest.fail("nothing was drafted"))
    options: dict[str, Any] = {"no_repeat_ngram_size": 1}  # and so nothing is found to draft
    prompts = [[1, 2, 3], [4]]
    found, plain = (
        generate(model, prompts, strategy, max_new_tokens=6)
        for strategy in (PromptLookup(draft_schedule="constant", **options), Greedy(**options))
    )
    assert texts_of(found) == texts_of(plain)


def test_a_text_that_repeats_itself_is_read_in_few_passes() -> None:
    model = FakeModel(around(5))
    ((text,),) = generate(
        model,
        [[0, 1, 2, 3, 4, 0]],
        PromptLookup(draft_schedule="constant", num_draft_tokens=9),
        max_new_tokens=31,
    )
    assert text.tokens == [(1 + i) % 5 for i in range(31)]
    assert model.reads == [(1, 6)] + 3 * [(1, 10)]  # 9 guesses of a cycle of 5: it starts over


def test_rows_are_checked_side_by_side() -> None:
    """One row's drafts all hold, the other's never do; both are in every pass until they are finished."""
    counted = around(9)
    model = FakeModel(lambda text: counted(text) if text[:1] == (0,) else scrambled(9)(text))
    strategy = PromptLookup(draft_schedule="constant", num_draft_tokens=4)
    prompts = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 0], [8, 8]]
    expected = texts_of(generate(model, prompts, max_new_tokens=16))
    model.reads.clear()
    assert texts_of(generate(model, prompts, strategy, max_new_tokens=16)) == expected
    assert model.reads[:4] == [(2, 10), (2, 5), (2, 5), (2, 5)]
    assert {rows for rows, _ in model.reads[4:]} == {1}


# Exactly the target's distribution


def exactly(rule: Any, prompt: Text, options: dict[str, Any]) -> dict[tuple[int, ...], float]:
    """The probabilities of the second and third token after a prompt, from the table of the model."""

    def chances(text: Text) -> Tensor:
        logits = torch.tensor(rule(text), dtype=torch.float64)
        penalty = options.get("repetition_penalty", 1.0)
        for token in set(text):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        logits /= options.get("temperature", 1.0)
        if "top_k" in options:
            logits[logits < logits.topk(options["top_k"]).values[-1]] = NONE
        return logits.softmax(-1)

    joint: Counter[tuple[int, ...]] = Counter()
    tokens = range(len(rule(prompt)))
    for a, b, c in product(tokens, repeat=3):
        chance = chances(prompt)[a] * chances((*prompt, a))[b] * chances((*prompt, a, b))[c]
        joint[b, c] += float(chance)
    return joint


RULE = cache(scrambled(4))
RULES: dict[str, Callable[[Text], Sequence[float]]] = {  # of draft models
    "unlike": cache(scrambled(4, seed=1, spread=1.5)),
    "like": lambda text: [x + 0.5 * (x > 0) for x in RULE(text)],
    "one-sided": lambda text: [9.0 * (token == text[-1]) for token in range(4)],
}
SHAPED: dict[str, Any] = {"temperature": 1.5, "top_k": 3, "repetition_penalty": 1.6}
WARM = {"temperature": 0.8}


@pytest.mark.parametrize(
    ("drafts", "options"),
    [("unlike", SHAPED), ("like", WARM), ("one-sided", SHAPED), ("looked up", SHAPED)],
    ids=str,
)
def test_drawn_texts_are_as_frequent_as_the_model_says(drafts: str, options: dict[str, Any]) -> None:
    """Seeds are fixed, so this cannot fail by bad luck; a skew of a few percent would."""
    model, prompt, n = FakeModel(RULE), (0, 1, 2, 3, 0, 1), 500
    drawn: Counter[tuple[int, ...]] = Counter()
    for seed in range(n):
        strategy: Strategy = PromptLookup(
            draft_schedule="constant", num_draft_tokens=2, do_sample=True, seed=seed, **options
        )
        if drafts != "looked up":
            strategy = Speculative(
                draft_schedule="constant",
                draft=FakeModel(RULES[drafts]),
                num_draft_tokens=2,
                do_sample=True,
                seed=seed,
                **options,
            )
        ((text,),) = generate(model, [prompt], strategy, max_new_tokens=3)
        drawn[tuple(text.tokens[1:])] += 1
    assert n < len(model.reads) - n < 2 * n  # some guesses held, some did not
    expected = {pair: chance for pair, chance in exactly(RULE, prompt, options).items() if chance > 0}
    assert set(drawn) <= set(expected)
    observed = [drawn[pair] for pair in expected]
    assert chisquare(observed, [n * chance for chance in expected.values()]).pvalue > 0.01


@EACH
def test_seeds_and_batches(name: str) -> None:
    limits: dict[str, Any] = {"max_new_tokens": 12, "end_tokens": [2, 13]}
    one, other = (
        with_options(name, do_sample=True, temperature=1.2, top_p=0.9, seed=seed) for seed in (1, 2)
    )
    batch = texts_of(generate(TARGET, PROMPTS, one, **limits))
    assert batch == texts_of(generate(TARGET, PROMPTS[::-1], one, **limits))[::-1]
    assert batch == [texts_of(generate(TARGET, [prompt], one, **limits))[0] for prompt in PROMPTS]
    assert batch[1] == batch[3]
    assert batch != texts_of(generate(TARGET, PROMPTS, other, **limits))


def test_a_seed_is_drawn_only_where_lots_are() -> None:
    assert PromptLookup(draft_schedule="constant").seed is None
    assert PromptLookup(draft_schedule="constant", do_sample=True).seed is not None
    assert Speculative(draft_schedule="constant", draft=DRAFT).seed is None
    assert Speculative(draft_schedule="constant", draft=DRAFT, do_sample=True, top_k=3).seed is not None


def test_a_seed_alone_never_changes_the_algorithm() -> None:
    limits: dict[str, Any] = {"max_new_tokens": 12}
    for name in DRAFTERS:
        seeded = generate(TARGET, PROMPTS, with_options(name, seed=3), **limits)
        assert texts_of(seeded) == texts_of(generate(TARGET, PROMPTS, **limits))
    message = r"^top_k \(--top-k\) has no effect without do_sample=True: set it, or leave top_k out$"
    with pytest.raises(InvalidRequest, match=message):
        PromptLookup(draft_schedule="constant", top_k=3)


# Ends of texts


@EACH
def test_a_stream_is_the_text(name: str) -> None:
    for options in ({}, {"seed": 3}):
        strategy = with_options(name, **options)
        ((text,),) = generate(TARGET, [[1, 2, 3]], strategy, max_new_tokens=20)
        assert list(stream(TARGET, [1, 2, 3], strategy, max_new_tokens=20)) == text.tokens


@EACH
def test_events_are_told_in_order(name: str) -> None:
    events = list(run(TARGET, prepare(TARGET, PROMPTS, **ENDING), DRAFTERS[name]))
    assert isinstance(events[0], PrefillDone)
    for i in range(len(PROMPTS)):
        *emitted, last = (e for e in events[1:] if not isinstance(e, PrefillDone) and e.prompt_index == i)
        assert isinstance(last, Finished)
        (text,) = last.completions
        reported = [(e.token, e.logprob) for e in emitted if isinstance(e, TokenGenerated)]
        assert reported == list(zip(text.tokens, text.logprobs, strict=True))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"end_tokens": [3]}, "eos"),
        ({"stop": lambda tokens: list(tokens[-2:]) == [2, 3]}, "stop"),
        ({"max_new_tokens": 3}, "length"),
    ],
    ids=["eos", "stop", "length"],
)
def test_what_a_draft_holds_behind_the_end_is_dropped(limits: dict[str, Any], reason: str) -> None:
    prompts = [[0, 1, 2, 3, 4, 5, 0], [4, 5, 0, 1, 2, 3, 4]]  # three and six tokens from the end
    for strategy in (
        PromptLookup(draft_schedule="constant"),
        Speculative(draft_schedule="constant", draft=FakeModel(around(6)), num_draft_tokens=5),
    ):
        found = generate(FakeModel(around(6)), prompts, strategy, **limits)
        assert texts_of(found)[0] == ([1, 2, 3], reason)
        assert texts_of(found) == texts_of(generate(FakeModel(around(6)), prompts, **limits))


def test_where_the_drafts_window_ends_the_text_goes_on() -> None:
    rule = around(7)
    model, draft = FakeModel(rule), FakeModel(rule, n_positions=8)
    strategy = Speculative(draft_schedule="constant", draft=draft, num_draft_tokens=3)
    found = generate(model, [[0], [0] * 8, [0] * 9], strategy, max_new_tokens=17)
    assert texts_of(found) == texts_of(generate(model, [[0], [0] * 8, [0] * 9], max_new_tokens=17))
    assert draft.reads[0] == (1, 1)  # the others leave no room for a draft token
    # 1 + 1 tokens; two blocks of 4 fill its window, the last guess lying behind it; then one a pass
    draft.reads.clear()
    model.reads.clear()
    generate(model, [[0]], strategy, max_new_tokens=17)
    assert model.reads == [(1, 1), (1, 4), (1, 4)] + 8 * [(1, 1)]
    assert sum(width for _, width in draft.reads) == 1 + 3 + 4


def test_of_one_token_there_is_nothing_to_guess() -> None:
    model, draft = FakeModel(around(7)), FakeModel(around(7))
    generate(model, [[0, 1], [2]], Speculative(draft_schedule="constant", draft=draft), max_new_tokens=1)
    assert (model.reads, draft.reads) == ([(2, 2)], [])


def test_one_prompt_asks_no_more_of_a_cache_than_to_rewind() -> None:
    class Simple(FakeCache):
        align = None  # type: ignore[assignment]

    class SimpleModel(FakeModel):
        def new_cache(self, n_max: int, rows: int = 1, pad: Tensor | None = None) -> FakeCache:
            return Simple(n_max, rows, pad)

    model = SimpleModel(scrambled(5))
    expected = texts_of(generate(model, [[1, 2, 1]], max_new_tokens=12))
    for strategy in (
        PromptLookup(draft_schedule="constant"),
        Speculative(draft_schedule="constant", draft=SimpleModel(scrambled(5, seed=1))),
    ):
        assert texts_of(generate(model, [[1, 2, 1]], strategy, max_new_tokens=12)) == expected


def test_a_draft_model_in_training_does_not_drop_out() -> None:
    draft = tiny_gpt2(resid_pdrop=0.9)  # the target itself but for dropout
    draft.train()
    passes = []
    hook = TARGET.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    generate(
        TARGET,
        [[1, 2, 3]],
        Speculative(draft_schedule="constant", draft=draft, num_draft_tokens=3),
        max_new_tokens=17,
    )
    hook.remove()
    assert len(passes) == 1 + 16 / 4
    assert draft.training


# What followed before


def test_the_past_is_that_of_the_longest_run_at_its_last_occurrence() -> None:
    """Against a search from the end."""
    chance = random.Random(0)
    for _ in range(200):
        text = [chance.randrange(3) for _ in range(chance.randrange(1, 15))]
        past = Past(max_ngram=3)
        cut = chance.randrange(len(text))
        past.extend(text[:cut])
        past.extend(text[cut:])
        starts = (
            end
            for n in (3, 2, 1)
            for end in range(len(text) - 1, n - 1, -1)
            if text[end - n : end] == text[len(text) - n :]
        )
        start = next(starts, None)
        expected = [] if start is None else (text[start:] * 15)[:15]
        assert past.continuation(15) == expected


# Mistakes


@pytest.mark.parametrize("value", [0, -1])
def test_numbers_out_of_range_are_refused(value: int) -> None:
    with pytest.raises(
        ValueError, match=f"num_draft_tokens .* must be a whole number of at least 1, got {value}"
    ):
        PromptLookup(draft_schedule="constant", num_draft_tokens=value)
    with pytest.raises(ValueError, match=f"max_ngram .* must be a whole number from 1 to 64, got {value}"):
        PromptLookup(draft_schedule="constant", max_ngram=value)
    with pytest.raises(
        ValueError, match=f"num_draft_tokens .* must be a whole number of at least 1, got {value}"
    ):
        Speculative(draft_schedule="constant", draft=DRAFT, num_draft_tokens=value)
    message = r"^draft \(--draft\) must be a loaded model \(minigpt.load loads one\), got 'gpt2'$"
    with pytest.raises(InvalidRequest, match=message):
        Speculative(draft_schedule="constant", draft="gpt2")  # type: ignore[arg-type]


def test_a_draft_model_of_another_vocabulary_is_refused() -> None:
    strategy = Speculative(draft_schedule="constant", draft=tiny_gpt2(vocab_size=99))
    with pytest.raises(
        ValueError, match=r"the draft \(--draft\) model has 99 tokens, the model 23: .*same tokenizer"
    ):
        generate(TARGET, [[1]], strategy, max_new_tokens=5)


def test_options_that_rule_out_everything_are_refused() -> None:
    model = FakeModel(lambda text: [0.0, 0.0])
    for strategy in (
        PromptLookup(draft_schedule="constant", bad_words=[[0], [1]]),
        Speculative(draft_schedule="constant", draft=model, bad_words=[[0], [1]]),
    ):
        with pytest.raises(ValueError, match="no token is left to choose after 1 prompt token"):
            generate(model, [[0]], strategy, end_tokens=[])
