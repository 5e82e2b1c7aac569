"""From a prompt to a page, in Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from minigpt.atomic import replace_text
from minigpt.interp.page.data import Origin, page_data
from minigpt.interp.page.document import document
from minigpt.interp.page.generation import Asked, Overflow
from minigpt.json_files import counted
from minigpt.model import GPT2
from minigpt.sampler.strategies.greedy import Greedy
from minigpt.sampler.strategy import Strategy
from minigpt.tokenizer import Tokenizer

HEIGHT = 800  # pixels, in a notebook


@dataclass(frozen=True, repr=False)
class Page:
    """A page: `save` it, or let a notebook show it. `data` is what it shows, `html` the whole file."""

    data: dict[str, Any]
    html: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file atomically.

        Raises:
            OSError: it cannot be written.
        """
        replace_text(Path(path).resolve(), self.html)

    def __repr__(self) -> str:
        texts = ", ".join(counted(len(run["tokens"]), "tokens") for run in self.data["runs"])
        return f"Page({self.data['title']!r}, {texts}, {len(self.html):,} characters)"

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame that can reach neither the notebook nor the network."""
        return (
            f'<iframe sandbox="allow-scripts" title="{escape(self.data["title"])}" width="100%" '
            f'height="{HEIGHT}" style="border: 0" srcdoc="{escape(self.html)}"></iframe>'
        )


def explore(
    model: GPT2,
    tokenizer: Tokenizer,
    prompt: str,
    strategy: Strategy | None = None,
    *,
    compare: str | None = None,
    max_new_tokens: int | None = None,
    stop: Sequence[str] = (),
    overflow: Overflow = "error",
    model_name: str = "",
) -> Page:
    """Continues a prompt, looks inside the model while it reads the result, and makes a page of all that.

    Args:
        model, tokenizer: as `minigpt.load` returns them.
        prompt: an empty one stands for the end-of-text token.
        strategy: greedy decoding unless given. Processors of your own are called once more for each token.
        compare: another prompt, continued in the same way, to be shown beside the first.
        max_new_tokens: 20 unless given, or what fits the context length; 0 shows the prompt alone.
        stop: strings that end the text.
        overflow: "error", "truncate" or "stop", as for `minigpt.sampler.generate`; a page shows one context.
        model_name: what the page calls the model.

    Raises:
        PromptTooLong: a prompt and its new tokens do not fit the context length.
        InvalidRequest: an argument cannot be used, or the options rule out every token.
        ValueError: the model is compiled, or in training mode with dropout.

    >>> import minigpt
    >>> explore(*minigpt.load(), "Once upon a", max_new_tokens=1).data["title"]
    'Once upon a time'
    """
    asked = Asked(strategy or Greedy(), max_new_tokens, tuple(stop), overflow)
    prompts = [prompt] if compare is None else [prompt, compare]
    return page_of(model, tokenizer, prompts, asked, Origin(model_name))


def page_of(model: GPT2, tokenizer: Tokenizer, prompts: Sequence[str], asked: Asked, origin: Origin) -> Page:
    """The page of one prompt, or of two; errors as for `explore`."""
    data = page_data(model, tokenizer, prompts, asked, origin)
    return Page(data, document(data))
