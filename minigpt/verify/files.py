"""Whether the files are those that the hub has, as far as this machine can know."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from minigpt.hub import sha256
from minigpt.json_files import counted
from minigpt.verify.report import Check, failed, not_checked, passed

# sha256 of weights that public sources agree on, and the model they are.
KNOWN_WEIGHTS = {"248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707": "openai-community/gpt2"}


def check_files(directory: Path, weights: list[Path]) -> Check:
    """Holds each file against the name that the hub's cache gives it: its sha256, or git's hash of it."""
    name = "files, with the hub's hashes"
    files = sorted({*weights, *(file for file in directory.iterdir() if file.suffix in (".json", ".txt"))})
    known = {file: expected for file in files if (expected := hub_hash(file)) is not None}
    damaged = [file.name for file, expected in known.items() if digest(file, len(expected)) != expected]
    if damaged:
        return failed(name, f"{', '.join(damaged)}: another content than the hub's; fetch again")
    if not known:
        digests = [sha256(file) for file in weights]
        if all(found in KNOWN_WEIGHTS for found in digests):
            return passed(name, f"the weights are those of {KNOWN_WEIGHTS[digests[0]]}")
        listed = "; ".join(f"{file.name} {found}" for file, found in zip(weights, digests, strict=True))
        return not_checked(name, f"no hash is known for these files ({listed})")
    return passed(name, counted(len(known), "files"))


def hub_hash(file: Path) -> str | None:
    """The hash that the hub gave for a file, which its cache uses as the name of what the file links to."""
    if not file.is_symlink():
        return None
    target = Path(os.readlink(file)).name
    return target if re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", target) else None


def digest(file: Path, length: int) -> str:
    """The sha256 of a file (64 digits), or the hash by which git names it (40)."""
    if length == 64:
        return sha256(file)
    content = file.read_bytes()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
