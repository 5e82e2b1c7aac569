"""Greedy and beam search write transformers' own token ids, with its scores."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from reference import pair
from transformers import GPT2LMHeadModel

from minigpt import GPT2
from minigpt.sampler import Beam, Completion, Greedy, Strategy, generate

PROMPTS = [[3, 4, 5], [7, 8, 9, 1, 2, 3], [60]]
ENDS = {"never": [], "sometimes": [5, 20, 31, 32, 56, 60], "often": list(range(1, 61, 4))}
N_NEW = 10
PENALTIES: dict[str, Any] = {
    "repetition_penalty": 1.6,
    "no_repeat_ngram_size": 2,
    "bad_words": [[25], [55, 23], [4, 4]],
    "min_new_tokens": 4,
    "logit_bias": {47: 2.5, 8: -3.0},
}


@cache
def models() -> tuple[GPT2, GPT2LMHeadModel]:
    with TemporaryDirectory() as directory:
        return pair(Path(directory), spread=0.3)


def as_they_call_it(options: dict[str, Any]) -> dict[str, Any]:
    """Our options under their names; what is ours alone is left as it is."""
    as_theirs = dict(options)
    if "bad_words" in as_theirs:
        as_theirs["bad_words_ids"] = as_theirs.pop("bad_words")
    if "logit_bias" in as_theirs:
        as_theirs["sequence_bias"] = {(token,): bias for token, bias in as_theirs.pop("logit_bias").items()}
    return as_theirs


def their_texts(
    prompts: list[list[int]], ends: list[int], n_new: int, **options: Any
) -> tuple[list[list[list[int]]], list[list[float]]]:
    """New tokens and scores of every prompt's texts; the prompts in one batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"max_new_tokens": n_new, "pad_token_id": 0, "eos_token_id": ends or None, **options}
    out = models()[1].generate(
        ids,
        attention_mask=seen,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **as_they_call_it(options),
    )
    new = out.sequences[:, longest:].view(len(prompts), -1, out.sequences.size(1) - longest).tolist()
    texts = [[up_to_end(text, ends) for text in group] for group in new]
    scores = getattr(out, "sequences_scores", torch.zeros(len(prompts)))
    return texts, scores.view(len(prompts), -1).tolist()


def up_to_end(tokens: list[int], ends: list[int]) -> list[int]:
    """Without the padding that they write after an end token."""
    first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]


def assert_theirs(
    prompts: list[list[int]], ends: list[int], n_new: int, **options: Any
) -> list[list[Completion]]:
    """Ours and theirs agree in every text, its place and its score."""
    options = {"num_return_sequences": 1, **options}
    found = generate(models()[0], prompts, Beam(**options), max_new_tokens=n_new, end_tokens=ends)
    texts, scores = their_texts(prompts, ends, n_new, **options)
    assert [[text.tokens for text in group] for group in found] == texts
    if options["num_beams"] > 1:
        for group, expected in zip(found, scores, strict=True):
            assert [text.score for text in group] == pytest.approx(expected, abs=1e-4)
    return found


@pytest.mark.parametrize("ends", ENDS)
def test_greedy(ends: str) -> None:
    found = generate(models()[0], PROMPTS, max_new_tokens=30, end_tokens=ENDS[ends])
    texts, _ = their_texts(PROMPTS, ENDS[ends], 30)
    assert [[text.tokens for text in group] for group in found] == texts
    reasons = {group[0].finish_reason for group in found}
    assert ("eos" in reasons) == (ends != "never")


