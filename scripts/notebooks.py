"""Runs the notebooks and writes them as pages: Markdown, and a PNG for each picture. `make docs` calls it.

    python scripts/notebooks.py                                       all of them, into docs/notebooks
    python scripts/notebooks.py notebooks/02_attention.ipynb --out DIR

Every warning is an error, and so is a picture without a description: the text "alt" in the metadata of its cell.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from pages import ROOT
from PIL import Image

from minigpt.atomic import replace_text

NOTEBOOKS = ROOT / "notebooks"
TIMEOUT = 300  # seconds; the longest that a cell may take
COLOURS = 256  # of a picture: a third of the bytes, and no eye sees it
NO_WARNINGS = "import warnings\nwarnings.simplefilter('error')"
QUIET = "warnings.simplefilter('ignore')"  # what the kernel warns of when it stops is not the notebook's


def executed(path: Path) -> NotebookNode:
    """The notebook with its outputs, run from top to bottom in an empty folder.

    Raises:
        CellExecutionError: a cell raised, or warned.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    notebook.cells = [new_code_cell(NO_WARNINGS), *cells, new_code_cell(QUIET)]
    with tempfile.TemporaryDirectory() as folder:
        # no ports: nobody else can connect
        kernel = AsyncKernelManager(transport="ipc", ip=f"{folder}/socket")
        client = NotebookClient(
            notebook,
            km=kernel,
            timeout=TIMEOUT,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(cleanup_kc=True)
    notebook.cells = cells
    return notebook


def write_page(notebook: NotebookNode, name: str, out: Path) -> None:
    """Writes NAME.md, and what it shows to images/NAME-1.png and so on.

    Raises:
        ValueError: a cell shows a picture that nothing describes.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    for old in (out / "images").glob(f"{name}-*.png"):
        old.unlink()
    pictures = 0
    parts = [f"*[notebooks/{name}.ipynb](../../notebooks/{name}.ipynb), run and written by `make docs`*"]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(_links(cell.source))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        shown = []
        for output in cell.outputs:
            if png := output.get("data", {}).get("image/png"):
                if not cell.metadata.get("alt"):
                    raise ValueError(
                        f'{name}: a picture has no description ("alt" in the metadata of its cell)'
                    )
                pictures += 1
                file = f"images/{name}-{pictures}.png"
                (out / file).write_bytes(_small(base64.b64decode(png)))
                shown.append(f"![{cell.metadata.alt}]({file})")
            else:
                shown.extend(_text(output))
        if shown:
            parts.append("\n\n".join(["<!-- output -->", *shown, "<!-- end -->"]))
    replace_text(out / f"{name}.md", "\n\n".join(parts) + "\n")


def _links(text: str) -> str:
    """Pages lie one folder deeper than notebooks, and lead to pages."""
    return re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.md)", text.replace("](../", "](../../"))


def _text(output: NotebookNode) -> Iterator[str]:
    """What a cell printed or returned: a table where it is one. What goes to stderr, as progress bars do, is left out."""
    if output.output_type == "stream":
        if output.name == "stdout":
            yield f"```text\n{output.text.rstrip()}\n```"
        return
    data = output.get("data", {})
    if "text/html" in data:
        yield data["text/html"].strip()
    elif "text/plain" in data:
        yield f"```text\n{data['text/plain'].rstrip()}\n```"


def _small(png: bytes) -> bytes:
    """The same picture with few colours, and nothing of when and by what it was made."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", nargs="*", type=Path, help="which; all unless given")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "notebooks", metavar="DIR", help="where to"
    )
    args = parser.parse_args()
    for path in args.notebook or sorted(NOTEBOOKS.glob("*.ipynb")):
        write_page(executed(path), path.stem, args.out)


if __name__ == "__main__":
    main()
