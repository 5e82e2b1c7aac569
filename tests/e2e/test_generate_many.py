"""`minigpt generate --prompts`: every prompt is answered once, whatever happens on the way."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from command import call, run, save, start, tiny

from minigpt.cli import Failure
from minigpt.generate.growing_file import GrowingFile

ROWS = [
    {"prompt": "Once", "id": "a"},
    {"prompt": "The king", "max_new_tokens": 2, "seed": 9},
    {"prompt": "x" * 40, "id": "too long"},
    {"prompt": "Once", "id": "b", "topic": "cats", "text": "mine"},
    {"prompt": ""},
    {"prompt": "Ünd", "id": 7},
]
IDS = ["a", "p.jsonl:2", "too long", "b", "p.jsonl:5", "7"]
FLAGS = (
    "--prompts",
    "p.jsonl",
    "--model",
    "model",
    "--max-new-tokens",
    6,
    "--temperature",
    1,
    "--threads",
    1,
)
JSON = ("--json", "--output", "out.jsonl", "--seed", 5)

INEXACT = ("timing", "logprobs", "score")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"), tiny(initializer_range=0.5, eos_token_id=None))


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and prompts, which is the current one."""
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(text: str) -> list[dict[str, Any]]:
    """Sorted by prompt, and without what may differ in its last digits: times and log-probabilities."""
    found = [json.loads(line) for line in text.splitlines()]
    return sorted(
        ({k: v for k, v in each.items() if k not in INEXACT} for each in found),
        key=lambda each: (each["prompt_index"], each.get("index")),
    )


def written(folder: Path) -> list[dict[str, Any]]:
    return records((folder / "out.jsonl").read_text())


@pytest.mark.usefixtures("folder")
def test_each_row_becomes_a_line_with_its_id() -> None:
    result = call(*FLAGS, "--json", "--seed", 5)
    assert result.code == 1
    found = records(result.out)
    assert [each["id"] for each in found] == IDS
    by_id = {each["id"]: each for each in found}
    assert by_id["a"]["tokens"] != by_id["b"]["tokens"]  # the same prompt: its id is part of the seed
    assert (len(by_id["p.jsonl:2"]["tokens"]), by_id["p.jsonl:2"]["seed"]) == (2, 9)
    assert (by_id["b"]["topic"], by_id["b"]["input_text"], by_id["b"]["seed"]) == ("cats", "mine", 5)
    assert by_id["p.jsonl:5"] == {"id": "p.jsonl:5", "error": "its prompt is empty", "prompt_index": 4}
    assert by_id["too long"]["error"].startswith("the prompt has 40 tokens, the model's context length is ")
    note, summary = result.err.splitlines()
    assert note.startswith("minigpt.generate: 2 of 6 prompts failed, first ")
    assert summary.startswith("minigpt.generate: 6 prompts, 2 failed, prompt 20 tokens, generated 20 at ")


@pytest.mark.usefixtures("folder")
def test_a_row_has_the_text_of_the_only_row() -> None:
    by_id = {each["id"]: each for each in records(call(*FLAGS, "--json", "--seed", 5).out)}
    for row, row_id in zip(ROWS, IDS, strict=True):
        Path("one.jsonl").write_text(json.dumps({**row, "id": row_id}))
        (alone,) = records(call(*FLAGS, "--json", "--seed", 5, "--prompts", "one.jsonl").out)
        assert {**alone, "prompt_index": 0} == {**by_id[row_id], "prompt_index": 0}


def test_texts_have_their_ids_above_them(folder: Path) -> None:
    (folder / "p.TXT").write_bytes(b"\xef\xbb\xbfOnce\r\n\r\nThe king")
    result = call("--prompts", "p.TXT", "--model", "model", "--max-new-tokens", 3, "--echo", "--quiet")
    assert result.code == 1
    assert result.err == "minigpt.generate: 1 of 3 prompts failed, first p.TXT:2: its prompt is empty\n"
    blocks = result.out.split("--- ")[1:]
    assert sorted(block.partition("\n")[0] for block in blocks) == ["p.TXT:1", "p.TXT:2", "p.TXT:3"]
    for row_id, prompt in (
        ("p.TXT:1", "Once"),
        ("p.TXT:2", "error: its prompt is empty"),
        ("p.TXT:3", "The king"),
    ):
        assert any(block.startswith(f"{row_id}\n{prompt}") for block in blocks)


