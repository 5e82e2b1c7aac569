"""Runs what README.md and the pages in docs/ show the output of, and writes what is printed into them.

<!-- output of: python -m minigpt.generate ... -->      the command's output, up to <!-- end -->
<!-- printed by the Python above -->                    that of the block of Python before it
<!-- speed -->                                          the main figures of docs/benchmarks.md, in README.md

    python scripts/readme.py            everything
    python scripts/readme.py --speed    the table of speed alone, which runs nothing
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import textwrap

from pages import MAKERS, ROOT, put

from minigpt.atomic import replace_text

COMMAND = re.compile(r"(<!-- output of: python (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PYTHON = re.compile(
    r"(```python\n((?:(?!```).)*?)```\n\n<!-- printed by the Python above -->\n).*?(<!-- end -->)", re.DOTALL
)
SHOWN = ("transformers float32", "minigpt float32", "minigpt float16", "minigpt int8")
WIDTH = 100  # columns that a page shows without scrolling


def output(*arguments: str) -> str:
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return "\n".join(textwrap.fill(line, WIDTH) for line in run.stdout.strip().splitlines())


def block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def speed(benchmarks: str) -> str:
    """The tables of docs/benchmarks.md, by the processor's maker."""
    return "\n\n".join(f"On {maker}:\n\n{speed_on(maker, benchmarks)}" for maker in MAKERS)


def speed_on(maker: str, benchmarks: str) -> str:
    """The columns of transformers and minigpt in one of the tables, each ratio without its range."""
    mark = f"bench on {maker}"
    found = re.search(rf"<!-- {mark} -->\n(.*?)\n\n.*\n\n(.*?)\n<!-- /{mark} -->", benchmarks, re.DOTALL)
    if found is None:
        raise ValueError(f"docs/benchmarks.md has no table between its marks {mark!r}: run `make bench-docs`")
    heading, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found[1].splitlines()]
    columns = [heading.index(name) for name in SHOWN]
    lines = [["tokens/s (times transformers)", *SHOWN], ["---"] + ["---:"] * len(SHOWN)]
    for title, *cells in rows:
        short = [re.sub(r", [\d.]+ to [\d.]+\)", ")", cells[i - 1]) for i in columns]
        lines.append([title.partition(": ")[2], *short])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{found[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speed", action="store_true", help="only the table of speed")
    put(speed((ROOT / "docs" / "benchmarks.md").read_text("utf-8")), ROOT / "README.md", "speed")
    if parser.parse_args().speed:
        return
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        shown = COMMAND.sub(lambda m: m[1] + block(output(*shlex.split(m[2]))) + m[3], text)
        shown = PYTHON.sub(lambda m: m[1] + block(output("-c", m[2])) + m[3], shown)
        if shown != text:
            replace_text(page, shown)


if __name__ == "__main__":
    main()
