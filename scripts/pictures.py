"""Draws the pictures of README.md and the pages in docs/ from the bundled model: `make readme` calls it."""

from __future__ import annotations

from pages import ROOT

import minigpt

TEXT = "Once upon a time there was a king who had three sons, and the king loved his sons."


def main() -> None:
    model, tokenizer = minigpt.load()
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    figure = minigpt.attention_map(model, tokenizer, TEXT, layer=3, head=1)
    figure.savefig(images / "attention.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
