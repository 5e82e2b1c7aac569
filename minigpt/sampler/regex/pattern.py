r"""Regular expressions read into a tree: the part of Python's syntax that describes regular languages.

What it has: literals; the escapes \n \t \r \f \v \a, \xHH \uHHHH \UHHHHHHHH, \d \w \s \D \W \S and escaped
punctuation; `.`; classes such as [a-z_] and [^"]; groups ( ) and (?: ); | and * + ? {m} {m,} {,n} {m,n}. The lazy
forms such as *? describe the same texts. As a pattern is always for a whole text, ^ where it begins and $
where it ends mean nothing.

\d, \w and \s are those of ASCII, as under Python's `re.ASCII`: predictable, and no tables of Unicode are
needed. `.` and what excludes characters ([^...], \D, \W, \S) take in all of Unicode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

Ranges = tuple[tuple[int, int], ...]  # of code points, both ends included


@dataclass(frozen=True)
class Characters:
    """One character, of any of these ranges; never none, never half a surrogate pair."""

    ranges: Ranges


@dataclass(frozen=True)
class Concatenation:
    """One part after the other; without parts the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Alternation:
    """Any of the options."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repetition:
    """From `least` to `most` times the part, one after the other; None is any number."""

    part: Node
    least: int
    most: int | None


Node = Characters | Concatenation | Alternation | Repetition

LAST = 0x10FFFF  # of all code points
SURROGATES = (0xD800, 0xDFFF)  # code points that are no characters
MAX_DEPTH = 100  # groups in groups; each costs some of Python's stack


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """All code points outside these ranges, which may overlap.

    >>> complement([(5, 9), (0, 3)])
    ((4, 4), (10, 1114111))
    """
    outside, free = [], 0
    for low, high in sorted(ranges):
        if free < low:
            outside.append((free, low - 1))
        free = max(free, high + 1)
    return (*outside, *([(free, LAST)] if free <= LAST else []))


DIGITS: Ranges = ((0x30, 0x39),)
WORD: Ranges = (*DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
ALL_BUT_NEWLINE = complement([(0x0A, 0x0A)])
ESCAPES: dict[str, Ranges] = {
    "d": DIGITS, "D": complement(DIGITS),
    "w": WORD, "W": complement(WORD),
    "s": SPACE, "S": complement(SPACE),
    **{letter: ((ord(meant), ord(meant)),) for letter, meant in zip("ntrfva", "\n\t\r\f\v\a", strict=True)},
}  # fmt: skip
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
QUANTIFIER = re.compile(r"(?P<sign>[*+?])|\{(?P<exactly>[0-9]+)\}|\{(?P<least>[0-9]*),(?P<most>[0-9]*)\}")

UNSUPPORTED_ESCAPES = {
    **dict.fromkeys("bB", "a word boundary"),
    **dict.fromkeys("AZ", "an anchor"),
    **dict.fromkeys("123456789", "a backreference"),
    "0": "an octal escape",
}
UNSUPPORTED_GROUPS = {
    "(?=": "a lookahead", "(?!": "a lookahead", "(?<": "a lookbehind", "(?P=": "a backreference",
    "(?P<": "a named group", "(?>": "an atomic group", "(?(": "a conditional group", "(?#": "a comment",
}  # fmt: skip
SUPPORTED = (
    r"there are literals, \d \w \s \n \xHH, ., [classes], ( ), (?: ), |, * + ? {m,n}, and *? and the like"
)


def parse(pattern: str) -> Node:
    """The tree of a regular expression.

    Raises:
        ValueError: it is not well-formed, or holds what this module's syntax has not, such as a lookahead or
            a backreference; the message names it and its place, counted from 0.

    >>> parse("a|b*")  # doctest: +ELLIPSIS
    Alternation(options=(Characters(ranges=((97, 97),)), Repetition(part=Characters(...), least=0, most=None)))
    """
    return _Parser(pattern).parse()


class _Parser:
    """Reads a pattern from left to right, each method one construct."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.depth = 0

    def parse(self) -> Node:
        tree = self._alternation()
        if self.at < len(self.pattern):
            self._refuse("a ')' that closes nothing", self.at)
        return tree

    def _alternation(self) -> Node:
        options = [self._concatenation()]
        while self._take("|"):
            options.append(self._concatenation())
        return options[0] if len(options) == 1 else Alternation(tuple(options))

    def _concatenation(self) -> Node:
        parts: list[Node] = []
        while self.at < len(self.pattern) and not self._sees("|", ")"):
            if self._sees("^", "$"):
                self._anchor(first=not parts)
            else:
                parts.append(self._quantified(self._atom()))
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _anchor(self, first: bool) -> None:
        start = self.at
        at_the_end = self._take("$") and (self.at == len(self.pattern) or self._sees("|"))
        if self.depth or not (at_the_end or (first and self._take("^"))):
            self._unsupported("an anchor inside the pattern", start)

    def _atom(self) -> Node:
        start = self.at
        if QUANTIFIER.match(self.pattern, start):
            self._refuse("a quantifier that has nothing to repeat", start)
        if self._take("("):
            return self._group(start)
        if self._take("["):
            return self._characters(self._class(start), start)
        if self._take("."):
            return self._characters(ALL_BUT_NEWLINE, start)
        return self._characters(self._character(), start)

    def _quantified(self, part: Node) -> Node:
        start = self.at
        found = QUANTIFIER.match(self.pattern, start)
        if found is None:
            return part
        self.at = found.end()
        if not self._take("?") and self._sees("+"):
            self._unsupported("a possessive quantifier", start)
        if QUANTIFIER.match(self.pattern, self.at):
            self._refuse("a quantifier after a quantifier", self.at)
        least, most = _bounds(found)
        if most is not None and most < least:
            self._refuse(f"{found[0]}, at least {least} times and at most {most},", start)
        return Repetition(part, least, most)

    def _group(self, start: int) -> Node:
        if not self._take("?:") and self._sees("?"):
            opening = (text for text in UNSUPPORTED_GROUPS if self.pattern.startswith(text, start))
            self._unsupported(UNSUPPORTED_GROUPS.get(next(opening, ""), "a flag"), start)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._refuse(f"more than {MAX_DEPTH} groups in one another", start)
        inside = self._alternation()
        self.depth -= 1
        if not self._take(")"):
            self._refuse("a '(' that is never closed", start)
        return inside

    def _class(self, start: int) -> Ranges:
        """A class whose [ has been read."""
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not ranges or not self._take("]"):  # a ] that comes first is a character
            if self.at == len(self.pattern):
                self._refuse("a '[' that is never closed", start)
            ranges.extend(self._class_item())
        return complement(ranges) if negated else tuple(ranges)

    def _class_item(self) -> Ranges:
        """One or more characters of a class: one, one escape, or a range."""
        start = self.at
        low = self._character()
        if not self._sees("-") or self.at + 1 == len(self.pattern) or self._sees("-]"):
            return low
        self.at += 1
        high = self._character()
        (first, *_), (last, *_) = low[0], high[0]
        if low != ((first, first),) or high != ((last, last),) or first > last:
            self._refuse(f"{self.pattern[start : self.at]!r}, which is no range,", start)
        return ((first, last),)

    def _character(self) -> Ranges:
        """What one character, or an escape, stands for."""
        start = self.at
        self.at += 1
        if not self.pattern.startswith("\\", start):
            code = ord(self.pattern[start])
            return ((code, code),)
        letter = self.pattern[self.at : self.at + 1]
        self.at += 1
        if not letter:
            self._refuse("a backslash that escapes nothing", start)
        if letter in ESCAPES:
            return ESCAPES[letter]
        if letter in HEX_DIGITS:
            return self._code_point(HEX_DIGITS[letter], start)
        if letter.isascii() and letter.isalnum():
            self._unsupported(UNSUPPORTED_ESCAPES.get(letter, "an escape without a meaning"), start)
        return ((ord(letter), ord(letter)),)

    def _code_point(self, length: int, start: int) -> Ranges:
        found = re.compile(f"[0-9a-fA-F]{{{length}}}").match(self.pattern, self.at)
        if found is None or int(found[0], 16) > LAST:
            self._refuse(f"an escape that lacks its {length} hexadecimal digits, up to {LAST:x},", start)
        self.at = found.end()
        return ((int(found[0], 16), int(found[0], 16)),)

    def _characters(self, ranges: Ranges, start: int) -> Characters:
        ranges = complement((*complement(ranges), SURROGATES))
        if not ranges:
            self._refuse(f"{self.pattern[start : self.at]!r}, which no character can match,", start)
        return Characters(ranges)

    def _sees(self, *texts: str) -> bool:
        return self.pattern.startswith(texts, self.at)

    def _take(self, text: str) -> bool:
        taken = self._sees(text)
        self.at += len(text) * taken
        return taken

    def _unsupported(self, what: str, at: int) -> NoReturn:
        text = self.pattern[at : at + 4]
        raise ValueError(
            f"regex {self.pattern!r} holds {what} at position {at}, {text!r}: not supported; {SUPPORTED}"
        )

    def _refuse(self, what: str, at: int) -> NoReturn:
        raise ValueError(f"regex {self.pattern!r} holds {what} at position {at}")


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    """How often at least and at most; None is any number."""
    if sign := quantifier["sign"]:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
    if exactly := quantifier["exactly"]:
        return int(exactly), int(exactly)
    return int(quantifier["least"] or 0), int(quantifier["most"]) if quantifier["most"] else None
