"""The beams of a search, shown in the terminal while they grow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TextIO

from minigpt.cli.one_line import fitting_end, visible
from minigpt.sampler.events import BeamsExtended, Event
from minigpt.sampler.lattice import BeamStep, BeamText

UP, CLEAR_LINE, CLEAR_BELOW = "\x1b[{}F", "\x1b[2K", "\x1b[J"
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
    settled = len(beams.settled()) if beams.live else 0  # at the end all are final
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
