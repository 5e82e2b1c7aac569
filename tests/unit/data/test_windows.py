"""In which order training reads, against a ring that is simply joined: every token is a target once an epoch."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from documents import documents
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.token_file import TokenFile
from minigpt.data.windows import CircularTokens, Windows

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=8)
# Documents and a window that they fill: longer than all documents but one, or shorter than any.
TEXT = st.tuples(LENGTHS, st.integers(1, 20)).filter(lambda text: sum(text[0]) > text[1])
SEED = st.integers(0, 5)


def windows(lengths: list[int], length: int, seed: int = 0) -> tuple[TokenFile, Windows]:
    tokens = documents(lengths)
    return tokens, Windows(tokens, length, seed)


def epoch(of: Windows, number: int) -> list[list[int]]:
    return of.rows(range(number * of.per_epoch, (number + 1) * of.per_epoch)).tolist()


def order_of_documents(tokens: TokenFile, rows: list[list[int]]) -> dict[int, int]:
    """The documents in the order in which some windows go through them, by their borders alone.

    It is what the module promises, the other way round: any successor of a token is the next of its
    document, or, after a document's last token, the first of another.
    """
    after = {}
    for row in rows:
        for one, other in pairwise(row):
            assert after.setdefault(one, other) == other, "two windows disagree about what follows"
    firsts, lasts = tokens.spans[:, 0].tolist(), (tokens.spans[:, 1] - 1).tolist()
    for one, other in after.items():
        assert other in firsts if one in lasts else other == one + 1
    return {lasts.index(one): firsts.index(other) for one, other in after.items() if one in lasts}


@given(TEXT, SEED, st.integers(0, 3))
def test_every_token_is_a_target_once_an_epoch(text: tuple[list[int], int], seed: int, number: int) -> None:
    tokens, of = windows(*text, seed)
    length = of.length
    targets = [token for row in epoch(of, number) for token in row[1:]]
    n_rest = len(tokens.ids) % length
    assert len(targets) == len({*targets}) == len(tokens.ids) - n_rest
    inputs = [token for row in epoch(of, number) for token in row[:-1]]
    assert len(inputs) == len({*inputs})


@given(TEXT, SEED, st.integers(0, 3))
def test_each_window_is_a_stretch_of_the_joined_documents(
    text: tuple[list[int], int], seed: int, number: int
) -> None:
    tokens, of = windows(*text, seed)
    length = of.length
    follows = order_of_documents(tokens, epoch(of, number))
    assert len({*follows.values()}) == len(follows)  # no document comes after two
    # Documents joined to one ring: whoever goes from each to the next comes through all before the first again.
    n_rest = len(tokens.ids) % length
    if n_rest == 0:
        seen, at = [], 0
        while at not in seen:
            seen.append(at)
            at = follows[at]
        assert len(seen) == len(tokens.spans)


@given(TEXT, SEED)
def test_windows_are_cut_from_the_shuffled_ring(text: tuple[list[int], int], seed: int) -> None:
    """The whole promise, with a ring that is a list, and an order that is drawn as documented."""
    tokens, of = windows(*text, seed)
    length = of.length
    for number in range(3):
        chance = np.random.default_rng([seed, number])
        spans = chance.permutation(tokens.spans)
        ring = [token for begin, end in spans for token in range(begin, end)]
        first = chance.integers(len(ring))
        ring = [*ring[first:], *ring[:first]] * 2
        cut = [ring[i * length : (i + 1) * length + 1] for i in chance.permutation(len(tokens.ids) // length)]
        assert epoch(of, number) == cut


@given(LENGTHS, st.integers(0, 40), st.integers(1, 40))
def test_a_ring_reads_on_from_its_beginning(lengths: list[int], start: int, n: int) -> None:
    tokens = documents(lengths)
    spans = tokens.spans[::-1]
    ring = [token for begin, end in spans for token in range(begin, end)]
    assert len(CircularTokens(tokens.ids, spans)) == len(ring)
    assert CircularTokens(tokens.ids, spans).read(start, n).tolist() == [
        ring[(start + i) % len(ring)] for i in range(n)
    ]


@given(TEXT, SEED, st.lists(st.integers(1, 7), max_size=8), st.integers(0, 30))
def test_how_windows_are_batched_changes_none(
    text: tuple[list[int], int], seed: int, sizes: list[int], first: int
) -> None:
    _, of = windows(*text, seed)
    n = sum(sizes)
    _, other = windows(*text, seed)
    whole = other.rows(range(first, first + n + 1)).tolist()
    rows, at = [], first
    for size in [*sizes, 1]:
        rows += of.rows(range(at, at + size)).tolist()
        at += size
    assert rows == whole
    assert of.rows(range(first, first + 1)).tolist() == whole[:1]  # back again, to another epoch perhaps


def test_a_seed_decides_the_order_and_each_epoch_has_its_own() -> None:
    lengths = [5] * 12
    _, of = windows(lengths, 4, seed=1)
    _, same = windows(lengths, 4, seed=1)
    _, other = windows(lengths, 4, seed=2)
    assert [epoch(of, n) for n in range(3)] == [epoch(same, n) for n in range(3)]
    orders = [epoch(of, 0), epoch(of, 1), epoch(of, 2), epoch(other, 0)]
    assert len({str(order) for order in orders}) == 4
    assert len({str(sorted(order)) for order in orders}) == 4  # the cuts fall elsewhere, too


def test_windows_begin_everywhere_in_the_long_run() -> None:
    """Of a single document, too: where it is cut is drawn anew each epoch."""
    _, of = windows([40], 8)
    assert {row[0] for number in range(100) for row in epoch(of, number)} == {*range(40)}


def test_rows_are_what_torch_embeds() -> None:
    _, of = windows([30], 8)
    rows = of.rows(range(2, 5))
    assert (rows.shape, str(rows.dtype)) == ((3, 9), "torch.int64")


@pytest.mark.parametrize(("n", "length"), [(1, 1), (8, 8), (7, 8), (8, 100)])
def test_a_text_shorter_than_a_window(n: int, length: int) -> None:
    tokens = documents([n])
    message = (
        rf"has {n} tokens?, less than a context of {length} and the token after it: .* smaller --context"
    )
    with pytest.raises(ValueError, match=message):
        Windows(tokens, length, 0)


def test_a_text_of_exactly_one_window() -> None:
    _, of = windows([9], 8)
    assert of.per_epoch == 1
    assert sorted(of.rows(range(1)).tolist()[0]) == [*range(9)]
