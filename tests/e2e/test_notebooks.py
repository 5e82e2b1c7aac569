"""The notebooks run from top to bottom without a warning, and the pages in docs/notebooks are what they give."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = ROOT / "docs" / "notebooks"
OUTPUT = re.compile(r"<!-- output -->\n.*?<!-- end -->\n", re.DOTALL)
PICTURE = re.compile(r"!\[(.*?)\]\((.*?)\)")
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
TIMEOUT = 600  # seconds; on an idle machine 20 are enough


def run(notebook: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/notebooks.py", str(notebook), "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def of(source: str, folder: Path) -> Path:
    """A notebook of one cell."""
    path = folder / "one.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), path)
    return path


@EACH
def test_it_is_stored_without_outputs(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert {cell.execution_count for cell in cells} == {None}


@EACH
def test_it_opens_with_what_its_reader_will_be_able_to_do(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "At the end of this notebook you can" in first.source


@EACH
def test_it_runs_and_its_page_shows_it_as_it_is(path: Path, tmp_path: Path) -> None:
    """Every claim of a notebook is asserted in it."""
    finished = run(path, tmp_path)
    assert finished.returncode == 0, finished.stderr[-4000:]
    fresh, kept = ((folder / f"{path.stem}.md").read_text("utf-8") for folder in (tmp_path, PAGES))
    assert OUTPUT.sub("", fresh) == OUTPUT.sub("", kept), "make docs writes the pages again"
    assert [alt for alt, _ in PICTURE.findall(fresh)] == [alt for alt, _ in PICTURE.findall(kept)]


def test_every_picture_is_on_a_page_and_described() -> None:
    shown = [match for page in PAGES.glob("*.md") for match in PICTURE.findall(page.read_text("utf-8"))]
    assert all(len(alt) > 20 for alt, _ in shown)
    assert {file for _, file in shown} == {f"images/{path.name}" for path in (PAGES / "images").iterdir()}


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    assert run(of("1 + 1", tmp_path), tmp_path).returncode == 0
    finished = run(of("import warnings\nwarnings.warn('it is old')", tmp_path), tmp_path)
    assert finished.returncode == 1
    assert "it is old" in finished.stderr


def test_a_picture_without_a_description_is_an_error(tmp_path: Path) -> None:
    source = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    finished = run(of(source, tmp_path), tmp_path)
    assert finished.returncode == 1
    assert "one: a picture has no description" in finished.stderr
