"""What holds for every strategy there is, by its name: a new file in minigpt/sampler is held to it, too."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from fakes import tiny_gpt2
from strategies import as_it_comes
from traced import traced

from minigpt.options import options_of
from minigpt.sampler import Completion, generate, stream
from minigpt.sampler.api import run
from minigpt.sampler.events import Finished, TokenGenerated
from minigpt.sampler.registry import find, names
from minigpt.sampler.requests import prepare

EVERY = pytest.mark.parametrize("name", names())
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [4], [0, 0, 3, 0]]  # unequal, and one of them twice
LIMITS: dict[str, Any] = {"max_new_tokens": 9, "end_tokens": [2, 13, 17]}
MODEL, OTHER = tiny_gpt2(), tiny_gpt2(seed=1)
strategy = partial(as_it_comes, second=OTHER)


@cache
def written(name: str) -> list[list[Completion]]:
    return generate(MODEL, PROMPTS, strategy(name), **LIMITS)


def outcome(groups: list[list[Completion]]) -> list[list[tuple[list[int], str]]]:
    return [[(text.tokens, text.finish_reason) for text in group] for group in groups]


@EVERY
def test_every_option_explains_itself(name: str) -> None:
    for option in options_of(find(name)).values():
        assert option.help
        assert option.limits or option.kind.name


@EVERY
def test_it_does_the_same_again(name: str) -> None:
    again = replace(strategy(name))
    assert outcome(generate(MODEL, PROMPTS, again, **LIMITS)) == outcome(written(name))


@EVERY
def test_what_else_is_in_the_batch_changes_nothing(name: str) -> None:
    for prompt, group in zip(PROMPTS, written(name), strict=True):
        (alone,) = generate(MODEL, [prompt], strategy(name), **LIMITS)
        assert outcome([group]) == outcome([alone])
        for text, other in zip(group, alone, strict=True):
            assert text.score == pytest.approx(other.score, abs=1e-4)
            assert text.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert outcome([written(name)[1]]) == outcome([written(name)[3]])


@EVERY
def test_a_stream_gives_the_best_text(name: str) -> None:
    for prompt, (best, *_) in zip(PROMPTS, written(name), strict=True):
        assert list(stream(MODEL, prompt, strategy(name), **LIMITS)) == best.tokens


@EVERY
def test_what_is_told_is_what_is_finished(name: str) -> None:
    emitted: dict[int, list[tuple[int, float]]] = {i: [] for i in range(len(PROMPTS))}
    for event in run(MODEL, prepare(MODEL, PROMPTS, **LIMITS), strategy(name)):
        if isinstance(event, TokenGenerated):
            emitted[event.prompt_index].append((event.token, event.logprob))
        elif isinstance(event, Finished):
            best = event.completions[0]
            assert emitted[event.prompt_index] == list(zip(best.tokens, best.logprobs, strict=True))


@EVERY
def test_log_probabilities_are_the_models_own(name: str) -> None:
    for prompt, group in zip(PROMPTS, written(name), strict=True):
        for text in group:
            with torch.no_grad():
                logprobs = MODEL(torch.tensor([[*prompt, *text.tokens]]))[0].log_softmax(-1)
            after = logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(text.tokens)[:, None])[:, 0]
            assert text.logprobs == pytest.approx(after.tolist(), abs=1e-4)


@EVERY
def test_the_likeliest_tokens_are_reported_at_every_step(name: str) -> None:
    for group in generate(MODEL, PROMPTS, strategy(name), top_logprobs=3, **LIMITS):
        for text in group:
            assert [len(step) for step in text.top_logprobs] == [3] * len(text.tokens)
            for token, logprob, step in zip(text.tokens, text.logprobs, text.top_logprobs, strict=True):
                assert dict(step).get(token, logprob) == pytest.approx(logprob, abs=1e-5)
                assert step[0][1] >= logprob - 1e-5


@EVERY
def test_texts_end_where_they_should(name: str) -> None:
    texts = [text for group in written(name) for text in group]
    for text in texts:
        ends = [i for i, token in enumerate(text.tokens) if token in LIMITS["end_tokens"]]
        assert ends == ([len(text.tokens) - 1] if text.finish_reason == "eos" else [])
        assert (text.finish_reason == "length") == (not ends and len(text.tokens) == 9)


@EVERY
def test_a_stop_ends_a_text_at_once(name: str) -> None:
    def even(tokens: Any) -> bool:
        return len(tokens) >= 2 and sum(tokens[-2:]) % 2 == 0

    for group in generate(MODEL, PROMPTS, strategy(name), max_new_tokens=9, end_tokens=[], stop=even):
        for text in group:
            stops = [n for n in range(1, len(text.tokens) + 1) if even(text.tokens[:n])]
            assert stops == ([len(text.tokens)] if text.finish_reason == "stop" else [])


@EVERY
def test_the_common_options_hold(name: str) -> None:
    options = {"bad_words": [[3], [0, 4]], "no_repeat_ngram_size": 2, "min_new_tokens": 4}
    for prompt, group in zip(
        PROMPTS, generate(MODEL, PROMPTS, strategy(name, **options), **LIMITS), strict=True
    ):
        for text in group:
            assert len(text.tokens) >= 4
            assert 3 not in text.tokens
            whole = [*prompt, *text.tokens]
            pairs = list(pairwise(whole))
            assert (0, 4) not in pairs[len(prompt) - 1 :]
            assert not set(pairs[: len(prompt) - 1]) & set(pairs[len(prompt) - 1 :])


@EVERY
def test_traces_change_nothing_and_agree_with_the_log_probabilities(name: str) -> None:
    found = traced(MODEL, PROMPTS, strategy(name, repetition_penalty=1.0001), **LIMITS)
    plain = generate(MODEL, PROMPTS, strategy(name, repetition_penalty=1.0001), **LIMITS)
    assert outcome(found) == outcome(plain)
    for text in (text for group in found for text in group):
        probabilities = [trace.before.probability for trace in text.traces]
        assert torch.tensor(probabilities).log().tolist() == pytest.approx(text.logprobs, abs=1e-3)
        for trace in text.traces:
            assert "RepetitionPenalty" in [stage.stage for stage in trace.stages]
            assert trace.stages[-1].probability == trace.after.probability > 0


@EVERY
def test_a_batch_mate_that_fills_the_context_changes_nothing(name: str) -> None:
    """How much room a text has depends on that text alone."""
    limits: dict[str, Any] = {"max_new_tokens": 12, "end_tokens": [2]}
    for seed in range(3):
        model = tiny_gpt2(seed=10 + seed)
        mate = [(7 * i + seed) % 23 for i in range(model.config.n_positions - 11)]
        prompts = [[seed, 1], mate, [3, 4, 5]]
        batch = generate(model, prompts, strategy(name), **limits)
        assert len(prompts[1]) + 12 - 1 == model.config.n_positions
        for prompt, group in zip(prompts, batch, strict=True):
            assert outcome([group]) == outcome(generate(model, [prompt], strategy(name), **limits))


def only_two(logits: Any, tokens: Any) -> Any:
    """Leaves two tokens, others at every length; mostly unlikely ones."""
    kept = torch.tensor([[tokens.size(1) * 5 % 23, tokens.size(1) * 7 % 23]] * len(logits))
    return torch.full_like(logits, float("-inf")).scatter(-1, kept, logits.gather(-1, kept))


@EVERY
def test_a_mask_that_leaves_only_unlikely_tokens_is_obeyed(name: str) -> None:
    masked = strategy(name, processors=(only_two,))
    groups = generate(MODEL, PROMPTS, masked, max_new_tokens=6, end_tokens=[])
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for text in group:
            assert len(text.tokens) == 6
            for length, token in enumerate(text.tokens, start=len(prompt)):
                assert token in (length * 5 % 23, length * 7 % 23)


@EVERY
def test_it_fills_the_window_to_the_last_token(name: str) -> None:
    ((text, *_),) = generate(MODEL, [[1, 2, 3]], strategy(name), max_new_tokens=30, end_tokens=[])
    assert (len(text.tokens), text.finish_reason) == (30, "length")


@EVERY
def test_one_token_is_enough(name: str) -> None:
    for group in generate(MODEL, PROMPTS, strategy(name), max_new_tokens=1, end_tokens=[]):
        assert {len(text.tokens) for text in group} == {1}