def test_greedy_to_the_last_position() -> None:
    """The last new token is never read back, so there is one more of them than positions are left."""
    prompts = [[*range(40)], [*range(11, 48)]]
    found = generate(models()[0], prompts, max_new_tokens=9)
    assert [[text.tokens for text in group] for group in found] == their_texts(prompts, [], 9)[0]


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize(("width", "most"), [(1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize("ends", ENDS)
def test_beam(ends: str, width: int, most: int, length_penalty: float, early_stopping: bool | str) -> None:
    options = {"num_beams": width, "length_penalty": length_penalty, "early_stopping": early_stopping}
    best_three = assert_theirs(PROMPTS, ENDS[ends], N_NEW, **options, num_return_sequences=most)
    for n in range(1, most):
        fewer = generate(
            models()[0],
            PROMPTS,
            Beam(**options, num_return_sequences=n),
            max_new_tokens=N_NEW,
            end_tokens=ENDS[ends],
        )
        assert [[text.tokens for text in group] for group in fewer] == [
            [text.tokens for text in group[:n]] for group in best_three
        ]


def test_the_beams_above_end_as_often_as_their_names_say() -> None:
    """Or else they would test less than they seem to."""
    early = {}
    for ends in ENDS:
        found = generate(
            models()[0],
            PROMPTS,
            Beam(num_beams=5, num_return_sequences=3, early_stopping=True),
            max_new_tokens=N_NEW,
            end_tokens=ENDS[ends],
        )
        early[ends] = sum(len(text.tokens) < N_NEW for group in found for text in group)
    assert early["never"] == 0 < early["sometimes"] < early["often"] == 9


def test_three_modes_of_early_stopping_give_three_answers() -> None:
    """On one of the cases above, so that none can pass for another."""
    answers = [
        assert_theirs(
            PROMPTS[:1], ENDS["sometimes"], N_NEW, num_beams=3, length_penalty=2.0, early_stopping=mode
        )
        for mode in (True, False, "never")
    ]
    assert len({tuple(group[0].tokens) for (group,) in answers}) == 3


@pytest.mark.parametrize("ends", ENDS)
def test_as_many_texts_as_beams(ends: str) -> None:
    found = assert_theirs(PROMPTS, ENDS[ends], N_NEW, num_beams=5, num_return_sequences=5)
    assert [len(group) for group in found] == [5, 5, 5]


@pytest.mark.parametrize("names", [*((name,) for name in PENALTIES), tuple(PENALTIES)], ids="+".join)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("width", [1, 3, 5])
def test_processors(names: tuple[str, ...], ends: str, width: int) -> None:
    options = {name: PENALTIES[name] for name in names}
    prompts = [[3, 4, 5, 4], [7, 8, 47, 9, 1, 2, 3], [55]]
    n = min(width, 3)
    found = assert_theirs(prompts, ENDS[ends], N_NEW, num_beams=width, num_return_sequences=n, **options)
    if "min_new_tokens" in names:
        assert all(len(text.tokens) > 4 for group in found for text in group)
    if width == 1:
        greedy: Strategy = Greedy(**options)
        same = generate(models()[0], prompts, greedy, max_new_tokens=N_NEW, end_tokens=ENDS[ends])
        assert [group[0].tokens for group in same] == [group[0].tokens for group in found]
        plain = generate(models()[0], prompts, max_new_tokens=N_NEW, end_tokens=ENDS[ends])
        assert ends != "never" or names == ("min_new_tokens",) or same != plain


@pytest.mark.parametrize("ends", ENDS)
def test_beam_to_the_last_position(ends: str) -> None:
    assert_theirs([[*range(40)], [*range(9, 41)]], ENDS[ends], 9, num_beams=3, num_return_sequences=2)


def test_logprobs_are_those_before_the_processors() -> None:
    options = {"repetition_penalty": 1.6, "logit_bias": {47: 2.5}}
    (group,) = generate(models()[0], PROMPTS[:1], Greedy(**options), max_new_tokens=N_NEW, end_tokens=[])
    out = models()[1].generate(
        torch.tensor(PROMPTS[:1]),
        do_sample=False,
        max_new_tokens=N_NEW,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **as_they_call_it(options),
    )
    expected = [
        logits.log_softmax(-1)[0, token].item()
        for logits, token in zip(out.logits, group[0].tokens, strict=True)
    ]
    assert group[0].logprobs == pytest.approx(expected, abs=1e-5)