def test_all_go_well(folder: Path) -> None:
    (folder / "p.jsonl").write_text('{"prompt": "Once"}')
    assert call(*FLAGS, *JSON).code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["model", "out.jsonl", "p.jsonl"]
    assert [each["id"] for each in written(folder)] == ["p.jsonl:1"]


@pytest.mark.parametrize("how", ["truncate", "slide"])
@pytest.mark.usefixtures("folder")
def test_nothing_is_left_out_in_silence(how: str) -> None:
    result = call(*FLAGS, "--overflow", how)
    assert "minigpt.generate: left out the oldest tokens of 1 prompt\n" in result.err
    assert "left out" not in call(*FLAGS).err


@pytest.mark.usefixtures("folder")
def test_what_is_probably_not_meant_is_remarked_on() -> None:
    result = call(*FLAGS, "--stop", r"\n")
    assert (
        "--stop '\\\\n' has a backslash and a letter in it; for a newline write $'\\n' in bash\n"
        in result.err
    )
    assert "no prompt" not in result.err


def test_an_older_file_stands_until_all_are_done(
    folder: Path, interrupt_after: Callable[[int], None]
) -> None:
    (folder / "out.jsonl").write_text("old")
    interrupt_after(2)
    result = call(*FLAGS, *JSON)
    assert (result.code, (folder / "out.jsonl").read_text()) == (130, "old")
    assert "interrupted; the same command goes on from out.jsonl.part" in result.err
    assert len((folder / "out.jsonl.part").read_text().splitlines()) == 2


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets Ctrl-C come after so many rows."""
    usual = GrowingFile.add

    def at(n: int) -> None:
        def add(self: GrowingFile, index: int, text: bytes, failed: bool) -> None:
            if self.count(0) <= len(ROWS) - n:
                raise KeyboardInterrupt
            usual(self, index, text, failed)

        monkeypatch.setattr(GrowingFile, "add", add)

    return at


def unfinished(monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """FILE.part and FILE.part.rows of a job of which only the end is missing."""
    with monkeypatch.context() as patched:
        patched.setattr(GrowingFile, "finish", GrowingFile.close)
        call(*FLAGS, *JSON)
    return Path("out.jsonl.part").read_bytes(), Path("out.jsonl.part.rows").read_bytes()


def test_a_killed_job_is_gone_on_from_wherever_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, rows = unfinished(monkeypatch)
    assert call(*FLAGS, *JSON).code == 1
    whole, begin = written(folder), rows.index(b"\n") + 1
    places = random.Random(0)
    ends = [int(line.split()[2]) for line in rows[begin:].splitlines()]
    states = [(0, begin), (len(part), len(rows))]
    for _ in range(12):  # rows are written one after the other, to FILE.part first
        cut = places.randrange(len(part))
        n_done = sum(end <= cut for end in ends)
        known = begin + sum(map(len, rows[begin:].splitlines(keepends=True)[:n_done]))
        states += [(cut, known), (cut, max(begin, known - places.randrange(6)))]
    for size, known in states:
        (folder / "out.jsonl.part").write_bytes(part[:size])
        (folder / "out.jsonl.part.rows").write_bytes(rows[:known])
        (folder / "out.jsonl").unlink()
        result = call(*FLAGS, *JSON)
        assert result.code == 1, result.err
        assert written(folder) == whole, (size, known)


def test_what_is_done_is_not_done_again(
    folder: Path, interrupt_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(4)
    assert call(*FLAGS, *JSON).code == 130
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    before = (folder / "out.jsonl.part").read_bytes()
    result = call(*FLAGS, *JSON)
    assert (folder / "out.jsonl").read_bytes().startswith(before)
    assert "4 prompts done before" in result.err
    assert "2 prompts, " in result.err
    assert "2 of 6 prompts failed" in result.err  # those of before count


def test_a_random_seed_is_taken_over(folder: Path, interrupt_after: Callable[[int], None]) -> None:
    interrupt_after(3)
    assert call(*FLAGS, "--json", "--output", "out.jsonl").code == 130
    interrupt_after(len(ROWS) + 1)
    assert call(*FLAGS, "--json", "--output", "out.jsonl").code == 1
    seeds = {each["seed"] for each in written(folder) if each.get("seed", 9) != 9}
    assert len(seeds) == 1
    fresh = call(*FLAGS, "--json", "--seed", seeds.pop())
    assert records(fresh.out) == written(folder)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--temperature", 2), "was begun with --temperature 1.0, now 2.0: give the same command to go on"),
        (("--top-p", 0.5), r"--top-p \(not given\), now 0\.5"),
        (("--seed", 6), "--seed 5, now 6"),
        (("--max-new-tokens", 5), "--max-new-tokens 6, now 5"),
        (("--num-beams", 2), "--early-stopping|--length-penalty|--num-beams"),
        (("--dtype", "bfloat16"), "--dtype auto, now bfloat16"),
        (("--top-p", 0), r"--top-p \(not given\), now 0"),
        (("--logprobs", 0), r"--logprobs \(not given\), now 0"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_another_job_is_refused_by_name(
    interrupt_after: Callable[[int], None], changed: tuple[object, ...], named: str
) -> None:
    interrupt_after(2)
    call(*FLAGS, *JSON)
    result = call(*FLAGS, *JSON, *changed)
    assert result.code == 2
    assert re.search(named, result.mistake), result.mistake
    assert len(Path("out.jsonl.part").read_text().splitlines()) == 2


@pytest.mark.usefixtures("folder")
def test_another_amateur_is_refused(
    interrupt_after: Callable[[int], None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    amateur = tmp_path_factory.mktemp("amateur")
    save(amateur, tiny(initializer_range=0.4))
    interrupt_after(2)
    flags = [*FLAGS, *JSON, "--amateur", amateur]
    call(*flags)
    save(amateur, tiny(initializer_range=0.3))
    assert "was begun with another --amateur" in call(*flags).mistake


def test_other_prompts_and_another_model_are_refused(
    folder: Path, interrupt_after: Callable[[int], None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    interrupt_after(2)
    call(*FLAGS, *JSON)
    other = save(tmp_path_factory.mktemp("other"), tiny(initializer_range=0.4, eos_token_id=None))
    assert "was begun with another model" in call(*FLAGS, *JSON, "--model", other).mistake
    (folder / "q.jsonl").write_bytes((folder / "p.jsonl").read_bytes())  # rows without an id would get others
    assert "was begun with other prompts" in call(*FLAGS, *JSON, "--prompts", "q.jsonl").mistake
    with (folder / "p.jsonl").open("a") as prompts:
        prompts.write('{"prompt": "more"}\n')
    assert "was begun with other prompts" in call(*FLAGS, *JSON).mistake


def test_a_part_that_nothing_explains_is_refused(folder: Path) -> None:
    (folder / "out.jsonl.part").write_text("precious")
    for content in (None, b"{", b"[]\n", b"[" * 100_000, b"\xff\n"):
        if content is not None:
            (folder / "out.jsonl.part.rows").write_bytes(content)
        result = call(*FLAGS, *JSON)
        assert result.code == 2
        assert "which says what it holds, is missing or damaged: remove them" in result.mistake
    assert (folder / "out.jsonl.part").read_text() == "precious"


@pytest.mark.parametrize(
    "spoiled", [b"0 0", b"9 0 1\n", b"0 0 99999999\n", b"0 2 5\n", b"-1 0 5\n", b"\xff\n", b"0 0 0\n"]
)
def test_a_line_that_cannot_be_is_where_it_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spoiled: bytes
) -> None:
    part, rows = unfinished(monkeypatch)
    first, second, *others = rows.splitlines(keepends=True)
    Path("out.jsonl.part.rows").write_bytes(b"".join([first, second, spoiled, *others]))
    assert call(*FLAGS, *JSON).code == 1
    assert written(folder) == records(part.decode())


def test_a_disk_that_is_full_at_once_leaves_nothing_that_is_in_the_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says which job it is may be written in part, and then no results may follow."""
    opened = Path.open

    class Full(FileIO):
        def write(self, text: Any) -> int:
            if self.tell() == 5:
                raise OSError(28, "No space left on device")
            return super().write(bytes(text[:5]))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, mode, **how: (
            Full(path, "a+") if path.name == "out.jsonl.part.rows" else opened(path, mode, **how)
        ))  # fmt: skip
        assert "No space left on device" in call(*FLAGS, *JSON).mistake
    assert call(*FLAGS, *JSON).code == 1
    assert [each["id"] for each in written(folder)] == IDS


