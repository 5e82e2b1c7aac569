"""Files that a command writes: tried before anything is computed, and written atomically."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from minigpt.atomic import all_or_none, check_writable, named_folder
from minigpt.cli import BAD_FLAGS, FAILED, Failure
from minigpt.cli.inputs import STDIN
from minigpt.cli.terminal import utf8, write_out


def check_file(flag: str, name: str, others: Mapping[str, str | None]) -> None:
    """Refuses a file that cannot be written, or should not be, before anything is computed.

    Args:
        flag: names it in errors.
        name: the file.
        others: the files of other flags, which it must not replace; None where a flag was not given.

    Raises:
        Failure: it is one of the others, its folder does not exist or cannot be written into, or it is a folder or a
            device.
    """
    for other_flag, other in others.items():
        if other not in (None, STDIN) and _same_file(name, other):
            raise Failure(BAD_FLAGS, f"{flag} {name} is the file of {other_flag}: name another file")
    try:
        path = real(name)
        if not path.parent.is_dir():
            raise Failure(BAD_FLAGS, f"{flag} {name}: there is no such folder to write into")
        # The file will be replaced, which must not happen to /dev/null.
        if path.exists() and not path.is_file():
            raise Failure(BAD_FLAGS, f"{flag} {name!r} is a folder or a device; name a file")
        if path.is_symlink():
            raise Failure(BAD_FLAGS, f"{flag} {name!r} is a link that leads back to itself; name a file")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except (OSError, ValueError) as error:
        raise Failure(BAD_FLAGS, f"{flag} {name!r} cannot be written: {reason(error)}") from error


def check_folder(flag: str, directory: Path) -> None:
    """Refuses a folder that cannot be written into, and cannot be made, before anything is computed.

    Raises:
        Failure: as above.
    """
    try:
        check_writable(directory)
    except ValueError as error:
        raise Failure(BAD_FLAGS, f"{flag} {error}") from error


def check_new_model(flag: str, name: str) -> None:
    """Refuses a folder for a model that cannot be written into, or that holds one already, or an adapter.

    Raises:
        InvalidRequest: it has no name.
        Failure: as above.
    """
    directory = named_folder(flag, name)
    for mark, what in (("config.json", "a model"), ("adapter_config.json", "an adapter")):
        if (directory / mark).exists():
            raise Failure(
                BAD_FLAGS, f"{flag} {directory} holds {what} already; name another folder, or remove it"
            )
    check_folder(flag, directory)


def write_file(file: str, text: str) -> None:
    """Writes a file atomically, over an older one.

    Raises:
        OSError: it cannot be written; an older one stands.
    """
    path = real(file)
    with all_or_none(path.parent) as aside:
        (aside / path.name).write_bytes(utf8(text))


def save(flag: str, file: str, text: str) -> None:
    """Writes a file that a flag named; where that fails at the end of the work, the text goes to stdout.

    Raises:
        Failure: it could not be written.
    """
    try:
        write_file(file, text)
    except OSError as error:
        write_out(text)
        raise Failure(FAILED, f"{flag} {file}: {reason(error)}; its text went to stdout") from error


def attempt(flag: str, file: str, write: Callable[[Path], None]) -> None:
    """Lets `write` write a file that a flag named.

    Raises:
        Failure: it could not be written.
    """
    try:
        write(real(file))
    except OSError as error:
        raise Failure(FAILED, f"{flag} {file}: {reason(error)}") from error


def real(file: str) -> Path:
    """The path behind links, so that a link stays one."""
    return Path(os.path.realpath(file))


def _same_file(one: str, other: str) -> bool:
    """Whether two names stand for one file, by whatever path or link; it need not exist yet."""
    try:
        return real(one) == real(other) or os.path.samefile(one, other)
    except (OSError, ValueError):  # one does not exist, or cannot
        return False


def reason(error: Exception) -> str:
    """What an error of the operating system says, without its number and path."""
    return getattr(error, "strerror", None) or str(error)
