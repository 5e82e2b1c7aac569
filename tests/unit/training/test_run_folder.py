"""A run's folder is the user's, too: only what the run wrote is removed, and only one run is in it at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from trainer import flags, said, train, well, write_text

from minigpt import InvalidRequest
from minigpt.training.run_folder import locked


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    text = write_text(tmp_path / "tales.txt")
    well(train(*flags(text, tmp_path / "run", "--steps", 4)))
    return text, tmp_path / "run"


def test_what_a_user_keeps_beside_the_checkpoints_stays(run: tuple[Path, Path]) -> None:
    text, out = run
    folder = out / "checkpoints"
    newest = folder / "step-00000004"
    kept = [folder / name for name in ("step-00000002-copy", "step-99999999", "step-x", "step-00000003")]
    for copy in kept:
        shutil.copytree(newest, copy)
    (folder / "step-notes.txt").write_text("mine")
    (folder / "step-00000001").symlink_to(newest)
    kept += [folder / "step-notes.txt", folder / "step-00000001"]
    shutil.rmtree(folder / "step-99999999" / "no such", ignore_errors=True)
    well(train("--resume", *flags(text, out, "--steps", 12)))
    assert all(path.exists() or path.is_symlink() for path in kept)
    assert {path.name for path in folder.iterdir()} - {path.name for path in kept} == {
        "step-00000010",
        "step-00000012",
    }


def test_something_in_the_way_of_a_checkpoint_is_named(run: tuple[Path, Path]) -> None:
    text, out = run
    (out / "checkpoints" / "step-00000006").write_text("mine")
    result = train("--resume", *flags(text, out, "--steps", 6))
    assert result.code == 1
    assert "step-00000006 is in the way, and not of this run: move it" in said(result)[-1]
    assert (out / "checkpoints" / "step-00000006").read_text() == "mine"


def test_a_second_run_in_a_folder_is_refused(run: tuple[Path, Path]) -> None:
    text, out = run
    before = (out / "metrics.jsonl").read_bytes()
    with locked(out):
        result = train("--resume", *flags(text, out, "--steps", 6))
    assert result.code == 2
    assert f"{out} is in use: another process trains into it" in said(result)[-1]
    assert (out / "metrics.jsonl").read_bytes() == before
    well(train("--resume", *flags(text, out, "--steps", 6)))


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs a folder in which nothing can be made")
def test_a_folder_that_cannot_be_made_is_named() -> None:
    message = r"--out /proc/none cannot be written to \(No such file or directory\): name another"
    with pytest.raises(InvalidRequest, match=message), locked(Path("/proc/none")):
        pass
