"""Run by .ci/run where nothing is installed but the wheel: the bundled model loads, saves, and loads again."""

import importlib.util
import sys
from pathlib import Path

import torch

import minigpt
from minigpt.interp.page import explore, load
from minigpt.sampler import generate


def main(folder: Path) -> None:
    for extra in ("transformers", "pytest", "tokenizers"):
        assert importlib.util.find_spec(extra) is None, f"{extra} is installed"
    model, tokenizer = minigpt.load()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again, same = minigpt.load(folder)
    tokens = tokenizer.encode("Once upon a time")
    assert same.encode("Once upon a time") == tokens
    assert torch.equal(again(torch.tensor([tokens])), model(torch.tensor([tokens])))
    texts = generate(model, [tokens], max_new_tokens=20)
    assert generate(again, [tokens], max_new_tokens=20) == texts
    explore(model, tokenizer, "Once upon a time", max_new_tokens=2).save(folder / "page.html")
    assert load(folder / "page.html")["runs"][0]["tokens"] == [*tokens, *texts[0][0].tokens[:2]]
    print("the wheel works on its own:", tokenizer.decode(texts[0][0].tokens))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
