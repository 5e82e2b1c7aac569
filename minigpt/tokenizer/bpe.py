"""What byte-pair merges make: the bytes behind each token, and which tokens can ever come up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's files write each byte as one visible character; this gives the byte for each character."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_alphabet()  # "A" -> 65, "Ġ" -> 32, the space, and so on for all 256

# Forty times as many as any vocabulary has; what is listed by id is as long as the largest.
MOST_IDS = 10_000_000


def spell(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, bytes]:
    """The bytes of every token that is a single byte or a merged pair; a vocabulary need not have all bytes.

    Raises:
        ValueError: there is no byte at all, or a merge uses or makes what the vocabulary lacks.
    """
    spelled = {character: bytes([byte]) for character, byte in BYTES.items() if character in vocab}
    if not spelled:
        raise ValueError(
            "the vocabulary has none of the 256 bytes: it is empty, or not byte-level as GPT-2's is"
        )
    for number, (left, right) in enumerate(merges, start=1):
        if left not in spelled or right not in spelled:
            raise ValueError(
                f"merge {number}, {left!r} with {right!r}, needs both to be bytes of the vocabulary"
                " or made by merges before it"
            )
        if left + right not in vocab:
            raise ValueError(f"merge {number} makes {left + right!r}, which the vocabulary lacks")
        spelled[left + right] = spelled[left] + spelled[right]
    return spelled


def check_ids(vocab: Mapping[str, int], added: Mapping[str, int]) -> None:
    """Refuses an id that is none, that two tokens share, or that an added token has beside its own.

    Raises:
        ValueError: as above; the message names the token and the id.
    """
    owner: dict[int, str] = {}
    for token, number in [*vocab.items(), *added.items()]:
        if type(number) is not int or number < 0:
            raise ValueError(f"the id of {token!r} is {number!r}, not a whole number of at least 0")
        if number >= MOST_IDS:
            raise ValueError(f"the id of {token!r} is {number:,}; ids are below {MOST_IDS:,}")
        if owner.setdefault(number, token) != token:
            raise ValueError(f"{owner[number]!r} and {token!r} have the same id, {number}")
        if vocab.get(token, number) != number:
            raise ValueError(
                f"the added token {token!r} has id {number}, but {vocab[token]} in the vocabulary"
            )


def makeable(merges: Sequence[tuple[str, str]]) -> list[str]:
    """The bytes and the merged pairs that can come up when text is encoded, in order of their merges.

    GPT-2 joins two neighbours if that *pair* is a merge, the earliest merge first, the leftmost place first.
    tiktoken joins two neighbours if their joint *text* is a token. With the merges "ab", "bc", "a"+"bc" they
    differ on "abc": GPT-2 makes "ab" and is stuck, tiktoken goes on to "abc".

    They agree once tokens that GPT-2's rule cannot make from their own text are left out. As long as nothing
    is joined across the borders of a stretch of text, the stretch develops as it would alone. So a token that
    is not made alone is made nowhere; and of one that is made alone, the last two parts are the same pair
    everywhere, so that the text and the pair are one criterion.

    Raises:
        ValueError: a token has two merges, and only the later can be used (training never yields that).

    Source: the test for one pair, running backwards, is from github.com/github/rust-gems (crate bpe).

    >>> makeable([("a", "b"), ("b", "c"), ("a", "bc")])[256:]
    ['ab', 'bc']
    """
    made_at = dict.fromkeys(BYTES, -1)  # which merge makes the token; bytes are there from the start
    halves: dict[str, tuple[str, str]] = {}
    joined_at: dict[tuple[str, str], int] = {}

    def torn(left: str, right: str) -> bool:
        """Is something joined across the border of the two halves before both are complete?"""
        while made_at[left] >= 0 or made_at[right] >= 0:
            if made_at[left] > made_at[right]:  # go back to before the later of the two was made
                limit, left = made_at[left], halves[left][1]
            else:
                # One more, for at equal rank the border is further left, hence its turn comes first.
                limit, right = made_at[right] + 1, halves[right][0]
            if joined_at.get((left, right), limit) < limit:
                return True
        return False

    lost = set()
    for order, (left, right) in enumerate(merges):
        token = left + right
        if token in made_at:  # a second pair for the same token never comes up
            continue
        if token in lost:  # merges between the two may build on it, and `torn` takes merges to be in order
            raise ValueError(
                f"merge {order + 1} makes {token!r}, for which an earlier merge can never be used"
            )
        if left in made_at and right in made_at and not torn(left, right):
            made_at[token] = joined_at[left, right] = order
            halves[token] = left, right
        else:
            lost.add(token)
    return list(made_at)
