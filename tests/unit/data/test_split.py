"""Holding out: whole documents, as many as fit, the same ones for a seed."""

from __future__ import annotations

from documents import documents
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.split import hold_out

SEED = st.integers(0, 5)


FRACTION = st.floats(0.001, 0.999)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=30), FRACTION, SEED)
def test_whole_documents_are_held_out(lengths: list[int], fraction: float, seed: int) -> None:
    tokens = documents(lengths)
    training, validation = (part.spans.tolist() for part in hold_out(tokens, fraction, seed))
    assert training
    assert validation
    assert sorted(training + validation) == tokens.spans.tolist()  # each in one of them, and none is cut
    for part in hold_out(tokens, fraction, seed):
        assert part.digests.tolist() == [tokens.spans.tolist().index(span) for span in part.spans.tolist()]
        assert part.n_tokens == sum(end - begin for begin, end in part.spans.tolist())
    assert training == sorted(training)
    assert validation == sorted(validation)
    # As many as fit into the fraction, so that no other one would; if none does, the shortest.
    sizes = [end - begin for begin, end in validation]
    wanted = min(max(1, round(fraction * len(tokens.ids))), len(tokens.ids) - 1)
    if sum(sizes) <= wanted:
        assert all(sum(sizes) + end - begin > wanted for begin, end in training)
    else:
        assert sizes == [min(lengths)]


@given(st.integers(2, 200), FRACTION)
def test_of_a_single_document_the_end_is_held_out(n: int, fraction: float) -> None:
    parts = hold_out(documents([n]), fraction, 0)
    (training,), (validation,) = (part.spans.tolist() for part in parts)
    assert [part.digests.tolist() for part in parts] == [[], []]  # neither is the text that had one
    assert training[0] == 0
    assert training[1] == validation[0]
    assert validation[1] == n
    assert validation[1] - validation[0] == min(max(1, round(fraction * n)), n - 1)


def test_what_is_held_out_is_drawn_by_the_seed() -> None:
    tokens = documents([5] * 40)
    held = [hold_out(tokens, 0.2, seed)[1].spans.tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert len(held[0]) == 8
    assert held[0] != tokens.spans[:8].tolist()
