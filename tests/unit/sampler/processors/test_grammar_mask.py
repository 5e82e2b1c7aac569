"""Generated text matches the grammar, whatever the strategy; where it ends, and what it leaves alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from choices import allowed, regex, spelled
from fakes import FakeModel, scrambled, tiny_gpt2

import minigpt
from minigpt import InvalidRequest
from minigpt.sampler import Beam, Completion, Greedy, Sample, generate
from minigpt.sampler.grammar import Grammar
from minigpt.sampler.processors.grammar_mask import GrammarMask

NONE = float("-inf")
WORDS = [None, b"a", b"b", b"c", b"ab", b"bc", b"abc", b" ", b" a", b"cab", b"\n", b"1", b"2", b"12", b"-", b".",
         b"", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"aa", b"bb", b"a b"]  # fmt: skip


def test_end_tokens_are_allowed_exactly_where_the_text_matches() -> None:
    mask = GrammarMask(regex("(ab)+", WORDS), prompt_length=2, end_tokens=frozenset([0, 99]))
    logits = torch.arange(3 * 23.0).view(3, 23)
    out = mask(logits, torch.tensor([[5, 5, 1], [5, 5, 4], [5, 5, 2]]))
    assert [allowed(row > NONE) for row in out] == [[2], [0, 1, 4], []]
    assert torch.equal(out[out > NONE], logits[out > NONE])
    assert torch.equal(logits, torch.arange(3 * 23.0).view(3, 23))  # its input stays as it was


def test_an_end_token_that_spells_something_is_an_end_token() -> None:
    mask = GrammarMask(regex("[ab]b", WORDS), prompt_length=0, end_tokens=frozenset([2]))
    out = mask(torch.zeros(2, 23), torch.tensor([[1], [4]]))
    assert [allowed(row > NONE) for row in out] == [[], [2]]


def test_an_end_token_ends_the_match() -> None:
    grammar = regex("a*", WORDS)
    assert not grammar.mask([1, 0]).any()
    assert not grammar.matches([1, 0])
    assert not grammar.matches([1, 99])  # nor is anything known of ids beyond the vocabulary


def test_ids_beyond_the_tokenizer_s_are_ruled_out() -> None:
    mask = GrammarMask(regex("a*", WORDS), prompt_length=0, end_tokens=frozenset([30]))
    (row,) = mask(torch.zeros(1, 40), torch.empty(1, 0, dtype=torch.long))
    assert allowed(row > NONE) == [1, 20, 30]


def test_what_was_ruled_out_before_stays_so() -> None:
    logits = torch.zeros(1, 23)
    logits[0, [0, 1]] = NONE
    out = GrammarMask(regex("a*", WORDS), 0, frozenset([0]))(logits, torch.empty(1, 0, dtype=torch.long))
    assert allowed(out[0] > NONE) == [20]


MODELS: dict[str, Any] = {"table": FakeModel(scrambled(23, spread=3.0)), "gpt2": tiny_gpt2(seed=3)}
PATTERNS = [
    r"\d{2}-\d\d",
    r"(a|b)+\.",
    " a|cab?",
    "[^ab]{3,5}",
    "(é|12)*b",
    r"(.|\n){4}",
    r"[abc]{1,3}( [abc]{1,3}){0,2}\n?",
]
STRATEGIES = [Greedy(), Sample(seed=5, num_return_sequences=4), Beam(num_beams=4, num_return_sequences=2)]


def constrained(
    model: Any, grammar: Grammar, strategy: Any, end_tokens: Sequence[int], token: int = 1
) -> list[Completion]:
    """Texts that continue a prompt of two tokens, ended where the grammar says."""
    mask = GrammarMask(grammar, prompt_length=2, end_tokens=frozenset(end_tokens))
    with_mask = replace(strategy, processors=(mask,))
    (texts,) = generate(
        model, [[token, 2]], with_mask, max_new_tokens=12, end_tokens=end_tokens, stop=grammar.complete
    )
    return texts


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["greedy", "sample", "beam"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("end_tokens", [[0], []], ids=["ends", "no-ends"])
def test_texts_that_finish_match(model: Any, pattern: str, strategy: Any, end_tokens: list[int]) -> None:
    grammar = regex(pattern, WORDS)
    for text in constrained(model, grammar, strategy, end_tokens):
        assert text.finish_reason in {"stop", "eos", "length"}
        if text.finish_reason == "length":  # cut off, and could have gone on
            assert len(text.tokens) == 12
            assert grammar.mask(text.tokens).any()
        else:
            written = text.tokens[: -1 if text.finish_reason == "eos" else None]
            assert re.fullmatch(pattern, spelled(written, WORDS))
            assert text.finish_reason == "eos" or grammar.complete(written)


def test_these_texts_end_for_every_reason() -> None:
    """Or else the above would prove little."""
    found = [
        text.finish_reason
        for model in MODELS.values()
        for pattern in PATTERNS
        for text in constrained(model, regex(pattern, WORDS), STRATEGIES[1], [0])
    ]
    assert set(found) == {"stop", "eos", "length"}
    assert found.count("length") < len(found) / 3


@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=["greedy", "sample"])
def test_a_pattern_that_allows_everything_changes_nothing(strategy: Any) -> None:
    characters = [bytes([97 + token]) for token in range(23)]
    for model in MODELS.values():
        mask = GrammarMask(regex(r"(.|\n)*", characters), prompt_length=2, end_tokens=frozenset([4]))
        options = {"max_new_tokens": 12, "end_tokens": [4]}
        free = generate(model, [[1, 2]], strategy, **options)
        assert generate(model, [[1, 2]], replace(strategy, processors=(mask,)), **options) == free


@pytest.mark.parametrize("strategy", [Greedy(), Sample(seed=2)], ids=["greedy", "sample"])
def test_the_bundled_model_writes_what_it_must(strategy: Any) -> None:
    model, tokenizer = minigpt.load()
    special = tokenizer.special_tokens.values()
    token_bytes = [
        None if token in special else tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)
    ]
    pattern = r" [A-Z][a-z]{2,8} and [A-Z]\w{3,9} had \d{1,2} (cats|dogs): «[^a-m»]{3,9}»\."
    grammar = regex(pattern, token_bytes)
    prompt = tokenizer.encode("Once upon a time")
    mask = GrammarMask(grammar, len(prompt), frozenset(special))
    asked = replace(strategy, processors=(mask,))
    ((text,),) = generate(model, [prompt], asked, max_new_tokens=60, stop=grammar.complete)
    assert text.finish_reason == "stop"
    assert re.fullmatch(pattern, tokenizer.decode(text.tokens))


def test_one_grammar_at_a_time() -> None:
    letters = [b"a", b"b"]
    with pytest.raises(
        InvalidRequest, match="regex and grammar cannot be combined: the output follows one grammar"
    ):
        Greedy(regex=regex("a", letters), grammar=regex("b", letters))
