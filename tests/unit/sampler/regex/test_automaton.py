"""Regular expressions read by hand and turned into an automaton over bytes; Python's `re` is the judge."""

from __future__ import annotations

import re
from itertools import product
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.sampler.regex.automaton import DEAD, LENGTHS, START, Automaton, utf8
from minigpt.sampler.regex.pattern import LAST, complement, parse

SURROGATES = range(0xD800, 0xE000)
TEXTS = ["".join(text) for n in range(4) for text in product("ab\né😀", repeat=n)]


def matches(automaton: Automaton, text: str) -> bool:
    return automaton.accepts(automaton.read(START, text.encode()))


def quantified(part: str, quantifier: str) -> str:
    return f"(?:{part}){quantifier}"


ATOMS = st.sampled_from(
    ["a", "b", "é", "😀", ".", "[ab]", "[^a]", "[^é\\n]", "[é-😀]", r"\w", r"\W", r"\s", ""]
)
QUANTIFIERS = st.sampled_from(
    ["*", "+", "?", "{2}", "{1,}", "{,2}", "{0,1}", "{0}", "{1,3}", "*?", "+?", "{1,2}?"]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: (
        st.builds("{}{}".format, inner, inner)
        | st.builds("(?:{}|{})".format, inner, inner)
        | st.builds(quantified, inner, QUANTIFIERS)
    ),
    max_leaves=6,
)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(PATTERNS)
def test_it_matches_what_python_matches(pattern: str) -> None:
    judge, automaton = re.compile(pattern, re.ASCII), Automaton(pattern)
    assert [t for t in TEXTS if matches(automaton, t)] == [t for t in TEXTS if judge.fullmatch(t)]


SYNTAX = [
    "", "a|", "|", "^a|b$", "^$", "^^a", "(a)(b)", "((a)|b)c", "(?:ab)+?", "a??", "a{2}", "a{2,}", "a{,2}", "a{,}",
    "{", "a{", "a{b}", "a{1", "a{}", "a{1,2", "x{,", "}", "]", "a]", "[]a]", "[^]a]", "[a-]", "[-a]", "[+-.]", "[.^$*]",
    "[a^]", r"[\]\-\\]", r"[\d_]", r"[\w-]", r"[^\W\d]", r"[\s\S]", r"[a-z\n]", r"\.\*\+\?\(\)\[\]\{\}\|\^\$\\", r"\n\t\r\f\v\a",
    r"\x41\u00e9\U0001F600", r"[\x41-\x43]", r"\-\ \é\"", r"\d\D\w\W\s\S", "é|€|😀", "[é€😀]", "[é-€]", "[^é]", "(a*)*", "(a|)*b",
    "(?:){3}", "(a{0}){5}b", "((a?){3}){2}", "[0-9]{2}:[0-9]{2}", "a\\\nb", ".",
]  # fmt: skip
SAMPLES = [
    "", "a", "b", "ab", "aa", "aaa", "aaaa", "ba", "abab", "ac", "bc", "abc", "{", "a{", "a{b}", "a{1", "a{}", "a{1,2", "x{,",
    "}", "]", "a]", "-", "+", ",", ".", "^", "$", "*", "\\", "_", "9", "A", "B", "z", "\n", "\r", "\u2028", ".*+?()[]{}|^$\\",
    "\n\t\r\f\v\a", "Aé😀", "- é\"", "0x_- y", "é", "€", "😀", "ü", "ÿ", "\u0100", "²", "٣", "\xa0", "12:34", "a\nb", "\0", "\U0010ffff",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SYNTAX)
def test_its_syntax_is_python_s(pattern: str) -> None:
    judge, automaton = re.compile(pattern, re.ASCII), Automaton(pattern)
    assert [t for t in SAMPLES if matches(automaton, t)] == [t for t in SAMPLES if judge.fullmatch(t)]


def test_these_samples_say_something() -> None:
    """Or else the above would prove little: nearly every pattern matches one of them."""
    unmatched = [p for p in SYNTAX if not any(re.fullmatch(p, text, re.ASCII) for text in SAMPLES)]
    assert unmatched == []


