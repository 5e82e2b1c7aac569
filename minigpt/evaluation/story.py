"""What can be counted in a story without understanding it: names that stay, quotations that close, sentences that parse.

Each is a proxy: a text can pass all of them and be nonsense, but a story that holds together does well in each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from itertools import pairwise

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
SENTENCE = re.compile(r".+?[.!?]+(?=[\"'”’)]*(?:\s|$))[\"'”’)]*", re.DOTALL)
OPENING = "\"'“‘([ \n"  # what may stand before the first word of a sentence
TITLE = re.compile(r"\b(Mr|Mrs|Dr|St)\.")
NO_NAMES = frozenset(("I", "I'll", "I'm", "I've", "I'd", "O", "Oh", "Mr", "Mrs", "Dr", "St"))
SHORTEST, LONGEST = 3, 60  # words of a sentence

# The finite verbs of tales that no ending gives away; those in -ed are recognised by it.
VERBS = frozenset(
    WORD.findall(
        "am is are was were be been have has had do does did can could will would shall should may might must "
        "said say says went go goes came come comes saw see sees took take takes made make makes gave give "
        "gives got get gets knew know knows thought think thinks told tell tells found find finds stood stand "
        "stands sat sit sits ran run runs began begin begins let lets put puts held hold holds kept keep "
        "keeps left leave fell fall falls felt feel feels heard hear hears brought bring brings grew grow "
        "grows threw flew lay lie lies led met sent spoke speak speaks rose rise slept sleep sleeps ate eat "
        "eats drank sang sing wore bore broke caught bought sought taught fought lost won set cut hit shut "
        "hung rode drove shook woke swam sprang sank cried cry cries tried try tries replied lived live lives "
        "wish wishes want wants need needs like likes love loves look looks ask asks seem seems became become "
        "becomes"
    )
)


def sentences(text: str) -> list[str]:
    """The complete sentences of a text, in order; what follows the last end mark is left out, for it may be cut off.

    What goes on in lower case after an end mark, as after direct speech, belongs to the sentence before it. Titles
    such as Mr. lose their full stop.

    >>> sentences('"Who is there?" said Mr. Fox. "I." Nobody els')
    ['"Who is there?" said Mr Fox.', '"I."']
    """
    found: list[str] = []
    for part in (part.strip() for part in SENTENCE.findall(TITLE.sub(r"\1", text))):
        first = WORD.search(part)
        if found and first and first[0][0].islower():
            found[-1] += " " + part
        else:
            found.append(part)
    return found


def names(text: str) -> list[tuple[int, str]]:
    """Every mention of a name, in order, with its place: a capitalised word that begins no sentence or quotation.

    >>> names("The king met Anna. Then Mr. Fox and I saw the King.")
    [(13, 'Anna'), (28, 'Fox'), (46, 'King')]
    """
    return [
        (word.start(), word[0])
        for word in WORD.finditer(text)
        if word[0][0].isupper() and word[0] not in NO_NAMES and not _begins(text, word.start())
    ]


def _begins(text: str, place: int) -> bool:
    """Whether the word at a place begins a sentence, a quotation or the text."""
    before = text[:place].rstrip(OPENING)
    if TITLE.search(before[-4:]):
        return False
    quoted = bool(text[len(before) : place].strip())
    return quoted or not before or before[-1] in ".!?:"


def names_kept(text: str) -> float:
    """The share of the names mentioned in a text's second half that its first half knows; NaN if none is mentioned.

    >>> names_kept("And there was Anna with her brother Karl. But then one evening Karl met Tom.")
    0.5
    """
    middle, mentioned = len(text) // 2, names(text)
    known = {name for place, name in mentioned if place < middle}
    later = [name for place, name in mentioned if place >= middle]
    return sum(name in known for name in later) / len(later) if later else math.nan


def quotations_closed(text: str) -> float:
    r"""The share of paragraphs with double quotation marks in which each is closed; NaN if there is none.

    The last paragraph is not counted, for it may be cut off. Single quotation marks cannot be told from apostrophes.

    >>> quotations_closed('"Come in," said he.\n\n"I will not, said she.\n\n"No')
    0.5
    """
    paragraphs = re.split(r"\n\s*\n", text)[:-1]
    quoting = [paragraph for paragraph in paragraphs if re.search('["“”]', paragraph)]
    return sum(map(_closed, quoting)) / len(quoting) if quoting else math.nan


def _closed(paragraph: str) -> bool:
    return paragraph.count('"') % 2 == 0 and paragraph.count("“") == paragraph.count("”")


def parses(sentence: str, known: Collection[str]) -> bool:
    """Whether a sentence passes for one.

    It has 3 to 60 words, begins with a capital letter, has a finite verb (of a list of the commonest, or in -ed), says no
    word twice in a row but "that", "had" and "very", and has no lower-case word that is not known.

    Args:
        sentence: as from `sentences`.
        known: the words that there are, in lower case.

    >>> known = {"the", "king", "wept", "slept", "and"}
    >>> [parses(s, known) for s in ("The king slept.", "The the king slept.", "The kang slept.", "The king and.")]
    [True, False, False, False]
    """
    words = WORD.findall(sentence)
    if not SHORTEST <= len(words) <= LONGEST or not words[0][0].isupper():
        return False
    lower = [word.lower() for word in words]
    twice = any(a == b and a not in ("that", "had", "very") for a, b in pairwise(lower))
    verb = any(word in VERBS or word.endswith("ed") for word in lower)
    return verb and not twice and all(word in known for word in words if word.islower())


def sentences_that_parse(text: str, known: Collection[str]) -> float:
    """The share of the complete sentences of a text that pass for one, as `parses` says; NaN if there is none."""
    found = sentences(text)
    return sum(parses(sentence, known) for sentence in found) / len(found) if found else math.nan


def known_words(texts: Iterable[str], least: int = 2) -> frozenset[str]:
    """The words that occur at least so often in some texts, in lower case.

    >>> sorted(known_words(["A cat.", "The cat, a dog."]))
    ['a', 'cat']
    """
    counts: dict[str, int] = {}
    for text in texts:
        for word in WORD.findall(text):
            counts[word.lower()] = counts.get(word.lower(), 0) + 1
    return frozenset(word for word, n in counts.items() if n >= least)
