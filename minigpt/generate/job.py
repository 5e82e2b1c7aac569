"""What the results of many prompts depend on: a run that goes on from a killed one must agree with it in all of that."""

from __future__ import annotations

import hashlib
import stat
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.outputs import reason
from minigpt.generate.settings import GenerateSettings
from minigpt.options import flag_of, options_of
from minigpt.sampler.option_values import MODEL

SUFFIXES = (".jsonl", ".txt")
CHUNK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class PromptsFile:
    """A file of prompts: its sha256, and how many lines it has."""

    path: Path
    sha256: str
    n_lines: int

    @classmethod
    def read(cls, name: str) -> PromptsFile:
        """Reads it once from beginning to end.

        Raises:
            Failure: it cannot be read, or is no file of prompts.
        """
        path = Path(name)
        wanted = (
            "name a .jsonl file, one object a line, or a .txt file, one prompt a line; with --out DIR also Parquet,"
            " a folder, a glob or a URL"
        )
        if path.suffix.lower() not in SUFFIXES:
            raise Failure(BAD_FLAGS, f"--prompts {name!r} is neither .jsonl nor .txt: {wanted}")
        digest, n_lines, last = hashlib.sha256(), 0, b"\n"
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise Failure(BAD_FLAGS, f"--prompts {name!r} is no file that can be read twice: {wanted}")
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    n_lines += chunk.count(b"\n")
                    last = chunk[-1:]
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            raise Failure(
                BAD_FLAGS, f"--prompts {name!r} cannot be read: {reason(error)}; {wanted}"
            ) from error
        return cls(path, digest.hexdigest(), n_lines + (last != b"\n"))


def job_of(settings: GenerateSettings, prompts: PromptsFile) -> dict[str, Any]:
    """What the results depend on, as far as it is known before the model is loaded; ids have the file's name."""
    return {"prompts": f"{prompts.path.name} {prompts.sha256}", "flags": flags_of(settings)}


def flags_of(settings: GenerateSettings) -> dict[str, str]:
    """The flags on which the results depend, but for the seed: a random one is taken over."""
    kind, given = settings.strategy.kind, settings.strategy.flags
    values = {flag_of(name): getattr(given, name, None) for name in options_of(kind)}
    values |= {flag_of(name): getattr(settings.model, name) for name in ("dtype", "quantize", "tokenizer")}
    names = (
        "max_new_tokens", "overflow", "stride", "stop", "allow_special", "heal", "json", "logprobs", "echo"
    )  # fmt: skip
    values |= {flag_of(name): getattr(settings, name) for name in names}
    values["--strategy"] = settings.strategy.name
    values.pop("--seed", None)
    return {flag: str(value) for flag, value in values.items() if _was_given(value)}


def _was_given(value: object) -> bool:
    """Whether a flag's value is one: 0 is.

    >>> [_was_given(value) for value in (0, 0.0, "", None, False, ())]
    [True, True, True, False, False, False]
    """
    return value is not None and value is not False and value != ()


def second_models(settings: GenerateSettings) -> dict[str, str]:
    """The sha256 of each model that the flags name beside the first one, by its flag.

    Raises:
        Failure: there is no such model.
    """
    kind, given = settings.strategy.kind, settings.strategy.flags
    named = {name: getattr(given, name) for name, option in options_of(kind).items() if option.kind is MODEL}
    return {flag_of(name): settings.model.beside(model).sha256() for name, model in named.items() if model}


def check_same(file: str, begun: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with a file of results that was begun otherwise.

    Raises:
        Failure: the prompts, the model or a flag is another; the message names it.
    """
    for name, value in now.items():
        before = begun.get(name)
        if before == value:
            continue
        if name == "flags" and isinstance(before, dict):
            flag = min(flag for flag in {*before, *value} if before.get(flag) != value.get(flag))
            name = f"{flag} {before.get(flag, '(not given)')}, now {value.get(flag, '(not given)')}"
        elif name == "seed":
            name = f"--seed {before}, now {value}"
        else:
            name = f"other {name}" if name == "prompts" else f"another {name}"
        raise Failure(
            BAD_FLAGS,
            f"--output {file}: {file}.part was begun with {name}: give the same command to go on, or name another file,"
            f" or remove {file}.part",
        )


def with_seed(settings: GenerateSettings, seed: int | None) -> GenerateSettings:
    """The settings, with this seed if none is given: so a run that goes on samples as the one before."""
    given: Namespace = settings.strategy.flags
    if seed is None or given.seed is not None:
        return settings
    flags = Namespace(**{**vars(given), "seed": seed})
    return replace(settings, strategy=replace(settings.strategy, flags=flags))
