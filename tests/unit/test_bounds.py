"""What never ends, leads nowhere or fits no memory is refused before anything is read or reserved."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import call
from trainer import flags, said, train, write_text

from minigpt import train_tokenizer
from minigpt.data.documents import documents, fingerprint
from minigpt.data.text import read_text
from minigpt.json_files import read_object
from minigpt.sampler import Sample
from minigpt.sampler.lattice import Lattice

needs_devices = pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")


@needs_devices
def test_a_device_is_no_text() -> None:
    device = Path("/dev/zero")
    for read in (lambda: list(documents([device])), lambda: fingerprint([device]), lambda: read_text(device)):
        with pytest.raises(
            ValueError, match=r"/dev/zero .*(is a device|it is a device), which may never end"
        ):
            read()


@needs_devices
def test_a_device_is_no_json() -> None:
    for read in (read_object, Lattice.load):
        with pytest.raises(OSError, match="it is a device, which may never end"):
            read(Path("/dev/zero"))


def test_a_link_to_itself_is_no_folder_for_a_run_or_a_tokenizer(tmp_path: Path) -> None:
    text, loop = write_text(tmp_path / "tales.txt"), tmp_path / "loop"
    loop.symlink_to(loop)
    result = train(*flags(text, loop))
    assert (result.code, said(result)) == (2, [f"--out {loop} is a link that leads nowhere: name a folder"])
    result = call(text, "--vocab-size", 300, "--out", loop, main=train_tokenizer.main)
    assert (result.code, result.mistake) == (2, f"--out {loop} is a link that leads nowhere: name a folder")


def test_a_batch_that_fits_no_memory(tmp_path: Path) -> None:
    text = write_text(tmp_path / "tales.txt")
    result = train(*flags(text, tmp_path / "run", "--batch-size", 2**31 - 1))
    assert result.code == 2
    assert (
        "--batch-size 2147483647 windows of 16 tokens do not fit any memory: lower one of them"
        in said(result)[-1]
    )
    assert not (tmp_path / "run").exists()


def test_a_step_of_more_batches_than_a_life_has_time_for(tmp_path: Path) -> None:
    text = write_text(tmp_path / "tales.txt")
    result = train(*flags(text, tmp_path / "run", "--accumulate", 2**31 - 1))
    assert result.code == 2
    assert said(result)[-1] == (
        "--accumulate 2147483647 batches of 64 tokens make a step of 137,438,953,408, and 4,294,967,296 are the most: "
        "lower it"
    )
    assert not (tmp_path / "run").exists()


def test_a_length_that_no_tensor_can_hold() -> None:
    with pytest.raises(
        ValueError, match=r"dry_allowed_length \(--dry-allowed-length\) must be .* below 2,147,483,648"
    ):
        Sample(dry_multiplier=1.0, dry_allowed_length=10**30)
