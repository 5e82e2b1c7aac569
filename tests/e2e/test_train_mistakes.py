"""What a user of `minigpt.train` can get wrong: one line, an exit code, and nothing written."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from command import run, save, tiny
from trainer import BORDER, TINY, contents, train, well, write_text

from minigpt import GPT2, Tokenizer
from minigpt.tokenizer.bpe import BYTES
from minigpt.training import distributed as processes

SHAPE = "--n-layer --n-head --n-embd --tokenizer"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, models and runs, good and bad."""
    folder = tmp_path_factory.mktemp("world")
    write_text(folder / "text.txt")
    (folder / "empty.txt").write_text("\n")
    (folder / "latin1.txt").write_bytes(b"x" * 1234 + "Caf\xe9".encode("latin-1"))
    (folder / "few.txt").write_text("Few words.")
    (folder / "greek.txt").write_text("ελληνικά")
    (folder / "lines.jsonl").write_text('{"text": "a line"}\n{"body": "another"}\n')
    (folder / "broken.jsonl").write_text('{"text": "a li')
    (folder / "no-text" / "deep").mkdir(parents=True)
    (folder / "no-text" / "picture.png").write_bytes(b"\x89PNG")
    save(folder / "model", tiny(n_positions=32))
    GPT2.from_pretrained(folder / "model").save_pretrained(folder / "misfit")
    Tokenizer(BYTES, [], special_tokens={"<|endoftext|>": 300}).save_pretrained(folder / "misfit")
    GPT2.from_pretrained(folder / "model").save_pretrained(folder / "silent")
    shutil.copytree(folder / "model", folder / "gpt3")
    config = json.loads((folder / "gpt3" / "config.json").read_text())
    (folder / "gpt3" / "config.json").write_text(json.dumps({**config, "model_type": "gpt3"}))
    (folder / "other").mkdir()
    (folder / "other" / "notes.txt").write_text("mine")
    (folder / "file").write_text("mine")
    given = ["--data", folder / "text.txt", "--token-cache", folder / "tokens", *TINY]
    well(train(*given, "--out", folder / "run"))
    well(train(*given, "--out", folder / "held", "--val", folder / "greek.txt"))
    shutil.copytree(folder / "run", folder / "torn")
    (folder / "torn" / "run.json").write_text("{")
    return folder


