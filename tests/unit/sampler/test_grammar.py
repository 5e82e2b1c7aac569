"""Text that a grammar allows, because no other tokens may be chosen."""

from __future__ import annotations

import copy
import json
import pickle
import re
from itertools import product
from typing import Any

import pytest
import torch
from choices import allowed, regex, spelled

import minigpt
from minigpt import InvalidRequest, Tokenizer
from minigpt.sampler.grammar import Grammar
from minigpt.tokenizer.bpe import BYTES as VOCABULARY

BYTES: list[bytes | None] = [bytes([byte]) for byte in range(256)]
WORDS: list[bytes | None] = [
    *BYTES,
    b"ab",
    b"bc",
    b"abc",
    b" a",
    b"cab",
    b"12",
    b"aa",
    b"bb",
    b"bab",
    None,
    b"",
    b"true",
    b'{"',
]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


SMALL: dict[str, list[bytes | None]] = {
    "all": [b"a", b"b", b"ab", b"bba"],
    "pieces": [b"a", b"b", b"aab", b"ba"],
    "single": [b"a", b"b", b"c"],
}
PATTERNS = ["ab", "a?b*a", "(ab|ba)+", "a{2,3}|b.{2}", "(ab)*a?", "[^a]*a{1,2}", "(a|bb)*", "(..)*", "b|aab+"]


