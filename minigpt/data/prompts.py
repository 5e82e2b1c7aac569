"""Prompts: from a file, or cut from a text, with their reference continuations."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt.data.text import is_jsonl, read_text
from minigpt.json_files import counted, parse

Given = tuple[str, str | None]  # a prompt, and how a human went on if that is known


@dataclass(frozen=True)
class Prompt:
    """The tokens that every method continues, and how a human continued them."""

    tokens: tuple[int, ...]
    human: tuple[int, ...] | None = None


def from_file(path: Path) -> list[Given]:
    r"""The prompts of a text file, one a line, or of a .jsonl file with "prompt" and perhaps "text" in each object.

    Raises:
        ValueError: it cannot be read, is empty, or not as described; the message says where.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "prompts.jsonl")
    ...     _ = file.write_text('{"prompt": "Once", "text": " upon a time"}\n')
    ...     from_file(file)
    [('Once', ' upon a time')]
    """
    lines = read_text(path).split("\n")
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} is empty: put a prompt on each line")
    if not is_jsonl(path):
        return [(line, None) for _, line in numbered]
    given = [_entry(line, f"{path}, line {number}") for number, line in numbered]
    if len({human is None for _, human in given}) > 1:
        raise ValueError(
            f'{path}: some prompts have a human "text" and some none; give it to all, or to none'
        )
    return given


def _entry(line: str, place: str) -> Given:
    wanted = 'write {"prompt": "...", "text": "..."}, the text being optional'
    entry = parse(line, place)
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise ValueError(f'{place}: no "prompt"; {wanted}')
    for name in ("prompt", "text"):
        if name in entry and (not isinstance(entry[name], str) or not entry[name]):
            raise ValueError(f'{place}: "{name}" is no text, or empty; {wanted}')
    return entry["prompt"], entry.get("text")


def passages(
    texts: Sequence[Sequence[int]], n_prompts: int, prompt_tokens: int, max_new_tokens: int, seed: int
) -> list[Prompt]:
    """Prompts cut from texts at places sampled by `seed`, and what follows them; no two share a token.

    Raises:
        ValueError: the texts do not have so many.

    >>> [[prompt]] = [passages([range(7)], n_prompts=1, prompt_tokens=3, max_new_tokens=2, seed=0)]
    >>> prompt
    Prompt(tokens=(0, 1, 2), human=(3, 4))
    """
    size = prompt_tokens + max_new_tokens
    places = [(text, start) for text in texts for start in range(0, len(text) - size + 1, size)]
    if len(places) < n_prompts:
        raise ValueError(
            f"the text has {counted(len(places), 'passages')} of {size} tokens (--prompt-tokens {prompt_tokens},"
            f" --max-new-tokens {max_new_tokens}), but --n-prompts is {n_prompts}: name a longer text, or lower one of these"
        )
    cuts = [
        (text, start, start + prompt_tokens) for text, start in random.Random(seed).sample(places, n_prompts)
    ]
    return [
        Prompt(tuple(text[start:end]), tuple(text[end : end + max_new_tokens])) for text, start, end in cuts
    ]