BORDERS = sorted(
    {code + i for pair in (*LENGTHS, (0xD7FF, 0xE000), (0x28, 0xE9)) for code in pair for i in (-1, 0, 1)}
)
BORDERS = [code for code in BORDERS if 0 <= code <= LAST and code not in SURROGATES]


@pytest.mark.parametrize(
    "pattern", [".", "[^a-zé]", r"\W", r"\D", r"\S", "[à-€]", "[€-😀]", "[^\0-\ud7ff]", "[\ud000-\ue0ff]"]
)
def test_classes_hold_the_right_characters_at_every_border_of_utf8(pattern: str) -> None:
    judge, automaton = re.compile(pattern, re.ASCII), Automaton(pattern)
    characters = [chr(code) for code in BORDERS]
    assert [c for c in characters if matches(automaton, c)] == [c for c in characters if judge.fullmatch(c)]


@pytest.mark.parametrize("pattern", [r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "."])
def test_shorthands_are_those_of_ascii(pattern: str) -> None:
    judge, automaton = re.compile(pattern, re.ASCII), Automaton(pattern)
    characters = [chr(code) for code in range(0x200)]
    assert [c for c in characters if matches(automaton, c)] == [c for c in characters if judge.fullmatch(c)]


CODES = st.sampled_from(BORDERS) | st.integers(0, LAST)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(CODES, CODES, CODES)
def test_a_range_of_characters_is_spelled_once_and_no_other_is(a: int, b: int, other: int) -> None:
    low, high = min(a, b), max(a, b)
    for first, last in ((low, min(high, 0xD7FF)), (max(low, 0xE000), high)):
        spellings = list(utf8(first, last)) if first <= last else []
        total = sum(prod(end - begin + 1 for begin, end in spelling) for spelling in spellings)
        assert total == max(0, last - first + 1)
        for code in {first, last, other} - set(SURROGATES):
            found = [s for s in spellings if fits(s, chr(code).encode())]
            assert len(found) == (first <= code <= last)


def fits(spelling: list[tuple[int, int]], text: bytes) -> bool:
    pairs = zip(spelling, text, strict=False)
    return len(spelling) == len(text) and all(low <= byte <= high for (low, high), byte in pairs)


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x80",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80",
        b"\xed\xa0",
        b"\xf0\x80",
        b"\xf4\x90",
        b"\xf5",
        b"\xff",
        b"\xe2a",
    ],
)
def test_what_is_no_utf8_matches_nothing(wrong: bytes) -> None:
    assert Automaton(r"(.|\n)*").read(START, wrong) == DEAD


def test_a_character_that_is_cut_can_still_be_completed() -> None:
    automaton = Automaton("€|é")
    for text in ("€", "é"):
        for cut in range(1, len(text.encode())):
            state = automaton.read(START, text.encode()[:cut])
            assert state != DEAD
            assert not automaton.accepts(state)


def test_complement() -> None:
    everything = ((0, LAST),)
    assert complement([]) == everything
    assert complement(everything) == ()
    assert complement([(5, 7), (3, 5), (9, LAST)]) == ((0, 2), (8, 8))


def test_numbers_of_states_begin_anew_when_forgotten() -> None:
    automaton = Automaton("(ab)*c")
    before = len(automaton)
    read = [matches(automaton, text) for text in ("abc", "ab")]
    assert len(automaton) > before
    automaton.forget()
    assert len(automaton) == before
    assert [matches(automaton, text) for text in ("abc", "ab")] == read == [True, False]


def test_what_is_repeated_very_often_but_empty_takes_no_room() -> None:
    assert matches(Automaton("(a{0}){999999999}b"), "b")


