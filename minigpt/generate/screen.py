"""Observers: where a run can be seen while it happens, its text on stdout, its beams in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from minigpt.cli.outputs import attempt
from minigpt.cli.progress import late_bar
from minigpt.cli.terminal import write_out
from minigpt.generate.lattice_svg import draw
from minigpt.sampler.events import BeamsExtended, Event, Finished, Request, TokenGenerated
from minigpt.sampler.lattice import Lattice
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.streaming import TextStream


class EventObserver(Protocol):
    """An observer of decoding events; `close` is called when the run is over."""

    def take(self, event: Event) -> None: ...
    def close(self) -> None: ...


class Screen:
    """Shows one text while it is generated: incomplete characters are held back, and stop strings left out."""

    def __init__(self, text: TextStream, end_tokens: frozenset[int]) -> None:
        """Args: `text` decodes; `end_tokens` are special ones, which are not shown."""
        self._text, self._end_tokens = text, end_tokens

    def take(self, event: Event) -> None:
        """Shows a token's text as soon as it is certain."""
        if isinstance(event, TokenGenerated) and event.token not in self._end_tokens:
            write_out(self._text.feed(event.token))

    def close(self) -> None:
        """Shows what was held back, and ends the line."""
        write_out(self._text.finish() + "\n")


class TokenBar:
    """A bar on a terminal's stderr, where texts are shown only at their end: the tokens of each prompt's longest text."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._most = [request.max_new_tokens for request in requests]
        self._seen: Counter[tuple[int, int | None]] = Counter()  # of each prompt's texts; None: of its beams
        self._longest: Counter[int] = Counter()  # of each prompt
        self._bar = late_bar(total=sum(self._most), unit="tok")

    def take(self, event: Event) -> None:
        """Moves on by a token, and at the end of a prompt's texts over those that they did not need."""
        if isinstance(event, Finished):
            self._reach(event.prompt_index, self._most[event.prompt_index])
        elif isinstance(event, TokenGenerated | BeamsExtended):
            text = event.index if isinstance(event, TokenGenerated) else None
            self._seen[event.prompt_index, text] += 1
            self._reach(event.prompt_index, self._seen[event.prompt_index, text])

    def _reach(self, prompt_index: int, n_tokens: int) -> None:
        further = n_tokens - self._longest[prompt_index]
        if further > 0:
            self._longest[prompt_index] = n_tokens
            self._bar.update(further)

    def close(self) -> None:
        """Removes it from the terminal."""
        self._bar.close()


class LatticeFile:
    """Collects what all beams did, and saves it at the end, after Ctrl-C too; nothing if none has grown."""

    def __init__(self, file: str, requests: Sequence[Request], tokenizer: Tokenizer) -> None:
        self._file, self._tokenizer = file, tokenizer
        self._lattice = Lattice([request.prompt for request in requests])

    def take(self, event: Event) -> None:
        """Remembers what the beams did."""
        self._lattice.take(event)

    def close(self) -> None:
        """Writes the file, unless it would be empty."""
        if any(self._lattice.steps):
            save_lattice(self._lattice, self._file, self._tokenizer.token_string)


def save_lattice(lattice: Lattice, file: str, token_string: Callable[[int], str]) -> None:
    """Saves a trace of beams: as a picture if the file's name ends in .svg, as JSON otherwise.

    Raises:
        Failure: the file cannot be written.
    """

    def write(path: Path) -> None:
        if path.suffix.lower() == ".svg":
            draw(lattice, path, token_string)
        else:
            lattice.save(path, token_string)

    attempt("--lattice", file, write)
