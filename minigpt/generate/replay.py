"""A saved trace of a beam search, shown again: step by step, or as a picture."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.outputs import reason
from minigpt.generate.beam_screen import BeamScreen, frame
from minigpt.generate.screen import save_lattice
from minigpt.generate.settings import check_lattice
from minigpt.sampler.lattice import Lattice

SECONDS_A_STEP = 0.2  # on a terminal: time to read the new tokens
COLUMNS = 100  # of a line elsewhere


def replay(file: str, lattice_file: str | None) -> None:
    """Shows the beams of a saved trace on stderr, or saves the trace once more, as a picture perhaps.

    Raises:
        Failure: the file cannot be read, holds no trace, or the other cannot be written.
    """
    if lattice_file is not None:
        check_lattice(lattice_file, {"--replay": file})
    try:
        lattice = Lattice.load(Path(file))
    except (OSError, ValueError) as error:
        raise Failure(BAD_FLAGS, f"--replay {file}: {reason(error)}") from error
    if lattice_file is not None:
        save_lattice(lattice, lattice_file, lambda token: lattice.text([token]))
    elif sys.stderr is not None and sys.stderr.isatty():
        _animate(lattice, sys.stderr)
    elif sys.stderr is not None:
        _list_steps(lattice, sys.stderr)


def _animate(lattice: Lattice, out: TextIO) -> None:
    """The beams after each step, in place."""
    screen = BeamScreen(out, lattice.text)
    try:
        for event in lattice.events():
            screen.take(event)
            time.sleep(SECONDS_A_STEP)
    finally:
        screen.close()


def _list_steps(lattice: Lattice, out: TextIO) -> None:
    """The beams after each step, one below the other: what grew can be read where nothing can be redrawn."""
    for prompt_index in range(len(lattice.prompts)):
        for number, beams in enumerate(lattice.replay(prompt_index), start=1):
            place = f"prompt {prompt_index}, step {number}" if len(lattice.prompts) > 1 else f"step {number}"
            lines = [f"{place}:", *frame(beams, lattice.text, COLUMNS, dim=str)]
            out.write("".join(f"{line}\n" for line in lines))
