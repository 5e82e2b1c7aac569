"""Why each token was chosen, as a table: its probability before and after every step on the logits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence

from minigpt.cli.table import left_table
from minigpt.sampler.events import Completion
from minigpt.sampler.token_trace import TokenTrace, flag_style

HEADING = ("token", "probability", "rank", "entropy (bits)", "removed (probability mass)")
TokenString = Callable[[int], str]


def explain_table(completion: Completion, token_string: TokenString) -> str:
    """One line for each token of a text.

    Args:
        completion: the text, with a trace of each token; where it reports the most likely tokens of each step,
            they are a column.
        token_string: the text of a token.
    """
    tops: Sequence[Sequence[tuple[int, float]]] = completion.top_logprobs
    heading = (*HEADING, f"top {len(tops[0])}") if tops else HEADING
    rows = [
        [_quoted(token_string(token)), *_cells(trace)]
        for token, trace in zip(completion.tokens, completion.traces, strict=True)
    ]
    for row, top in zip(rows, tops, strict=False):
        row.append(", ".join(_rivals(top, token_string)))
    return left_table([heading, *rows])


def _quoted(string: str) -> str:
    return json.dumps(string, ensure_ascii=False)


def _rivals(top: Sequence[tuple[int, float]], token_string: TokenString) -> Iterator[str]:
    for token, logprob in top:
        yield f"{_quoted(token_string(token))} {math.exp(logprob):.3g}"


def _cells(trace: TokenTrace) -> tuple[str, str, str, str]:
    before, after = trace.before, trace.after
    removed = (
        f"{flag_style(stage.stage)} -{stage.removed} ({stage.mass:.2g})"
        if stage.removed
        else flag_style(stage.stage)
        for stage in trace.stages
    )
    return (
        f"{before.probability:.3g} -> {after.probability:.3g}",
        f"{before.rank} -> {after.rank}",
        f"{before.entropy:.2f} -> {after.entropy:.2f}",
        ", ".join(removed),
    )
