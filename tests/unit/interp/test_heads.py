"""Head statistics, rollout and value-weighted attention: held to the circuit and to closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from circuit import induction_circuit, repeated
from fakes import tiny_gpt2

from minigpt.errors import InvalidRequest
from minigpt.interp import record, record_text
from minigpt.interp.dense import head_weights
from minigpt.interp.heads import HeadStatistics, head_statistics, per_query, rollout, value_weighted

MODEL = induction_circuit()
TEXT = repeated(period=9, copies=3)
N = len(TEXT)
PATTERNS = "blocks.*.attn.pattern"


def statistics(*texts: list[int]) -> HeadStatistics:
    return head_statistics(record_text(MODEL, list(texts), PATTERNS))


def test_a_statistic_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(
        InvalidRequest, match=r"no statistic 'previous': there are entropy, .*, previous_token, "
    ):
        statistics(TEXT).top("previous")


def test_the_circuit_s_heads_have_the_scores_that_they_were_made_for() -> None:
    heads = statistics(TEXT)
    assert heads.previous_token[0, 0] == pytest.approx(1, abs=1e-6)
    assert heads.induction[1, 0] == pytest.approx(1, abs=1e-6)
    assert heads.entropy[0, 0] == pytest.approx(0, abs=1e-6)
    assert heads.mean_distance[0, 0] == pytest.approx((N - 1) / N, abs=1e-6)  # the first looks at itself
    assert heads.top("previous_token", 1)[0][:2] == (0, 0)
    assert heads.top("induction", 1)[0][:2] == (1, 0)
    assert heads.induction[0, 1] < 0.2
    assert heads.duplicate_token[1, 0] == pytest.approx(0, abs=1e-6)


def test_a_uniform_head_has_the_closed_form() -> None:
    seen = record_text(MODEL, TEXT, PATTERNS)
    uniform = per_query(seen["blocks.1.attn.pattern"][0, 1].double(), torch.tensor(TEXT))
    i = torch.arange(N).double()
    torch.testing.assert_close(uniform["entropy"], (i + 1).log(), rtol=0, atol=1e-5)
    torch.testing.assert_close(uniform["mean_distance"], i / 2, rtol=0, atol=1e-5)
    for name in ("previous_token", "first_token"):
        assert uniform[name][0].isnan()
        torch.testing.assert_close(uniform[name][1:], 1 / (i[1:] + 1), rtol=0, atol=1e-6)
    copies = torch.tensor([max(0, (k - 1) // 9) for k in range(N)])  # earlier occurrences of token k
    met = copies > 0
    for name in ("duplicate_token", "induction"):
        torch.testing.assert_close(uniform[name][met], (copies / (i + 1))[met], rtol=0, atol=1e-6)
        assert uniform[name][~met].isnan().all()


def test_induction_is_matched_by_token_and_not_by_distance() -> None:
    """A head that looks back by a fixed distance has the score of a text with that period alone."""
    n, period = 21, 5
    shifted = torch.zeros(n, n)
    for query in range(n):
        shifted[query, max(0, query - period + 1)] = 1.0
    for real, expected in ((period, 1.0), (period + 2, 0.0)):
        text = torch.tensor([*range(1, real + 1)] * 5)[:n]
        assert per_query(shifted, text)["induction"].nanmean() == pytest.approx(expected)


def test_attention_to_the_query_itself_is_no_induction() -> None:
    """Of a token that stands twice in a row, what followed the first is the second."""
    itself, text = torch.eye(6), torch.tensor([1, 2, 2, 3, 3, 2])
    induction = per_query(itself, text)["induction"]
    assert induction.isnan().tolist() == [True] * 5 + [False]  # the last has two: what followed both
    assert induction[5] == 0
    followers = torch.zeros(6, 6)
    followers[5, [2, 3]] = 0.5
    assert per_query(followers, text)["induction"][5] == 1


def test_texts_of_a_padded_batch_count_as_they_do_alone() -> None:
    short = repeated(period=4, copies=2, seed=1)
    both, alone = statistics(TEXT, short), (statistics(TEXT), statistics(short))
    queries = [N, len(short)]
    expected = sum(a.entropy * n for a, n in zip(alone, queries, strict=True)) / sum(queries)
    torch.testing.assert_close(both.entropy, expected)


def test_what_no_query_can_have_is_nan_and_never_the_best() -> None:
    heads = statistics([0])
    assert heads.previous_token.isnan().all()
    assert heads.entropy.eq(0).all()
    assert "nan" in heads._repr_html_()
    assert heads.top("induction", 1) == []
    assert repr(heads).endswith("duplicate_token none, induction none)")
    some = HeadStatistics(*[torch.tensor([[0.0, math.nan]])] * 6)
    assert some.top("induction") == [(0, 0, 0.0)]
    assert repr(statistics(TEXT)).startswith("HeadStatistics(2 x 2 heads; most: previous_token 0.0 (1.00)")


def test_rollout_is_the_product_of_the_layers() -> None:
    seen = record_text(MODEL, TEXT, PATTERNS)
    rolled = rollout(seen)
    mixed = [(seen[f"blocks.{layer}.attn.pattern"].mean(1) + torch.eye(N)) / 2 for layer in (0, 1)]
    torch.testing.assert_close(rolled[0], mixed[0])
    torch.testing.assert_close(rolled[1], mixed[1] @ mixed[0])
    torch.testing.assert_close(rolled.sum(-1), torch.ones(2, 1, N))
    assert rolled.triu(1).eq(0).all()


def test_rollout_of_float64_patterns_is_float64() -> None:
    model = tiny_gpt2().double()
    rolled = rollout(record_text(model, [3, 1, 4], PATTERNS))
    torch.testing.assert_close(rolled.sum(-1), torch.ones(2, 1, 3, dtype=torch.float64))


def test_value_weighted_attention_is_the_length_of_what_each_key_adds() -> None:
    model = tiny_gpt2()
    seen = record_text(model, [3, 1, 4, 1, 5], "blocks.1.attn.*")
    got = value_weighted(model, seen, layer=1)
    pattern, v = seen["blocks.1.attn.pattern"], seen["blocks.1.attn.v"]
    for head in range(2):
        for query in range(5):
            for key in range(5):
                added = pattern[0, head, query, key] * v[0, head, key] @ head_weights(model, 1, head).out
                assert got[0, head, query, key] == pytest.approx(float(added.norm()), abs=1e-5)


def test_inert_heads_add_nothing_however_they_attend() -> None:
    seen = record_text(MODEL, TEXT, "blocks.*.attn.*")
    assert value_weighted(MODEL, seen, layer=1)[:, 1].eq(0).all()
    values_are_one_hot = pytest.approx(1, abs=1e-5)
    assert value_weighted(MODEL, seen, layer=1)[0, 0, -1].sum() == values_are_one_hot


def test_a_recording_from_the_middle_is_refused() -> None:
    cache = MODEL.new_cache(N)
    MODEL.next_logits(torch.tensor([TEXT[:5]]), cache)
    with record(MODEL, "blocks.*.attn.*") as seen:
        MODEL.next_logits(torch.tensor([TEXT[5:]]), cache)
    for analysis in (head_statistics, rollout, lambda seen: value_weighted(MODEL, seen, 0)):
        with pytest.raises(ValueError, match="the recording began at slot 5"):
            analysis(seen)  # type: ignore[operator]


def test_entropies_of_half_precision_are_in_float32() -> None:
    heads = head_statistics(record_text(tiny_gpt2().half(), [3, 1, 4, 1, 5], PATTERNS))
    assert heads.entropy.dtype == torch.float32
    assert heads.entropy.max() <= math.log(5)
