"""Disks that fill up, break or forbid, and processes that are killed: every file is the old or the new.

As SQLite does it: a command runs once undisturbed, then again and again with a fault at one of the calls that change
its folder, or at one byte of its files. `make test` tries some places, drawn with a seed; `make faults` tries all.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import save, tiny
from fork_server import Fault, ForkServer, Outcome

ALL = os.environ.get("FAULTS") == "all"
KINDS = ("ENOSPC", "EIO", "EACCES", "SIGKILL")
TRAIN = (
    "train", "--data", "a.txt", "--token-cache", "tokens", "--tokenizer", "bytes", "--n-layer", "1", "--n-head", "1",
    "--n-embd", "8", "--context", "8", "--batch-size", "2", "--checkpoint-every", "2", "--eval-every", "2", "--steps",
    "4", "--dtype", "float32", "--eval-tokens", "20", "--threads", "1", "--out", "run",
)  # fmt: skip
COMMANDS = {
    "train": TRAIN,
    "generate": ("generate", "Once", "--model", "model", "--max-new-tokens", "3", "--output", "out.txt"),
    "prompts": ("generate", "--prompts", "prompts.txt", "--model", "model", "--max-new-tokens", "3", "--threads", "1",
                "--output", "texts.txt"),
    "lattice": ("generate", "Once", "--model", "model", "--num-beams", "2", "--max-new-tokens", "2",
                "--lattice", "beams.json"),
    "page": ("explore", "Once", "--model", "model", "--max-new-tokens", "2", "-o", "page.html"),
    "shards": ("generate", "--prompts", "prompts.jsonl", "--model", "model", "--max-new-tokens", "3", "--shard-rows",
               "2", "--out", "shards"),
    "parquet": ("score", "prompts.jsonl", "--text-field", "prompt", "--model", "model", "--shard-rows", "2",
                "--out", "losses"),
    "tokenizer": ("train-tokenizer", "a.txt", "--vocab-size", "260", "--out", "tok"),
}  # fmt: skip
ONE_ROW_IS_BAD = ("shards", "parquet")  # jobs: one of their rows is rejected, so the exit code is 1
AGAIN = {"train": (*TRAIN, "--resume")}  # what goes on after a fault; the others are simply given again


class Bench:
    """A folder in which a command can be run from the same beginning, over and over."""

    def __init__(self, root: Path, server: ForkServer) -> None:
        self.original, self.folder, self.server = root / "original", root / "work", server
        save(self.original / "model", tiny(initializer_range=0.5))
        (self.original / "a.txt").write_text("Once there was a cat.\n<|endoftext|>\nIt saw a mouse.\n" * 9)
        (self.original / "prompts.jsonl").write_text(
            '{"prompt": "Once", "topic": "cats"}\n{}\n{"prompt": "It ran"}\n'
        )
        (self.original / "prompts.txt").write_text("Once\nThe king\nA mouse ran\nx\n")
        for name in ("out.txt", "beams.json", "texts.txt", "page.html"):
            (self.original / name).write_text("old\n")
        self.clean: dict[str, dict[str, bytes]] = {}

    def run(self, argv: tuple[str, ...], fault: Fault | None = None) -> Outcome:
        return self.server.run(argv, self.folder, fault=fault)

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.original, self.folder)

    def files(self) -> dict[str, bytes]:
        """What stands there under a name of its own; what differs between two runs by nature is left out."""
        found = {}
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            timed = path.name == "metrics.jsonl" or path.suffix == ".png" or "checkpoints" in path.parts
            if path.is_file() and ".unfinished-" not in name and ".part" not in name and not timed:
                found[name] = path.read_bytes()
            if name == "texts.txt":  # texts come as they are finished, in whatever order
                found[name] = b"--- ".join(sorted(found[name].split(b"--- ")))
        return found

    def undisturbed(self, command: str) -> dict[str, bytes]:
        """The files after a run without a fault."""
        if command not in self.clean:
            self.reset()
            outcome = self.run(COMMANDS[command])
            assert outcome.code == (command in ONE_ROW_IS_BAD), outcome.err.decode()
            self.clean[command] = self.files()
        return self.clean[command]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with ForkServer() as server:
        yield Bench(tmp_path_factory.mktemp("faults"), server)


def calls_of(bench: Bench, command: str) -> int:
    """How many calls of a command change its folder: at one more, nothing goes wrong any more."""
    low, high = 1, 2
    while _fails(bench, command, high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fails(bench, command, middle) else (low, middle)
    return low


def _fails(bench: Bench, command: str, call: int) -> bool:
    bench.reset()
    return bench.run(COMMANDS[command], Fault("SIGKILL", call)).code < 0


def places(bench: Bench, command: str) -> list[Fault]:
    """Faults to try: at every call with every kind, and at bytes of the largest files; or some of them."""
    draw = random.Random(command)
    sizes = {
        len(content) for name, content in bench.undisturbed(command).items() if not name.startswith("model/")
    }
    ends = [1, *(size - 1 for size in sizes if size > 1), *(draw.randrange(1, max(sizes)) for _ in range(20))]
    at_bytes = [Fault("EFBIG", at) for at in ends]
    if not ALL:  # a call that does not exist lets all go well, which is as good a test
        calls = draw.sample(range(1, 60 if command in ("train", *ONE_ROW_IS_BAD) else 9), 3)
        return [*(Fault(draw.choice(KINDS), call) for call in calls), draw.choice(at_bytes)]
    return [
        *(Fault(kind, call) for call in range(1, calls_of(bench, command) + 1) for kind in KINDS),
        *at_bytes,
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_fault_leaves_old_files_or_new_ones_and_the_command_can_be_given_again(
    bench: Bench, command: str
) -> None:
    clean = bench.undisturbed(command)
    for fault in places(bench, command):
        bench.reset()
        before = bench.files()
        outcome = bench.run(COMMANDS[command], fault)
        assert outcome.code in (0, 1, 2, 3) or (fault.kind == "SIGKILL" and outcome.code == -9), (
            fault,
            outcome,
        )
        assert b"Traceback" not in outcome.err, (fault, outcome.err.decode())
        for name, content in bench.files().items():
            assert content in (before.get(name), clean.get(name)) or name.startswith("run/"), (fault, name)
        again = bench.run(AGAIN.get(command, COMMANDS[command]))
        assert again.code == (command in ONE_ROW_IS_BAD) or b"holds a tokenizer already" in again.err, (
            fault,
            again.err.decode(),
        )
        assert bench.files() == clean, fault
