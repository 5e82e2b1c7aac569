"""What every command shares: its exit codes, one line for a mistake, and how it is run."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence

from minigpt.cli.terminal import write_err
from minigpt.errors import InvalidRequest
from minigpt.sampler.events import PromptTooLong

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


class Failure(Exception):
    """A mistake of the user's, or of the world's: one line on stderr, and an exit code."""

    def __init__(self, code: int, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
        self.code = code


def run(
    command: str,
    body: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None,
    saves_memory: str = "fewer or shorter texts, fewer beams, a smaller model, or --dtype bfloat16",
) -> int:
    """Runs a command; the exit code. What a user can cause ends in one line, a bug in its traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(command, f"warning: {message}")
            return body(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of stdout has closed it
        return DONE
    except (Failure, InvalidRequest, OSError, MemoryError, RuntimeError) as error:
        failure = _failure(error, saves_memory)
        note(command, failure)
        return failure.code


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
