"""Where a run can be seen while it happens: its text on stdout, its beams in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from minigpt.cli.outputs import attempt
from minigpt.cli.terminal import write_out
from minigpt.sampler.events import Event, TokenGenerated
from minigpt.sampler.lattice import Lattice

if TYPE_CHECKING:
    from minigpt.generate.session import Session
    from minigpt.tokenizer import Tokenizer


class EventObserver(Protocol):
    """A place where a run can be seen."""

    def take(self, event: Event) -> None: ...
    def close(self) -> None: ...


class LatticeFile:
    """Keeps what all beams did, and saves it in the end, after Ctrl-C too."""

    def __init__(self, file: str, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> None:
        self._file, self._tokenizer, self._lattice = file, tokenizer, Lattice(prompts)

    def take(self, event: Event) -> None:
        self._lattice.take(event)

    def close(self) -> None:
        attempt("--lattice", self._file, lambda path: self._lattice.save(path, self._tokenizer.token_string))


class Screen:
    """Shows one text while it is written: never half a character, and nothing of a stop string."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._text = session.tokenizer.stream(*session.args.stop)
        if session.args.echo:
            write_out(session.texts[0])

    def take(self, event: Event) -> None:
        if isinstance(event, TokenGenerated):
            ends = self._session.requests[0].end_tokens
            special = self._session.tokenizer.special_tokens.values()
            if not (event.token in ends and event.token in special):
                write_out(self._text.feed(event.token))

    def close(self) -> None:
        write_out(self._text.finish() + "\n")
