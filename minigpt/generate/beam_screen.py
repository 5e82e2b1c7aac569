"""The beams of a search, drawn in the terminal while they grow, or again from a saved lattice."""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from minigpt.cli import BAD_FLAGS, DONE, Failure
from minigpt.sampler.events import BeamsExtended, Event
from minigpt.sampler.lattice import BeamStep, BeamText, Lattice

UP, CLEAR_LINE, CLEAR_BELOW = "\x1b[{}F", "\x1b[2K", "\x1b[J"
SECONDS_A_STEP = 0.2  # of a replay: time to read the new tokens
DIM, PLAIN = "\x1b[2m", "\x1b[22m"

TextOf = Callable[[Sequence[int]], str]  # `Tokenizer.decode`, or `Lattice.text` where there is no tokenizer


def dimmed(text: str) -> str:
    return f"{DIM}{text}{PLAIN}" if text else ""


class BeamScreen:
    """Draws the beams after every step, in place on a terminal; elsewhere only the last ones, at the end.

    A line is one beam: its score, and as much of its text's end as fits, dimmed as far as it is settled. A
    finished text has its finish reason before it.

    >>> import io
    >>> from minigpt.sampler.events import BeamExtension
    >>> screen = BeamScreen(io.StringIO(), text_of=lambda tokens: "".join(map(chr, tokens)))
    >>> screen.take(BeamsExtended(0, [BeamExtension(0, 65, -0.5, ""), BeamExtension(0, 66, -1.5, "eos")]))
    >>> screen.close()
    >>> print(screen.out.getvalue(), end="")
      -0.500  A
      -1.500  [eos] B
    """

    def __init__(self, out: TextIO, text_of: TextOf) -> None:
        self.out, self._text_of = out, text_of
        self._beams: dict[int, BeamStep] = {}  # of each prompt
        self._drawn = 0  # lines on the terminal

    def take(self, event: Event) -> None:
        """Draws what there is now, if beams have grown."""
        if isinstance(event, BeamsExtended):
            beams = self._beams.get(event.prompt_index, BeamStep())
            self._beams[event.prompt_index] = beams.grown(event.beams)
            if self.out.isatty():
                self._redraw()

    def close(self) -> None:
        """Without a terminal, writes the last beams; on one they are there."""
        if not self.out.isatty():
            self.out.write("".join(f"{line}\n" for line in self._lines(columns=100, dim=str)))
        self.out.flush()

    def _redraw(self) -> None:
        columns, rows = self._size()
        # A line that reaches the last column, or the last row, would make the terminal move on by itself.
        lines = self._lines(columns - 1, dimmed)[: rows - 1]
        up = UP.format(self._drawn) if self._drawn else ""
        self.out.write(up + "".join(f"{CLEAR_LINE}{line}\n" for line in lines) + CLEAR_BELOW)
        self.out.flush()
        self._drawn = len(lines)

    def _size(self) -> tuple[int, int]:
        try:
            columns, rows = os.get_terminal_size(self.out.fileno())
        except OSError:
            columns, rows = 0, 0
        return columns or 80, rows or 24  # a terminal that does not know says 0

    def _lines(self, columns: int, dim: Callable[[str], str]) -> list[str]:
        frames = [frame(beams, self._text_of, columns, dim) for _, beams in sorted(self._beams.items())]
        if len(frames) == 1:
            return frames[0]
        return [line for i, lines in enumerate(frames) for line in (f"prompt {i}:", *lines)]


def replay(file: str) -> int:
    """Draws the beams of a saved lattice again, step by step on a terminal; the exit code.

    Raises:
        Failure: the file cannot be read, or holds no lattice.
    """
    try:
        lattice = Lattice.load(Path(file))
    except (OSError, ValueError) as error:
        raise Failure(BAD_FLAGS, f"--replay {file}: {getattr(error, 'strerror', None) or error}") from error
    screen = BeamScreen(sys.stderr, lattice.text)
    try:
        for event in lattice.events():
            screen.take(event)
            if screen.out.isatty():
                time.sleep(SECONDS_A_STEP)
    finally:
        screen.close()
    return DONE


def frame(beams: BeamStep, text_of: TextOf, columns: int, dim: Callable[[str], str] = dimmed) -> list[str]:
    """The lines that show the beams: those that go on, then as many finished ones, at the end all, best first.

    Args:
        beams: those of one prompt.
        text_of: what makes a text of tokens.
        columns: how wide a line may be.
        dim: what marks the part of a text that is settled.

    >>> beams = BeamStep(live=(BeamText((72, 105), -0.5), BeamText((72, 111), -1.25)))
    >>> frame(beams, lambda tokens: "".join(map(chr, tokens)), 80, dim=str.lower)
    ['  -0.500  hi', '  -1.250  ho']
    """
    settled = len(beams.settled()) if beams.live else 0  # at the end there is nothing left to tell apart
    shown = [*beams.live, *beams.finished[: len(beams.live) or None]]
    return [_line(beam, settled, text_of, columns, dim) for beam in shown]


def _line(beam: BeamText, settled: int, text_of: TextOf, columns: int, dim: Callable[[str], str]) -> str:
    head = f"{beam.score:8.3f}  " + (f"[{beam.finish_reason}] " if beam.finish_reason else "")
    text = visible(text_of(beam.tokens))
    # A character that is begun within what is settled may end beyond it.
    old = visible(text_of(beam.tokens[:settled])).rstrip("\ufffd")
    tail = fitting_end(text, columns - len(head))
    fresh = max(0, len(tail) - (len(text) - len(old)))  # where in the tail the new begins
    return head[: max(0, columns)] + dim(tail[:fresh]) + tail[fresh:]


def visible(text: str) -> str:
    r"""The text on one line, without what would move the cursor or turn the writing round.

    >>> visible("a\nb\tc\x1b[2J")
    'a⏎b c·[2J'
    """
    shown = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", " ")
    return "".join("·" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in shown)


def fitting_end(text: str, columns: int) -> str:
    """The longest end of a text that is no wider than that, after an ellipsis if it is not all.

    >>> fitting_end("abcdef", 4), fitting_end("山田太郎", 6), fitting_end("abc", 3), fitting_end("abc", 0)
    ('…def', '…太郎', 'abc', '')
    """
    if width(text) <= columns:
        return text
    start, room = len(text), columns - 1  # one for the ellipsis
    while start > 0 and width(text[start - 1]) <= room:
        start -= 1
        room -= width(text[start])
    while start < len(text) and width(text[start]) == 0:  # an accent without its letter
        start += 1
    return "…" + text[start:] if columns > 0 else ""


def width(text: str) -> int:
    r"""The columns that a text takes: two for a wide character, none for an accent on the one before.

    >>> width("naive"), width("nai\u0308ve"), width("山")
    (5, 5, 2)
    """
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
