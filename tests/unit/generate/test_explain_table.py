"""The table of `--explain`."""

from __future__ import annotations

from minigpt.generate.explain_table import explain_table
from minigpt.sampler import Completion
from minigpt.sampler.token_trace import StageTrace, TokenRank, TokenTrace

STRINGS = {1: ' "a"\n', 2: "é"}
BEFORE, AFTER = TokenRank(0.1234567, 1234, 9.5), TokenRank(1.5e-7, 2, 0.123)
STAGES = (
    StageTrace("Temperature", 0, 0.0, 0.1),
    StageTrace("NoRepeatNGram", 12, 0.5, 0.2),
    StageTrace("TopP", 4071, 0.1234, 0.3),
)


def lines(text: Completion) -> list[str]:
    return explain_table(text, STRINGS.__getitem__).splitlines()


def test_one_line_for_each_token() -> None:
    traces = [TokenTrace(BEFORE, AFTER, STAGES), TokenTrace(AFTER, AFTER)]
    assert lines(Completion([1, 2], [-1.0, -2.0], -3.0, "length", traces=traces)) == [
        "token       probability         rank       entropy (bits)  removed (probability mass)",
        '" \\"a\\"\\n"  0.123 -> 1.5e-07    1234 -> 2  9.50 -> 0.12    '
        "temperature, no-repeat-n-gram -12 (0.5), top-p -4071 (0.12)",
        '"é"         1.5e-07 -> 1.5e-07  2 -> 2     0.12 -> 0.12',
    ]
    assert len(lines(Completion([], [], 0.0, "interrupted"))) == 1


def test_the_most_likely_tokens_are_a_column() -> None:
    tops = [[(2, -0.1), (1, -2.0)]]
    text = Completion([2], [-0.1], -0.1, "length", tops, traces=[TokenTrace(AFTER, AFTER)])
    heading, row = lines(text)
    assert heading.endswith("top 2")
    assert row.endswith('"é" 0.905, " \\"a\\"\\n" 0.135')
