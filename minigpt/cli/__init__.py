"""What every command shares: its exit codes, one line for a mistake, and how it is run."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from minigpt.cli.terminal import write_err
from minigpt.errors import InvalidRequest
from minigpt.lazy import hub_tqdm
from minigpt.sampler.events import PromptTooLong

if TYPE_CHECKING:
    from minigpt.cli.parser import Parser

DONE, FAILED, BAD_FLAGS, NO_MODEL, TOO_LONG, OUT_OF_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
EXIT_CODES = {
    DONE: "done",
    FAILED: "failed (in whole or in part, or a check)",
    BAD_FLAGS: "wrong flags or input",
    NO_MODEL: "model not found or not supported",
    TOO_LONG: "prompt too long",
    OUT_OF_MEMORY: "out of memory",
    INTERRUPTED: "Ctrl-C",
}
COMPILERS = ("torch._dynamo", "torch._inductor")  # where the errors of torch.compile come from
BARS = ("minigpt", "huggingface_hub")  # names of progress bars: ours (see `progress`), and those of downloads


class Failure(Exception):
    """A mistake of the user's, or of the world's: one line on stderr, and an exit code."""

    def __init__(self, code: int, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
        self.code = code


def run(
    command: str,
    parser: Callable[[], Parser],
    body: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None,
    saves_memory: str = "fewer or shorter texts, fewer beams, a smaller model, or --dtype bfloat16",
) -> int:
    """Runs a command; the exit code. What a user can cause ends in one line, a bug in its traceback.

    Args:
        command: the command's name, which is before every line on stderr.
        parser: makes the parser of its flags.
        body: all that it does once the flags are read; returns the exit code.
        argv: the flags; `sys.argv`'s if None.
        saves_memory: what to ask for where memory runs out.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(command, f"warning: {message}")
            args = parser().parse(sys.argv[1:] if argv is None else argv)
            with _quietly() if getattr(args, "quiet", False) else nullcontext():
                return body(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has closed it
        return DONE
    except (Failure, InvalidRequest, OSError, MemoryError, RuntimeError) as error:
        failure = _failure(error, saves_memory)
        note(command, failure)
        return failure.code


@contextmanager
def _quietly() -> Iterator[None]:
    """No warnings, no progress bars of ours, and none of downloads; afterwards as it was before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = [bars for bars in BARS if not hub_tqdm.are_progress_bars_disabled(bars)]
        for bars in shown:
            hub_tqdm.disable_progress_bars(bars)
        try:
            yield
        finally:
            for bars in shown:
                hub_tqdm.enable_progress_bars(bars)


def _failure(error: Exception, saves_memory: str) -> Failure:
    """What went wrong, for the user; raises it again if it is a bug of ours."""
    match error:
        case Failure():
            return error
        case PromptTooLong():
            return Failure(TOO_LONG, error)
        case InvalidRequest():
            return Failure(BAD_FLAGS, error)
        case OSError():
            return Failure(FAILED, error)
    if type(error).__module__.startswith(COMPILERS):
        reason = str(error).partition("\n")[0]
        return Failure(
            BAD_FLAGS,
            f"--compile: torch cannot compile here ({reason}): leave it out, or install a C++ compiler",
        )
    if not _is_out_of_memory(error):
        raise error
    return Failure(OUT_OF_MEMORY, f"out of memory ({error}); ask for {saves_memory}")


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises a plain RuntimeError on the CPU, and a class of its own, derived from it, elsewhere.
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def note(command: str, message: object) -> None:
    """One line on stderr, with the command's name before it."""
    write_err(f"minigpt.{command}: {message}\n")
