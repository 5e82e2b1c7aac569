"""Writing into README.md and the pages in docs/: what a script measured or printed goes between its marks.

Marks are HTML comments: `<!-- name -->` and `<!-- /name -->` around a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from minigpt.atomic import replace_text
from minigpt.cli.machine import cpu_name

ROOT = Path(__file__).parent.parent
# Of processors: docs/benchmarks.md has a table of each, between marks "bench on ...".
MAKERS = ("Intel", "AMD")


def maker() -> str:
    """Who made this machine's processor, of those that pages have tables of."""
    return next((name for name in MAKERS if name in cpu_name()), "another maker")


def put(text: str, page: Path, mark: str) -> None:
    """Writes a text between the marks of a page.

    Raises:
        ValueError: the page does not have them, each once.
    """
    between = re.compile(f"(<!-- {re.escape(mark)} -->\n).*(<!-- /{re.escape(mark)} -->)", re.DOTALL)
    page_text, n = between.subn(
        lambda match: match[1] + text.strip() + "\n" + match[2], page.read_text("utf-8")
    )
    if n != 1:
        raise ValueError(
            f"{page} must have the marks <!-- {mark} --> and <!-- /{mark} --> once, not {n} times"
        )
    replace_text(page, page_text)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as pages have it."""
    lines = ("| " + " | ".join(cells) + " |" for cells in (head, *rows))
    heading = next(lines)
    return "\n".join([heading, "|---" * len(head) + "|", *lines])
