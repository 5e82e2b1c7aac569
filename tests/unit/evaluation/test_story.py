"""What is counted in stories, on short ones written for it."""

from __future__ import annotations

import math

import pytest

from minigpt.evaluation.story import (
    known_words,
    names,
    names_kept,
    parses,
    quotations_closed,
    sentences,
    sentences_that_parse,
)

KNOWN = known_words(["the a king queen wept and to was very had that he she slept in house it of"], least=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It rained. And then it", ["It rained."]),
        ("", []),
        ("no end", []),
        ('"Come!" he cried. "I will."', ['"Come!" he cried.', '"I will."']),
        ("Mrs. Fox and Dr. Hare met.", ["Mrs Fox and Dr Hare met."]),
        ("He had 3.5 apples. She none.", ["He had 3.5 apples.", "She none."]),
        ("“Why?” asked she.\n\n“So.”", ["“Why?” asked she.", "“So.”"]),
        ("Wait... what?", ["Wait... what?"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Anna met Karl.", ["Karl"]),  # the first word is capitalised whatever it is
        ("He met Karl. Karl wept.", ["Karl"]),
        ('Then said Karl: "Anna is here."', ["Karl"]),
        ('"Come," said Anna, "Karl is here."', ["Anna"]),
        ("“Come,” said Anna.", ["Anna"]),
        ("Now I and Mr. Fox, I'll say, met Mrs. Hare.", ["Fox", "Hare"]),
        ("It was\n\nAnna", ["Anna"]),
        ("and Jean-Luc's house", ["Jean-Luc's"]),
    ],
)
def test_names(text: str, expected: list[str]) -> None:
    assert [name for _, name in names(text)] == expected


def test_names_have_their_places() -> None:
    text = "So Anna met Karl."
    assert [text[place : place + len(name)] for place, name in names(text)] == ["Anna", "Karl"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("there was Anna, and Karl too, and then came Karl and Anna", 1.0),
        ("there was Anna, only her and her cat, and then came Karl and Tom", 0.0),
        ("there was Anna, only her and her cat, and then came Karl and Anna", 0.5),
    ],
)
def test_names_kept(text: str, expected: float) -> None:
    assert names_kept(text) == expected


def test_a_text_without_names_or_with_none_in_its_second_half() -> None:
    assert math.isnan(names_kept("there was a cat and a dog"))
    assert math.isnan(names_kept("there was Anna, and a cat, and a dog, and a mouse"))
    assert math.isnan(names_kept(""))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"Come."\n\nEnd', 1.0),
        ('"Come.\n\nEnd', 0.0),
        ('"Come.\n\n"Go."\n\nNobody.\n\nEnd', 0.5),
        ("“Come.”\n\n“Go.\n\nEnd", 0.5),
        ('"Come," he said, "and go.\n\nEnd', 0.0),
    ],
)
def test_quotations_closed(text: str, expected: float) -> None:
    assert quotations_closed(text) == expected


def test_a_last_paragraph_may_be_cut_off() -> None:
    assert math.isnan(quotations_closed('Once.\n\n"Come'))
    assert math.isnan(quotations_closed("'Come,' said he.\n\nAnd"))


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The king wept.", False),  # "wept" is known, but no finite verb of the list
        ("The king was in the house.", True),
        ("The king jumped to the house.", False),  # "jumped" is not known
        ('"The king was in it."', True),
        ("the king was in it.", False),
        ("He was.", False),
        ("The Zorgle was in it.", True),  # a name may be anything
        ("The zorgle was in it.", False),
        ("The king and the queen in the house.", False),
        ("The the king was in it.", False),
        ("He had had a very very house.", True),
        ("The king was " + "in " + "it in " * 40 + "it.", False),  # too long
    ],
)
def test_parses(sentence: str, expected: bool) -> None:
    assert parses(sentence, KNOWN) is expected


def test_a_verb_is_recognised_by_its_ending() -> None:
    assert parses("The king jumped to it.", KNOWN | {"jumped"})


def test_the_share_of_sentences_that_parse() -> None:
    assert sentences_that_parse("The king was in it. The zorgle was in it. The ki", KNOWN) == 0.5
    assert math.isnan(sentences_that_parse("The king", KNOWN))


def test_known_words_are_those_that_occur_often_enough() -> None:
    texts = ["The Cat's hat.", "A hat, the HAT."]
    assert known_words(texts) == {"the", "hat"}
    assert known_words(texts, least=1) == {"the", "hat", "cat's", "a"}
    assert known_words(texts, least=3) == {"hat"}