# Flags that come after --data {text}, --out {out} and those of a tiny run; `no-...` takes some of these away.
MISTAKES = {
    # what to learn
    "no-data": ["--data is required: name a text file"],
    "no-data --resume --out {here}/nosuch": [
        "--resume: {here}/nosuch holds no run; name the folder of one, or give --data to begin there"
    ],
    "no-out": ["--out", "required", "--help"],
    "no-out --out ''": ["--out needs the name of a folder, got ''"],
    "--data": ["--data", "expected at least one argument", "--help"],
    "--data {here}/none.txt": ["{here}/none.txt does not exist", "name a text file"],
    "--data {here}/empty.txt": ["{here}/empty.txt holds no text"],
    "--data {here}/text.txt {here}/empty.txt": ["{here}/empty.txt holds no text"],
    "--data {here}/no-text": ["{here}/no-text is a folder without .txt or .jsonl files"],
    "--data {here}/latin1.txt": ["{here}/latin1.txt is not UTF-8", "byte 1,237", "convert it"],
    "--data {here}/lines.jsonl": ["{here}/lines.jsonl, line 2", "no text in field 'text'", "body", "--text-field"],
    "--data {here}/broken.jsonl": ["{here}/broken.jsonl, line 1", "not JSON"],
    "--data {here}/few.txt": ["has 10 tokens, less than a context of 16", "--context"],
    "--context 5000": ["tokens, less than a context of 5,000", "give more text"],
    # what to validate on
    "--val 0": ["--val 0", "above 0 and below 1"],
    "--val 1.5": ["--val 1.5", "above 0 and below 1"],
    "--val {here}/none.txt": ["{here}/none.txt does not exist"],
    "--val {here}/empty.txt": ["{here}/empty.txt holds no text"],
    "--val {here}/latin1.txt": ["{here}/latin1.txt is not UTF-8"],
    "--tokenizer chars --val {here}/greek.txt": ["no token for 'ε'"],
    # the shape
    "--n-embd 10 --n-head 3": ["n_embd", "n_head", "10", "3"],
    "--n-layer 0": ["(--n-layer) must be a whole number of at least 1", "got 0"],
    "--n-head -2": ["(--n-head) must be a whole number of at least 1", "got -2"],
    "--config huge": ["--config", "'huge'", "tiny"],
    "--lora 4": ["--lora", "add --init"],
    # numbers
    "--steps 0": ["(--steps) must be a whole number of at least 1", "got 0"],
    "--batch-size 0": ["(--batch-size) must be a whole number of at least 1", "got 0"],
    "--batch_size -4": ["(--batch-size) must be a whole number of at least 1", "got -4"],
    "--accumulate 0": ["(--accumulate) must be a whole number of at least 1"],
    "--lr -1": ["(--lr) must be a number of at least 0, got -1"],
    "--lr nan": ["(--lr) must be a number of at least 0, got nan"],
    "--lr fast": ["--lr", "'fast'", "--help"],
    "--steps 1.5": ["--steps", "'1.5'", "--help"],
    "--dropout 1": ["(--dropout) must be a number of at least 0 and below 1, got 1"],
    "--seed -1": ["(--seed) must be a whole number of at least 0", "got -1"],
    "--seed 99999999999999999999": ["(--seed) must be a whole number of at least 0 and below", "got 99999999999999999999"],
    "--threads 0": ["(--threads) must be a whole number from 1 to 1024, got 0"],
    "--eval-every 0": ["(--eval-every) must be a whole number of at least 1"],
    "--checkpoint-every 0": ["(--checkpoint-every) must be a whole number of at least 1"],
    "--dtype float16": ["--dtype", "'float16'", "bfloat16"],
    "--device tpu": ["--device", "'tpu'"],
    "--logger wandb": ["--logger", "'wandb'", "tensorboard"],
    "--lerning-rate 3": ["--lerning-rate 3", "--help"],
    "extra": ["extra", "--help"],
    "--shard": ["--shard", "several processes", "torchrun"],
    # models
    "no-shape --init {here}/none": (3, ["{here}/none", "does not exist"]),
    "no-shape --init {here}/silent": (3, ["{here}/silent", "vocab.json"]),
    "no-shape --init {here}/gpt3": ["model_type='gpt3'"],
    "no-shape --init {here}/misfit": ["tokenizer of {here}/misfit has 301 tokens, the model 258"],
    "no-shape --init {here}/model --context 33": ["--context 33", "the context length of {here}/model is 32"],
    "no-shape --init {here}/model --tokenizer bytes": ["--tokenizer bytes is another than that of {here}/model"],
    "no-shape --init {here}/model --config tiny": ["--config: the shape comes with --init"],
    "no-shape --init {here}/model --n-embd 8 --n-head 1": ["--n-head, --n-embd: the shape comes with --init"],
    "--teacher {here}/none": (3, ["--teacher: '{here}/none' does not exist"]),
    "--teacher {here}/model": ["--teacher {here}/model has another tokenizer", "--tokenizer {here}/model"],
    "--teacher {here}/run --context 17": ["--teacher {here}/run has a context length of 16", "17", "--context 16"],
    "--teacher {here}/run --teacher {here}/run/../run": ["--teacher {here}/run is given more than once"],
    "--teacher {here}/run --teacher-weight 0": ["(--teacher-weight) must be a number above 0 and at most 1, got 0"],
    "--teacher-weight 0.5": ["--teacher-weight 0.5 weighs a teacher: add --teacher"],
    "no-shape --init {here}/model --teacher {here}/run --context 16": ["{here}/run has another tokenizer", "its own tokens: give"],
    "--teacher ''": ["--teacher is an empty text: give a name, or leave it out"],
    "--val ''": ["--val is an empty text: give a name, or leave it out"],
    "--tokenizer {here}/none": (3, ["{here}/none", "does not exist"]),
    "--tokenizer {here}/silent": (3, ["{here}/silent", "vocab.json"]),
    # where to
    "--out {here}/run": ["--out {here}/run holds a run already", "--resume", "another folder"],
    "--out {here}/other": ["--out {here}/other holds something else", "another folder"],
    "--out {here}/model": ["--out {here}/model holds something else"],
    "--out {here}/file": ["--out {here}/file holds something else"],
    "--out {here}/file/run": ["--out {here}/file/run: {here}/file is no folder that can be written into"],
    "--out {here}/other --resume": ["--out {here}/other holds something else"],
    "--token-cache {here}/file": ["{here}/file cannot be written to", "--token-cache"],
    # going on
    "--resume --out {here}/run --batch-size 8": ["--batch-size 8: this run began with 4"],
    "--resume --out {here}/run --lr 0": ["--lr 0.0: this run began with"],
    "--resume --out {here}/run --n-layer 2": ["--n-layer 2: this run began with 1"],
    "--resume --out {here}/run --tokenizer chars": ["--tokenizer chars: this run began with bytes"],
    "--resume --out {here}/run --init {here}/model": ["--init {here}/model: this run began with None"],
    "--resume --out {here}/run --teacher {here}/held": ["--teacher {here}/held: this run began with None"],
    "--resume --out {here}/run --steps 0": ["(--steps) must be a whole number of at least 1"],
    "--resume --out {here}/run --data {here}/text.txt {here}/few.txt": ["the text of --data is not the one", "give that"],
    "--resume --out {here}/run --data {here}/greek.txt": ["the text of --data is not"],
    "--resume --out {here}/run --val 0.5": ["--val 0.5: this run began with 0.05, and keeps it to its end"],
    "--resume --out {here}/run --val {here}/text.txt": ["--val {here}/text.txt: this run began with 0.05"],
    "--resume --out {here}/held --val {here}/few.txt": ["the text of --val is not the one"],
    "--resume --out {here}/held --val 0.05": ["--val 0.05: this run began with {here}/greek.txt"],
    "--resume --out {here}/torn": ["{here}/torn/run.json is damaged", "another --out"],
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(world: Path, tmp_path: Path, mistake: str) -> None:
    expected = MISTAKES[mistake]
    code, words = expected if isinstance(expected, tuple) else (2, expected)
    flags = [flag.replace("{here}", str(world)) for flag in shlex.split(mistake)]
    given = {
        "--data": str(world / "text.txt"),
        "--out": str(tmp_path / "out"),
        "--token-cache": str(world / "tokens"),
    }
    given |= {str(flag): str(value) for flag, value in zip(TINY[::2], TINY[1::2], strict=True)}
    if flags[0].startswith("no-"):
        left_out = {"no-shape": [*SHAPE.split(), "--context"]}.get(flags[0], [f"--{flags[0][3:]}"])
        given = {flag: value for flag, value in given.items() if flag not in left_out}
        flags = flags[1:]
    before = contents(world)
    result = train(*(part for pair in given.items() for part in pair), *flags)
    assert result.code == code, result.err
    missing = [word for word in words if word.replace("{here}", str(world)) not in result.mistake]
    assert not missing, f"{result.mistake!r} does not say {missing}"
    assert not (tmp_path / "out").exists()
    after = contents(world)
    for name in [name for name in after if name.startswith("tokens/")]:  # a text may well have been read
        after.pop(name), before.pop(name, None)
    assert after == before


def test_a_text_that_has_changed_is_not_gone_on_with(world: Path, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt")
    given = ("--data", text, "--token-cache", tmp_path / "tokens", "--out", tmp_path / "out")
    well(train(*given, *TINY))
    before = contents(tmp_path / "out")
    text.write_text(text.read_text() + BORDER + "One more tale, of a dog.")
    result = train("--resume", "--out", tmp_path / "out", "--steps", 9)
    assert result.code == 2
    assert "the text of --data is not the one that this run began with: give that one" in result.mistake
    assert contents(tmp_path / "out") == before


def test_without_tensorboard_there_is_no_logger(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.training.request.find_spec", lambda name: None)
    result = train("--data", world / "text.txt", "--out", tmp_path / "out", "--logger", "tensorboard")
    assert result.code == 2
    assert "--logger tensorboard needs it installed: pip install 'minigpt[" in result.mistake
    assert not (tmp_path / "out").exists()


def test_a_batch_that_does_not_split_over_the_processes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        processes.Processes, "__init__", lambda self: self.__dict__.update(rank=0, world_size=3)
    )
    given = ("--data", world / "text.txt", "--token-cache", tmp_path / "tokens", "--out", tmp_path / "out")
    result = train(*given, *TINY)
    assert result.code == 2
    assert "--batch-size 4 does not split over 3 processes" in result.mistake


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")]
)
def test_out_of_memory(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("minigpt.training.learner.Learner.step", fail)
    given = ("--data", world / "text.txt", "--token-cache", world / "tokens", "--out", tmp_path / "out")
    result = train(*given, *TINY)
    assert result.code == 5
    *_, line = result.err.splitlines()
    assert "out of memory" in line
    assert "a smaller --batch-size with --accumulate" in line


def test_mistakes_that_can_be_seen_at_once_do_not_wait_for_torch(world: Path) -> None:
    at_once = ["", "--out x", "--nope", "--out x --steps 0", "--out x --data y --lora 3", "--out x --data y --config z",
               f"--out {world}/other --data y", f"--out {world}/run --data y", f"--out {world}/run --resume --lr 3"]  # fmt: skip
    code = (
        "import shlex, sys; from minigpt.train import main\n"
        "for flags in sys.argv[1:]:\n"
        "    assert main(shlex.split(flags)) == 2, flags\n"
        "    assert 'torch' not in sys.modules, flags\n"
    )
    result = run(*at_once, python=("-c", code))
    assert result.code == 0, result.err
    assert len(result.err.splitlines()) == len(at_once)