@pytest.mark.parametrize("vocabulary", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_token_may_follow_only_if_some_text_then_matches(
    pattern: str, vocabulary: list[bytes | None]
) -> None:
    """The oracle tries all texts of up to 6 tokens, and each of these patterns can be completed in 3."""
    n = len(vocabulary)
    texts = [text for length in range(7) for text in product(range(n), repeat=length)]
    matching = [text for text in texts if re.fullmatch(pattern, spelled(text, vocabulary))]
    beginnings = {text[:length] for text in matching for length in range(5)}
    grammar = regex(pattern, vocabulary)
    for text in texts[: 1 + n + n**2 + n**3]:
        may_follow = {token for token in range(n) if (*text, token) in beginnings}
        follows = set(allowed(grammar.mask(text))) if text in beginnings else set()
        assert follows <= may_follow, text
        # Where the text is forced, llguidance allows one way to spell it; there is always one.
        assert bool(follows) == bool(may_follow), text
        if text in beginnings:
            assert grammar.matches(text) == (text in matching)
            assert grammar.complete(text) == (text in matching and not may_follow)


def test_tokens_that_cut_characters_spell_whole_ones() -> None:
    emoji = regex("[\u00e9\U0001f600]!", BYTES)
    assert allowed(emoji.mask([])) == [0xC3, 0xF0]
    assert allowed(emoji.mask([0xF0, 0x9F, 0x98])) == [0x80]
    assert emoji.complete(list("\U0001f600!".encode()))


def test_texts_may_come_in_any_order_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams and roll-backs jump between texts, and what is remembered of them is dropped now and then."""
    texts = [text for n in range(4) for text in product([97, 98, 256], repeat=n)]
    fresh = [allowed(regex("(ab|b){2,}a", WORDS).mask(text)) for text in texts]
    monkeypatch.setattr("minigpt.sampler.grammar.REMEMBERED", 3)
    grammar = regex("(ab|b){2,}a", WORDS)
    for step in (1, -1, 7):
        places = [i * step % len(texts) for i in range(len(texts))]
        assert [allowed(grammar.mask(texts[i])) for i in places] == [fresh[i] for i in places]
        assert len(grammar._parsers) <= 3


def test_what_cannot_match_allows_nothing() -> None:
    grammar = regex("ab", WORDS)
    for text in ([99], [97, 97], [97, 98, 97], [10**6], [-1], [WORDS.index(None)]):
        assert not grammar.mask(text).any()
        assert not grammar.matches(text)


def test_a_vocabulary_of_characters_never_runs_into_a_dead_end() -> None:
    letters: list[bytes | None] = [b"a", b"b", b"c"]
    assert allowed(regex("ab|cd|ca", letters).mask([2])) == [0]  # no token spells the d
    assert allowed(regex("xa|b", letters).mask([])) == [1]


def test_a_part_of_a_character_spells_nothing_where_bytes_are_missing() -> None:
    accent = "\u00e9".encode()
    assert allowed(regex("\u00e9|a", [b"a", accent, accent[:1]]).mask([])) == [0, 1]


def test_json_that_ends_is_valid_for_its_schema() -> None:
    grammar = Grammar("json_schema", json.dumps(PERSON), WORDS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        tokens: list[int] = []
        while not grammar.complete(tokens):
            choices = grammar.mask(tokens).float()
            tokens.append(int(torch.multinomial(choices, 1, generator=generator)))
        person = json.loads(spelled(tokens, WORDS))
        assert set(person) == {"name", "age"}
        assert isinstance(person["age"], int)
        assert len(person["name"]) <= 5


def test_a_grammar_may_nest() -> None:
    nested = Grammar("lark", 'start: "(" start ")" | "a"', WORDS)
    assert nested.complete(list(b"((a))"))
    assert not nested.matches(list(b"((a)"))
    assert not nested.mask(list(b"(a))")).any()


def first_tokens(kind: Any, source: str) -> list[int]:
    grammar, tokens = Grammar(kind, source, BYTES), []
    for _ in range(3):
        tokens.append(int(grammar.mask(tokens).float().argmax()))
    return tokens


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("regex", "a(b", r"regex 'a\(b' is not supported: .*unclosed group"),
        ("regex", "(?=a)", r"not supported: .*look-around"),
        ("regex", "(a{1000}){1000}", r"is too large: .*too many|is not supported: .*too"),
        ("json_schema", "[", r"JSON schema is not a JSON object"),
        ("json_schema", '{"type": "nonsense"}', r"JSON schema is not supported: .*nonsense"),
        ("lark", "start: missing", r"grammar is not supported: .*unknown name"),
    ],
)
def test_what_cannot_be_used_is_refused(kind: Any, source: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        first_tokens(kind, source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("json", "{}", BYTES), r'^kind must be "regex", "json_schema" or "lark", got \'json\'$'),
        ((["regex"], "a", BYTES), r'^kind must be "regex", "json_schema" or "lark", got '),
        (
            ("json_schema", {"type": "object"}, BYTES),
            r"^source must be a string, got .*: write json.dumps\(schema\)$",
        ),
        (("regex", 5, BYTES), r"^source must be a string, got 5: it is the text of the grammar$"),
        (("regex", "a", 5), r"^token_bytes: write tokenizer.token_bytes\(\), got 5$"),
        (
            ("regex", "a", Tokenizer(VOCABULARY, [])),
            r"^token_bytes: write tokenizer.token_bytes\(\), got Tok",
        ),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        Grammar(*arguments)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("x+", "spell no text that matches it$"), ("x*", "spell no text that matches it but the empty one$")],
)
def test_a_vocabulary_that_spells_no_match_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        regex(pattern, [b"a", b"b"])


def test_schemas_need_all_bytes() -> None:
    with pytest.raises(
        InvalidRequest, match="JSON schema needs a vocabulary with all 256 bytes; this one has 2"
    ):
        Grammar("json_schema", "{}", [b"a", b"b"])


def test_without_the_extra_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InvalidRequest, match=r"regex 'a' needs llguidance: pip install 'minigpt\[grammar\]'"):
        regex("a", WORDS)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda grammar: pickle.loads(pickle.dumps(grammar))])
def test_it_can_be_copied_and_pickled(copied: Any) -> None:
    grammar = regex("ab*", WORDS)
    grammar.mask([97])
    assert allowed(copied(grammar).mask([97])) == [98, WORDS.index(b"bb")]
    assert repr(grammar) == "Grammar('regex', 'ab*')"


def test_the_bundled_model_completes_a_schema() -> None:
    model, tokenizer = minigpt.load()
    grammar = Grammar("json_schema", json.dumps(PERSON), tokenizer.token_bytes())
    tokens: list[int] = []
    cache = model.new_cache(60)
    logits = model.next_logits(torch.tensor([tokenizer.encode("The king was")]), cache)
    while not grammar.complete(tokens):
        scores = logits[0, : tokenizer.vocab_size].masked_fill(~grammar.mask(tokens), float("-inf"))
        tokens.append(int(scores.argmax()))
        logits = model.next_logits(torch.tensor([tokens[-1:]]), cache)
    text = tokenizer.decode(tokens)
    assert set(json.loads(text)) == {"name", "age"}
    assert json.dumps(json.loads(text)) == text  # no white space but what is usual