UNSUPPORTED = [
    ("ab(?=c)", r"holds a lookahead at position 2, '\(\?=c': not supported; there are literals, \\d \\w"),
    ("(?!c)", "holds a lookahead at position 0"),
    ("(?<=c)d", "holds a lookbehind at position 0"),
    ("(?<!c)d", "holds a lookbehind at position 0"),
    ("(?P<name>a)", "holds a named group at position 0"),
    ("(a)(?P=name)", "holds a backreference at position 3"),
    ("(?>a)", "holds an atomic group at position 0"),
    ("(a)(?(1)b)", "holds a conditional group at position 3"),
    ("(?#b)", "holds a comment at position 0"),
    ("(?i)a", "holds a flag at position 0"),
    ("a(?i:b)", "holds a flag at position 1"),
    (r"(a)\1", r"holds a backreference at position 3, '\\\\1': not supported"),
    (r"\0", "holds an octal escape at position 0"),
    (r"a\b", "holds a word boundary at position 1"),
    (r"\B", "holds a word boundary at position 0"),
    (r"\Aa", "holds an anchor at position 0"),
    (r"\q", "holds an escape without a meaning at position 0"),
    ("a^b", "holds an anchor inside the pattern at position 1"),
    ("a$b", "holds an anchor inside the pattern at position 1"),
    ("(^a)", "holds an anchor inside the pattern at position 1"),
    ("(a$)", "holds an anchor inside the pattern at position 2"),
    ("a*+", "holds a possessive quantifier at position 1"),
]
MALFORMED = [
    ("a)", r"regex 'a\)' holds a '\)' that closes nothing at position 1"),
    ("(a|b", r"holds a '\(' that is never closed at position 0"),
    ("a[b", r"holds a '\[' that is never closed at position 1"),
    ("[]", r"holds a '\[' that is never closed at position 0"),
    ("[a-", r"holds a '\[' that is never closed at position 0"),
    ("*a", "holds a quantifier that has nothing to repeat at position 0"),
    ("(+a)", "holds a quantifier that has nothing to repeat at position 1"),
    ("a|{2}", "holds a quantifier that has nothing to repeat at position 2"),
    ("^*", "holds a quantifier that has nothing to repeat at position 1"),
    ("a**", "holds a quantifier after a quantifier at position 2"),
    ("a{2}{3}", "holds a quantifier after a quantifier at position 4"),
    ("a{3,2}", r"holds \{3,2\}, at least 3 times and at most 2, at position 1"),
    ("[z-a]", "holds 'z-a', which is no range, at position 1"),
    (r"[a-\d]", r"holds 'a-\\\\d', which is no range, at position 1"),
    ("a\\", "holds a backslash that escapes nothing at position 1"),
    ("[\\", "holds a backslash that escapes nothing at position 1"),
    (r"\x4", "holds an escape that lacks its 2 hexadecimal digits, up to 10ffff, at position 0"),
    (r"\u00g0", "holds an escape that lacks its 4 hexadecimal digits"),
    (r"\U00110000", "holds an escape that lacks its 8 hexadecimal digits, up to 10ffff, at position 0"),
    (r"a[^\s\S]", r"holds '\[\^\\\\s\\\\S\]', which no character can match, at position 1"),
    ("\ud800", r"holds '\\ud800', which no character can match, at position 0"),
    ("(" * 101 + ")" * 101, "holds more than 100 groups in one another at position 100"),
]


@pytest.mark.parametrize(("pattern", "message"), UNSUPPORTED + MALFORMED)
def test_what_is_wrong_with_a_pattern_is_told_with_its_place(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(pattern)


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in MALFORMED[:-7]])
def test_python_refuses_them_too(pattern: str) -> None:
    with pytest.raises(re.error):
        re.compile(pattern)


@pytest.mark.parametrize("pattern", [".{2000}", "((((a{99}){99}){99}){99}){99}", "(a?){999999999}"])
def test_a_pattern_too_large_is_refused_before_it_is_built(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"takes more than 20,000 states: lower the numbers in its \{m,n\}"):
        Automaton(pattern)


def test_groups_may_be_nested_100_deep() -> None:
    assert matches(Automaton("(" * 100 + "a" + "|b)*" * 100), "ab")
