"""Text that matches a regular expression because no other tokens may be chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from fakes import FakeModel, scrambled, tiny_gpt2

import minigpt
from minigpt.sampler import Beam, Completion, Greedy, Sample, generate
from minigpt.sampler.processors import RegexMask
from minigpt.sampler.regex import automaton
from minigpt.sampler.regex import mask as mask_module
from minigpt.sampler.regex.automaton import DEAD, START, Automaton
from minigpt.sampler.regex.mask import Regex
from minigpt.sampler.regex.token_trie import TokenTrie

NONE = float("-inf")
BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [None, b"a", b"b", b"c", b"ab", b"bc", b"abc", b" ", b" a", b"cab", b"\n", b"1", b"2", b"12", b"-", b".",
         b"", "é".encode(), "é".encode()[:1], "é".encode()[1:], b"aa", b"bb", b"a b"]  # fmt: skip


def spelled(tokens: Sequence[int], token_bytes: Sequence[bytes | None] = WORDS) -> str:
    return b"".join(token_bytes[token] or b"" for token in tokens).decode()


def allowed(mask: torch.Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


ALL = [b"a", b"b", b"ab", b"bba"]
LACKING_A = [b"b", b"ab", b"aab", b"ba"]
ONLY_PAIRS = [b"ab", b"ba", b"aa", b"bab"]


@pytest.mark.parametrize("vocabulary", [ALL, LACKING_A, ONLY_PAIRS], ids=["all", "lacking-a", "only-pairs"])
@pytest.mark.parametrize(
    "pattern", ["ab", "a?b*a", "(ab|ba)+", "a{2,3}|b.{2}", "(ab)*a?", "[^a]*a{1,2}", "(a|bb)*", "a(.|ba)b|bba", "(..)*", "b|aab+"]
)  # fmt: skip
def test_a_token_may_follow_if_and_only_if_some_text_then_matches(
    pattern: str, vocabulary: list[bytes]
) -> None:
    """The judge tries all texts of up to 6 tokens, and each of these patterns can be completed in 3."""
    texts = [text for n in range(7) for text in product(range(4), repeat=n)]
    found = [text for text in texts if re.fullmatch(pattern, spelled(text, vocabulary))]
    beginnings = {text[:n] for text in found for n in range(5)}
    if beginnings <= {()}:
        with pytest.raises(ValueError, match="spell no text that matches it"):
            Regex(pattern, vocabulary)
        return
    regex = Regex(pattern, vocabulary)
    for text in texts[: 1 + 4 + 16 + 64]:
        follow = [token for token in range(4) if (*text, token) in beginnings]
        assert (text, allowed(regex.mask(text))) == (text, follow)
        assert regex.matches(text) == (text in found)
        assert regex.complete(text) == (text in found and not follow)


def test_some_of_these_texts_would_run_into_a_dead_end() -> None:
    """Or else the above would prove little: after "b", here, no tokens spell the "a" that is needed."""
    assert Automaton("ba|ab").read(START, b"b") != DEAD
    assert not Regex("ba|ab", [b"b", b"ab"]).mask([])[0]
    assert Regex("ba|ab", [b"b", b"ab", b"a"]).mask([])[0]


def test_tokens_that_cut_characters_spell_whole_ones() -> None:
    regex = Regex("[é😀]!", BYTES)
    assert allowed(regex.mask([])) == [0xC3, 0xF0]
    assert allowed(regex.mask([0xF0, 0x9F, 0x98])) == [0x80]
    assert regex.complete(list("😀!".encode()))
    regex = Regex("[^é]", BYTES)
    assert len(allowed(regex.mask([]))) == 128 + 30 + 16 + 5  # first bytes of one to four
    assert 0xA9 not in allowed(regex.mask([0xC3]))


def test_the_tree_of_tokens_reads_each_as_the_automaton_alone_does() -> None:
    reader = Automaton(r"(a|é)*b{,3}|.?\w+")
    token_bytes = [*WORDS * 20, b"a" * 128]
    for state in (START, reader.read(START, b"a"), reader.read(START, b"\xc3"), DEAD):
        after = TokenTrie(token_bytes).read(reader, state)
        assert after.tolist() == [reader.read(state, text) if text else DEAD for text in token_bytes]


def test_end_tokens_are_allowed_exactly_where_the_text_matches() -> None:
    mask = RegexMask(Regex("(ab)+", WORDS), prompt_length=2, end_tokens=frozenset([0, 99]))
    logits = torch.arange(3 * 23.0).view(3, 23)
    out = mask(logits, torch.tensor([[5, 5, 1], [5, 5, 4], [5, 5, 2]]))
    assert [allowed(row > NONE) for row in out] == [[2], [0, 1, 4], []]
    assert torch.equal(out[out > NONE], logits[out > NONE])
    assert torch.equal(logits, torch.arange(3 * 23.0).view(3, 23))  # its input stays as it was


def test_an_end_token_that_spells_something_is_an_end_token() -> None:
    mask = RegexMask(Regex("[ab]b", WORDS), prompt_length=0, end_tokens=frozenset([2]))
    out = mask(torch.zeros(2, 23), torch.tensor([[1], [4]]))
    assert [allowed(row > NONE) for row in out] == [[], [2]]


def test_an_end_token_ends_the_match() -> None:
    regex = Regex("a*", WORDS)
    assert not regex.mask([1, 0]).any()
    assert not regex.matches([1, 0])
    assert not regex.matches([1, 99])  # nor is anything known of ids beyond the vocabulary


def test_ids_beyond_the_tokenizer_s_are_ruled_out() -> None:
    mask = RegexMask(Regex("a*", WORDS), prompt_length=0, end_tokens=frozenset([30]))
    (row,) = mask(torch.zeros(1, 40), torch.empty(1, 0, dtype=torch.long))
    assert allowed(row > NONE) == [1, 20, 30]


def test_what_was_ruled_out_before_stays_so() -> None:
    logits = torch.zeros(1, 23)
    logits[0, [0, 1]] = NONE
    out = RegexMask(Regex("a*", WORDS), 0, frozenset([0]))(logits, torch.empty(1, 0, dtype=torch.long))
    assert allowed(out[0] > NONE) == [20]


@pytest.mark.parametrize(("remembered", "max_states"), [(500, 20_000), (3, 20_000), (500, 4), (3, 4)])
def test_texts_may_come_in_any_order_however_many(
    monkeypatch: pytest.MonkeyPatch, remembered: int, max_states: int
) -> None:
    """Beams and roll-backs jump between texts, and what is remembered of them is dropped now and then."""
    texts = [text for n in range(4) for text in product([1, 2, 4], repeat=n)]
    fresh = [allowed(Regex("(ab|b){2,}a", WORDS).mask(text)) for text in texts]
    monkeypatch.setattr(mask_module, "REMEMBERED", remembered)
    monkeypatch.setattr(mask_module, "MAX_STATES", max_states)
    regex = Regex("(ab|b){2,}a", WORDS)
    for step in (1, -1, 7):
        places = [i * step % len(texts) for i in range(len(texts))]
        assert [allowed(regex.mask(texts[i])) for i in places] == [fresh[i] for i in places]
        assert len(regex._masks) <= remembered
        assert len(regex._states) <= remembered


def test_masks_are_dropped_with_the_states_that_they_belong_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_module, "MAX_STATES", 4)
    regex = Regex("aaab|bbbc", [b"a", b"b", b"c"])
    assert [allowed(regex.mask(text)) for text in ([0, 0, 0], [1, 1, 1], [0, 0, 0])] == [[1], [2], [1]]


def test_a_pattern_with_very_many_states_reads_long_texts() -> None:
    """Which of the last 40 letters were an "a" must be remembered."""
    regex = Regex("[ab]*a[ab]{40}", BYTES)
    text = [*b"abbab" * 30]
    assert allowed(regex.mask(text)) == [*b"ab"]
    assert regex.matches(text) == (chr(text[-41]) == "a")


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
    model: Any, regex: Regex, strategy: Any, end_tokens: Sequence[int], token: int = 1
) -> list[Completion]:
    """Texts that continue a prompt of two tokens, ended where the regular expression says."""
    mask = RegexMask(regex, prompt_length=2, end_tokens=frozenset(end_tokens))
    with_mask = replace(strategy, processors=(mask,))
    (texts,) = generate(
        model, [[token, 2]], with_mask, max_new_tokens=12, end_tokens=end_tokens, stop=regex.complete
    )
    return texts


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["greedy", "sample", "beam"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("end_tokens", [[0], []], ids=["ends", "no-ends"])
def test_texts_that_finish_match(model: Any, pattern: str, strategy: Any, end_tokens: list[int]) -> None:
    regex = Regex(pattern, WORDS)
    for text in constrained(model, regex, strategy, end_tokens):
        assert text.finish_reason in {"stop", "eos", "length"}
        if text.finish_reason == "length":  # cut off, and could have gone on
            assert len(text.tokens) == 12
            assert regex.mask(text.tokens).any()
        else:
            written = text.tokens[: -1 if text.finish_reason == "eos" else None]
            assert re.fullmatch(pattern, spelled(written))
            assert text.finish_reason == "eos" or regex.complete(written)


def test_these_texts_end_for_every_reason() -> None:
    """Or else the above would prove little."""
    found = [
        text.finish_reason
        for model in MODELS.values()
        for pattern in PATTERNS
        for text in constrained(model, Regex(pattern, WORDS), STRATEGIES[1], [0])
    ]
    assert set(found) == {"stop", "eos", "length"}
    assert found.count("length") < len(found) / 3


@pytest.mark.parametrize("strategy", STRATEGIES[:2], ids=["greedy", "sample"])
def test_a_pattern_that_allows_everything_changes_nothing(strategy: Any) -> None:
    characters = [bytes([97 + token]) for token in range(23)]
    for model in MODELS.values():
        mask = RegexMask(Regex(r"(.|\n)*", characters), prompt_length=2, end_tokens=frozenset([4]))
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
    regex = Regex(pattern, token_bytes)
    prompt = tokenizer.encode("Once upon a time")
    mask = RegexMask(regex, len(prompt), frozenset(special))
    asked = replace(strategy, processors=(mask,))
    ((text,),) = generate(model, [prompt], asked, max_new_tokens=60, stop=regex.complete)
    assert text.finish_reason == "stop"
    assert re.fullmatch(pattern, tokenizer.decode(text.tokens))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x+", r"^regex 'x\+': the tokens of this vocabulary spell no text that matches it$"),
        ("aax|c?x", r"spell no text that matches it$"),
        ("x*", r"spell no text that matches it but the empty one$"),
        ("", r"^regex '': the tokens of this vocabulary spell no text that matches it but the empty one$"),
        ("a(b", r"^regex 'a\(b' holds a '\(' that is never closed at position 1$"),
        ("(?=a)", "not supported"),
        ("a{30000}", "takes more than 20,000 states"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_at_once(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regex(pattern, WORDS)


def test_where_all_states_must_be_asked_they_must_not_be_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "MAX_STATES", 300)
    Regex("[abc]*a[abc]{20}", WORDS)  # tokens spell all that it allows
    with pytest.raises(ValueError, match="takes more than 300 states"):
        Regex(
            "[abcx]*a[abcx]{20}", WORDS
        )  # x cannot be spelled, so which states lead to a match is looked for


def test_a_vocabulary_without_any_text_is_refused() -> None:
    with pytest.raises(ValueError, match="spell no text that matches it"):
        Regex("a", [None, b""])


def test_it_says_which_pattern_it_is() -> None:
    assert repr(Regex("a+", WORDS)) == "Regex('a+')"
