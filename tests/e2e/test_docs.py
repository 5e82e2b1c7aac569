"""What README.md and the pages in docs/ show, runs; where they link to, exists."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from minigpt.__main__ import COMMANDS, main
from minigpt.cli import Failure

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHOWN = re.compile(r"^(?:\.venv/bin/)?(?:python -m minigpt\.|minigpt )(\S+) (.*)$", re.MULTILINE)
ELSEWHERE = (
    "--model gpt2",
    "--init gpt2",
    "FILE",
    "DIR",
    "PAGE",
    "TEXT",
    "NAME",
    "--resume",
)
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.md"))  # test_notebooks.py runs them
BY_NAME = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def examples() -> list[tuple[str, str]]:
    """Commands in blocks of code that need nothing from outside: (command, flags)."""
    # test_new_strategy.py runs the commands of that page
    pages = [page for page in PAGES if page.name != "new-strategy.md"]
    blocks = (
        block
        for page in pages
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    )
    found = (match.groups() for block in blocks for match in SHOWN.finditer(block))
    quick = ("generate", "compare", "verify", "info", "score")
    return [
        (command, flags.partition("  #")[0])
        for command, flags in found
        if command in quick and not any(word in flags for word in (*ELSEWHERE, "build/"))
    ]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text("utf-8")):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name} links to {link}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@BY_NAME
def test_the_python_runs_in_order(
    page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
        # Blocks that are files to be added are tested by test_new_strategy.py.
        if "(Strategy)" not in block and "minigpt/sampler/" not in block:
            exec(compile(block, page.name, "exec"), names)


def test_there_are_examples_to_run() -> None:
    assert len(examples()) >= 5


@pytest.mark.parametrize(("command", "flags"), examples())
def test_the_commands_run(
    command: str, flags: str, capfdbinary: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time\n")))
    try:
        assert main([command, *shlex.split(flags)]) == 0
    except Failure as failure:
        pytest.fail(str(failure))
    assert capfdbinary.readouterr().out.strip()


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"| `{name}` |" not in readme] == []
    assert len(readme.splitlines()) <= 200


def test_the_code_tour_leads_into_every_folder() -> None:
    tour = (ROOT / "docs" / "code-tour.md").read_text("utf-8")
    library = {path.parent.name for path in (ROOT / "minigpt").glob("*/__init__.py")} - {*COMMANDS}
    assert {name for name in library if f"(../minigpt/{name})" not in tour} == set()
