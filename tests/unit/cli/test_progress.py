"""Where a progress bar is shown: on a terminal and in a notebook, and nowhere else."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from minigpt.cli.progress import bar, in_notebook


def shown(terminal: bool) -> bool:
    screen = io.StringIO()
    screen.isatty = lambda: terminal  # type: ignore[method-assign]
    for _ in bar(range(3), file=screen):
        pass
    return "3/3" in screen.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    assert shown(terminal) is terminal


@pytest.mark.parametrize(
    ("shell", "notebook"),
    [(None, False), (SimpleNamespace(config={}), False), (SimpleNamespace(config={"IPKernelApp": {}}), True)],
    ids=["no IPython running", "IPython in a terminal", "a notebook"],
)
def test_a_bar_is_for_notebooks_too(
    monkeypatch: pytest.MonkeyPatch, shell: SimpleNamespace | None, notebook: bool
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    assert in_notebook() is notebook
    assert shown(terminal=False) is notebook