def test_two_processes_do_not_write_to_one_file(folder: Path, interrupt_after: Callable[[int], None]) -> None:
    interrupt_after(2)
    call(*FLAGS, *JSON)
    before = (folder / "out.jsonl.part").read_bytes()
    with (folder / "out.jsonl.part.rows").open("ab") as rows:
        fcntl.flock(rows, fcntl.LOCK_EX)
        result = call(*FLAGS, *JSON)
        assert result.code == 2
        assert "another process writes to out.jsonl.part: wait for it" in result.mistake
    assert (folder / "out.jsonl.part").read_bytes() == before
    interrupt_after(len(ROWS) + 1)
    assert call(*FLAGS, *JSON).code == 1


def test_no_process_takes_up_what_another_is_about_to_rename(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, replace = str(folder / "out.txt"), os.replace

    def intruded(source: Path, target: Path) -> None:
        with pytest.raises(Failure, match=r"another process writes to .*out\.txt\.part: wait for it"):
            GrowingFile(file, 1, {})
        replace(source, target)

    growing = GrowingFile(file, 1, {})
    growing.add(0, b"Once\n", failed=False)
    monkeypatch.setattr(os, "replace", intruded)
    growing.finish()
    assert sorted(path.name for path in folder.glob("out.*")) == ["out.txt"]
    assert Path(file).read_bytes() == b"Once\n"


def test_kill_and_go_on(folder: Path) -> None:
    """A true kill -9, twice; what is written meanwhile depends on the machine, what comes of it does not."""
    many = [{"prompt": f"Once {i}", "id": str(i)} for i in range(300)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    part = folder / "out.jsonl.part"
    for n in (1, 150):
        process = start(*FLAGS, *JSON, cwd=folder)
        while process.poll() is None and (not part.exists() or part.read_bytes().count(b"\n") < n):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
    assert run(*FLAGS, *JSON, cwd=folder).code == 0
    found = written(folder)
    assert [each["id"] for each in found] == [row["id"] for row in many]
    assert found == records(call(*FLAGS, "--json", "--seed", 5).out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompts", "none.jsonl"), "--prompts 'none.jsonl' cannot be read: No such file"),
        (("--prompts", "model.txt"), "is no file that can be read twice"),
        (("--prompts", "p.csv"), r"neither \.jsonl nor \.txt: name a \.jsonl file"),
        (("--prompts", "a\0.txt"), "cannot be read: embedded null"),
        (("Once", "--prompts", "p.jsonl"), "--prompts has all prompts: leave out PROMPT"),
        (("--prompts", "p.jsonl", "--explain"), "--explain is for a few prompts, --prompts for many"),
        (("--prompts", "p.jsonl", "-i"), "--interactive is for a few prompts"),
        (("--prompts", "p.jsonl", "--stream"), "--stream shows one text as it grows"),
        (("--prompts", "p.jsonl", "--stride", 3, "--model", "model"), "--stride is for --overflow slide"),
        (("--prompts", "p.jsonl", "--output", "no/out.jsonl"), "no such folder to write into"),
        (
            ("--prompts", "p.jsonl", "-o", "./p.jsonl"),
            "--output ./p.jsonl is the file of --prompts: name another file",
        ),
    ],
)
def test_mistakes_are_one_line(folder: Path, flags: tuple[object, ...], message: str) -> None:
    (folder / "model.txt").mkdir()
    result = call(*flags)
    assert result.code == 2
    assert re.search(message, result.mistake), result.mistake


def test_a_full_disk_keeps_what_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = GrowingFile.add

    def add(self: GrowingFile, index: int, text: bytes, failed: bool) -> None:
        if self.count(0) <= 3:
            raise OSError(28, "No space left on device")
        usual(self, index, text, failed)

    monkeypatch.setattr(GrowingFile, "add", add)
    result = call(*FLAGS, *JSON)
    assert result.code == 1
    assert "out.jsonl: No space left on device; the same command goes on from" in result.mistake
    monkeypatch.setattr(GrowingFile, "add", usual)
    assert call(*FLAGS, *JSON).code == 1
    assert [each["id"] for each in written(folder)] == IDS
