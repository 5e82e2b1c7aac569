"""What never ends, leads nowhere or fits no memory is refused before anything is read or reserved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import call
from trainer import flags, said, train, write_text

import minigpt
from minigpt import evaluation, train_tokenizer
from minigpt.compare.__main__ import main as compare
from minigpt.data.documents import documents, fingerprint
from minigpt.data.text import read_text
from minigpt.explore.__main__ import main as explore
from minigpt.generate.__main__ import main as generate
from minigpt.json_files import read_object
from minigpt.options import KINDS, options_of
from minigpt.sampler import Sample, registry
from minigpt.sampler.lattice import Lattice
from minigpt.score.__main__ import main as score

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


MANY = "9" * 30
BELOW = "must be below 2,147,483,648, got 9999"


@pytest.mark.parametrize(
    ("command", "asked", "flag", "limit"),
    [
        (score, "--text x", "--context", BELOW),
        (score, "--text x", "--stride", BELOW),
        (score, "--text x", "--batch-size", BELOW),
        (compare, "Once", "--batch-size", BELOW),
        (compare, "Once", "--max-new-tokens", BELOW),
        (compare, "--held-out val.txt", "--n-prompts", BELOW),
        (compare, "--held-out val.txt", "--prompt-tokens", BELOW),
        (generate, "Once", "--max-new-tokens", BELOW),
        (generate, "Once --json", "--logprobs", BELOW),
        (generate, "Once --explain", "--top", BELOW),
        (generate, "Once --overflow slide", "--stride", BELOW),
        (generate, "Once", "--min-new-tokens", "must be a whole number of at least 0 and below 2,147,483,648, got 9999"),
        (generate, "Once", "--top-k", "must be a whole number of at least 1 and below 2,147,483,648, or 0 for off, got 9999"),
        (generate, "Once", "--num-beams", "must be a whole number from 1 to 65536, got 9999"),
        (generate, "Once --temperature 1", "--num-return-sequences", "must be a whole number from 1 to 65536, got 9999"),
        (generate, "Once --strategy prompt-lookup", "--max-ngram", "must be a whole number from 1 to 64, got 9999"),
        (generate, "Once --penalty-alpha 0.5", "--top-k", "must be a whole number from 1 to 1024, got 9999"),
        (explore, "Once -o page.html", "--max-new-tokens", BELOW),
        (generate, "--prompts p.jsonl --out DIR", "--shard-rows", BELOW),
    ],
)  # fmt: skip
def test_a_number_of_things_that_cannot_be(
    command: Callable[..., int],
    asked: str,
    flag: str,
    limit: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*asked.split(), flag, MANY, main=command)
    assert (result.code, result.out) == (2, "")
    assert f"{flag}" in result.mistake
    assert limit in result.mistake


@pytest.mark.parametrize("name", registry.names())
def test_all_that_an_option_counts_is_bounded(name: str) -> None:
    """A seed and a key count nothing."""
    whole = {
        name: option.range
        for name, option in options_of(registry.find(name)).items()
        if option.kind is KINDS[int] and name not in ("seed", "watermark_key")
    }
    assert [name for name, range in whole.items() if range.most is None and range.below is None] == []


def test_from_python_too() -> None:
    model, _ = minigpt.load()
    with pytest.raises(ValueError, match="batch_size must be below 2,147,483,648, got 1000"):
        evaluation.token_logprobs(model, [1, 2, 3], batch_size=10**30)
    with pytest.raises(ValueError, match="max_new_tokens must be below 2,147,483,648, got 1000"):
        minigpt.sampler.generate(model, [[1]], max_new_tokens=10**30, overflow="slide")
