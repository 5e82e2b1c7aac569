"""What every command shares: the model's flags, one line for a mistake, and the exit codes."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from minigpt.atomic import all_or_none
from minigpt.data.text import decode_text

if TYPE_CHECKING:
    import torch

    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

DONE, FAILED, BAD_FLAGS, NO_MODEL, TOO_LONG, OUT_OF_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

MOST_THREADS = 1024  # some number far above, and OpenMP crashes the process


class Failure(Exception):
    """A mistake of the user's, or of the world's: one line on stderr, and an exit code."""

    def __init__(self, code: int, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
        self.code = code


class Parser(argparse.ArgumentParser):
    """argparse with a one-line error, and hyphens and underscores alike in flags."""

    def __init__(self, command: str, **how: Any) -> None:
        super().__init__(
            prog=f"python -m minigpt.{command}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **how,
        )

    def error(self, message: str) -> NoReturn:
        raise Failure(BAD_FLAGS, f"{message}; see --help")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        args, unknown = self.parse_known_args(_hyphens(argv))
        if unknown:
            quotes = "" if unknown[0].startswith("-") else " (a text of several words needs quotes)"
            self.error(f"unrecognized arguments: {' '.join(unknown)}{quotes}")
        return args


def _hyphens(argv: Sequence[str]) -> list[str]:
    """The arguments with hyphens in their flags; values, and all that follows a bare --, stay as they are.

    >>> _hyphens(["--top_k=1", "--stop=a_b", "-- a_b", "--", "--a_b"])
    ['--top-k=1', '--stop=a_b', '-- a_b', '--', '--a_b']
    """
    end = argv.index("--") if "--" in argv else len(argv)
    flags = [re.sub(r"^--\w[\w-]*(?==|$)", lambda flag: flag[0].replace("_", "-"), arg) for arg in argv[:end]]
    return [*flags, *argv[end:]]


def run(
    command: str,
    body: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None,
    saves_memory: str = "fewer or shorter texts, fewer beams, a smaller model, or --dtype bfloat16",
) -> int:
    """Runs a command; the exit code. What a user can cause never ends in a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(command, f"warning: {message}")
            return body(sys.argv[1:] if argv is None else argv)
    except Failure as failure:
        note(command, failure)
        return failure.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:  # most likely stdout cannot be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may Python try again at the end
        if isinstance(error, BrokenPipeError):  # whoever read it has had enough
            return DONE
        note(command, error)
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        note(command, Failure(OUT_OF_MEMORY, f"out of memory ({error}); ask for {saves_memory}"))
        return OUT_OF_MEMORY


def note(command: str, message: object) -> None:
    print(f"minigpt.{command}: {message}", file=sys.stderr, flush=True)


def decoded(data: bytes, name: str) -> str:
    """The text of a file or of stdin; a newline at its very end, which editors and `generate` put there, is left out."""
    try:
        return decode_text(data, name).removesuffix("\n")
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error


def check_file(flag: str, name: str) -> None:
    """Refuses a file that cannot be written, before anything is computed."""
    path = Path(name).resolve()
    if not path.parent.is_dir():
        raise Failure(BAD_FLAGS, f"{flag} {name}: there is no such folder to write into")
    # The file will be replaced, which must not happen to /dev/null.
    if path.exists() and not path.is_file():
        raise Failure(BAD_FLAGS, f"{flag} {name!r} is a folder or a device; name a file")


def write_out(text: str) -> None:
    sys.stdout.buffer.write(_utf8(text))
    sys.stdout.buffer.flush()


def write_file(file: str, text: str) -> None:
    """Writes a file whole or not at all, over an older one."""
    path = Path(file).resolve()  # a link stays one
    with all_or_none(path.parent) as aside:
        (aside / path.name).write_bytes(_utf8(text))


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")  # half a surrogate pair, as from an argument that is not UTF-8


def _is_out_of_memory(error: Exception) -> bool:
    # torch raises a plain RuntimeError on the CPU, and a class of its own, derived from it, elsewhere.
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def add_model_flags(parser: Parser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model", metavar="NAME_OR_DIR",
        help="a directory with config.json, or a Hugging Face name such as gpt2 (default: the bundled model)",
    )  # fmt: skip
    group.add_argument("--revision", metavar="REV", help="a branch, tag or commit of a hub model")
    group.add_argument("--offline", action="store_true", help="use only what was fetched before")
    group.add_argument(
        "--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
        help="where to compute; auto takes a GPU if there is one",
    )  # fmt: skip
    group.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
        help="auto is float32 on a CPU, the file's own type elsewhere",
    )  # fmt: skip
    group.add_argument(
        "--compile", action="store_true", help="compile the blocks first: slow start, faster after"
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a core)")


def check_model_flags(args: argparse.Namespace) -> None:
    """Refuses what can be seen to be wrong without torch, which is slow to import."""
    if args.threads is not None and not 1 <= args.threads <= MOST_THREADS:
        raise Failure(BAD_FLAGS, f"--threads must be from 1 to {MOST_THREADS}, got {args.threads}")


def load(args: argparse.Namespace) -> tuple[GPT2, Tokenizer]:
    """The model and tokenizer that the flags ask for."""
    import torch

    from minigpt.pretrained import load as load_both

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    chosen = device(args.device)
    try:
        model, tokenizer = load_both(
            args.model, device=chosen, dtype=dtype, revision=args.revision, offline=args.offline
        )
    except (OSError, ValueError) as error:
        raise Failure(NO_MODEL, error) from error
    if args.compile:
        # Each layer whose scores have a scale of their own is compiled anew; torch gives up after 8.
        torch._dynamo.config.recompile_limit += model.config.n_layer
        for block in model.blocks:
            block.compile()
    return model, tokenizer


def load_beside(args: argparse.Namespace, name_or_dir: str) -> tuple[GPT2, Tokenizer]:
    """Another model, where and how the flags ask for the first one."""
    return load(argparse.Namespace(**{**vars(args), "model": name_or_dir, "revision": None}))


def device(wanted: str) -> torch.device:
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[wanted]:
        raise Failure(
            BAD_FLAGS, f"--device {wanted}: this machine has none that torch can use; use --device cpu"
        )
    return torch.device(wanted)


def peak_memory() -> int:
    """The most memory this process has held, in bytes: the GPU's if one was used."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux; what getrusage says there includes the parent's, from before it became us
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, which counts bytes
