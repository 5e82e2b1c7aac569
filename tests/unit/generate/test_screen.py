"""What is seen of a run while it happens."""

from __future__ import annotations

from typing import Any

import pytest

from minigpt.generate import screen
from minigpt.generate.screen import TokenBar
from minigpt.sampler.events import (
    BeamExtension,
    BeamsExtended,
    Finished,
    PrefillDone,
    Request,
    TokenGenerated,
)


class Counted:
    """Stands for a bar of tqdm's."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.n = total, 0

    def update(self, n: int) -> None:
        self.n += n


def test_a_bar_counts_the_longest_text_of_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Counted] = []
    monkeypatch.setattr(screen, "late_bar", lambda **how: bars.append(Counted(**how)) or bars[-1])
    observer = TokenBar([Request((1,), 5), Request((1, 2), 7)])
    (bar,) = bars
    reached: list[Any] = []
    for event in (
        PrefillDone(),
        TokenGenerated(0, 0, 9, -1.0),
        TokenGenerated(0, 1, 9, -1.0),  # another text of the same prompt
        TokenGenerated(0, 1, 9, -1.0),
        BeamsExtended(1, [BeamExtension(0, 9, -1.0, "")]),
        TokenGenerated(1, 0, 9, -1.0),  # what the beams have in common
        BeamsExtended(1, [BeamExtension(0, 9, -1.0, "")]),
        Finished(1, []),
        Finished(0, []),
    ):
        observer.take(event)
        reached.append(bar.n)
    assert reached == [0, 1, 1, 2, 3, 3, 4, 9, 12]
    assert bar.total == 12
