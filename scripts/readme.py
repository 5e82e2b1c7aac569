"""Runs the commands that README.md shows the output of, and writes what they print into it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- output of: python (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def output(command: str) -> str:
    run = [sys.executable, *shlex.split(command)]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    page = README.read_text(encoding="utf-8")
    page = BLOCK.sub(lambda found: f"{found[1]}```text\n{output(found[2])}\n```\n{found[3]}", page)
    README.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
