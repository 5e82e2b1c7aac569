"""Runs what README.md and the pages in docs/ show the output of, and writes what is printed into them.

<!-- output of: python -m minigpt.generate ... -->      the command's output, up to <!-- end -->
<!-- printed by the Python above -->                    that of the block of Python before it
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap

from pages import ROOT

from minigpt.atomic import replace_text

COMMAND = re.compile(r"(<!-- output of: python (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PYTHON = re.compile(
    r"(```python\n((?:(?!```).)*?)```\n\n<!-- printed by the Python above -->\n).*?(<!-- end -->)", re.DOTALL
)
WIDTH = 100  # columns that a page shows without scrolling


def output(*arguments: str) -> str:
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return "\n".join(textwrap.fill(line, WIDTH) for line in run.stdout.strip().splitlines())


def block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def main() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        shown = COMMAND.sub(lambda m: m[1] + block(output(*shlex.split(m[2]))) + m[3], text)
        shown = PYTHON.sub(lambda m: m[1] + block(output("-c", m[2])) + m[3], shown)
        if shown != text:
            replace_text(page, shown)


if __name__ == "__main__":
    main()
