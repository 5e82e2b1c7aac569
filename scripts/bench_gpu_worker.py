"""A process for each side of the GPU benchmark: all are made ready at once, then each waits while another is measured.

What fails, or is not ready or done in its time, is ended and gives the reason; the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

# Processes are forked from one that has imported torch but has not touched the GPU, or all would import it at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "minigpt.sampler", "minigpt.training.learner"])
COMPILERS = "8"  # processes that compile, for each side: as many sides compile side by side
LONGEST = 20  # seconds for one task

Make = Callable[[], Callable[..., Any]]


class NotMeasured(Exception):
    """Why there is no figure."""


class Worker:
    """A process that makes something callable, then calls it as asked."""

    def __init__(self, make: Make) -> None:
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", COMPILERS)
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(make, theirs))
        self._process.start()
        theirs.close()  # so that the pipe ends with the process
        self.failed: str | None = None  # the reason, if it has

    def wait_until_ready(self, until: float) -> float:
        """How many seconds it took to be made.

        Args:
            until: when to give up, by `time.monotonic`.

        Raises:
            NotMeasured: it failed, or was not ready in time.
        """
        return float(self._answer(until, "not ready in time, most of which is compiling"))

    def __call__(self, *arguments: Any) -> Any:
        """The result of a call.

        Raises:
            NotMeasured: it failed now or before, or took too long.
        """
        if self.failed:
            raise NotMeasured(self.failed)
        with suppress(BrokenPipeError):  # which the answer tells
            self._pipe.send(arguments)
        return self._answer(time.monotonic() + LONGEST, f"took more than {LONGEST} s")

    def _answer(self, until: float, too_late: str) -> Any:
        try:
            if not self._pipe.poll(max(0.0, until - time.monotonic())):
                raise NotMeasured(too_late)
            failure, result = self._pipe.recv()
            if failure:
                raise NotMeasured(failure)
        except (EOFError, ConnectionError):
            self.failed = "its process ended"
        except NotMeasured as reason:
            self.failed = str(reason)
        if self.failed:
            self.close()
            raise NotMeasured(self.failed)
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.join(timeout=5)


def _serve(make: Make, pipe: Connection) -> None:
    start = time.monotonic()
    try:
        call = make()
        pipe.send((None, time.monotonic() - start))
        while True:
            pipe.send((None, call(*pipe.recv())))
    except EOFError:  # nobody asks any more
        return
    except Exception as error:  # whatever it is, the others are still measured
        pipe.send(
            (
                f"{type(error).__name__}: {str(error).splitlines()[0]:.200}" if str(error) else repr(error),
                None,
            )
        )
