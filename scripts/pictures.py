"""Draws the pictures of README.md and the pages in docs/ from the bundled model: `make readme` calls it."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from pages import ROOT
from PIL import Image
from playwright.sync_api import sync_playwright

import minigpt
from minigpt.interp.page import explore
from minigpt.sampler import Sample

IMAGES = ROOT / "docs" / "images"
TEXT = "Once upon a time there was a king who had three sons, and the king loved his sons."


def main() -> None:
    model, tokenizer = minigpt.load()
    IMAGES.mkdir(exist_ok=True)
    figure = minigpt.attention_map(model, tokenizer, TEXT, layer=5, head=4)
    figure.savefig(IMAGES / "attention.png", dpi=110, metadata={"Software": None})
    page = explore(
        model,
        tokenizer,
        TEXT,
        Sample(temperature=0.8, top_p=0.9, seed=7),
        max_new_tokens=24,
        model_name="bundled",
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        page.save(file)
        photograph(file, "token=18&layer=5&head=4", IMAGES / "explore.png")


def photograph(file: Path, state: str, picture: Path) -> None:
    """A page as Debian's chromium shows it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 800}, device_scale_factor=1.25)
        page.goto(f"{file.as_uri()}#{state}")
        page.wait_for_selector("html[data-ready]", state="attached")
        image = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    # a third of the size, and no difference to see
    image.convert("RGB").quantize(256).save(picture, optimize=True)


if __name__ == "__main__":
    main()
