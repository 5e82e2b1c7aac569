"""`train` as a notebook calls it: what it returns, what stops it, and what it answers to a wrong name."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer import checkpoints, write_text

import minigpt
from minigpt import GPT2
from minigpt.interp import series
from minigpt.training import Trained, train
from minigpt.training.prepare import Callback

TINY: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16, "batch_size": 4, "tokenizer": "bytes", "dtype": "float32",
    "threads": 1, "eval_every": 3, "checkpoint_every": 100,
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.training.hardware.matmul_rate", lambda *_: 1e9)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "tales.txt")


def tiny(text: Path, name: str = "run", **more: Any) -> Trained:
    out, cache = text.parent / name, text.parent / "tokens"
    return train(**{**TINY, "data": text, "out": out, "token_cache": cache, "steps": 6, **more})


def test_it_returns_model_tokenizer_and_metrics(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = tiny(text)
    model, tokenizer, metrics = trained
    assert not model.training
    assert tokenizer.decode(tokenizer.encode("The cat")) == "The cat"
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    loaded, _ = minigpt.load(text.parent / "run")
    tokens = torch.tensor([tokenizer.encode("The cat")])
    assert torch.equal(model(tokens), loaded(tokens))
    n = sum(p.numel() for p in model.parameters())
    lowest = min(line["val_loss"] for line in metrics if "val_loss" in line)
    assert repr(trained) == (
        f"Trained(6 steps, loss {metrics[-1]['loss']:.4f}, lowest validation loss {lowest:.4f}; {n:,} parameters, "
        "vocabulary 257)"
    )
    out, err = capsys.readouterr()
    assert out == ""
    assert " training tokens (documents: " in err.splitlines()[0]


def test_it_is_the_run_of_the_command(text: Path) -> None:
    from trainer import flags, learned, well  # the command, in this process
    from trainer import train as command

    tiny(text, dropout=0.1)
    well(command(*flags(text, text.parent / "other", "--dropout", 0.1, "--checkpoint-every", 100)))
    assert learned(text.parent / "run")[0] == learned(text.parent / "other")[0]


def test_lines_go_to_a_log_and_metrics_to_a_callback(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    seen: list[Mapping[str, Any]] = []
    trained = tiny(text, log=lines.append, callback=seen.append)
    assert [line["loss"] for line in seen] == [line["loss"] for line in trained.metrics]
    assert lines[-1].startswith("done at step 6")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("how", ["signal", "callback"])
def test_a_stopped_run_keeps_a_checkpoint_and_can_be_resumed(text: Path, how: str) -> None:
    def stop(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == 2 and how == "callback":
            raise KeyboardInterrupt
        if metrics["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C, or a notebook's stop button

    lines: list[str] = []
    handler = signal.getsignal(signal.SIGINT)  # ignored in a shell's background
    stopped = tiny(text, callback=stop, log=lines.append)
    assert [line["step"] for line in stopped.metrics] == [1, 2, 3]
    assert checkpoints(text.parent / "run") == ["step-00000003"]
    assert lines[-1].endswith(f"`minigpt train --resume --out {text.parent / 'run'}` continues")
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = train(out=text.parent / "run", resume=True, log=lines.append)
    assert any(line.startswith("resuming at step 3 of 6, from ") for line in lines)
    whole = tiny(text, "whole", log=lines.append)
    assert [line["loss"] for line in resumed.metrics] == [line["loss"] for line in whole.metrics]


def test_it_runs_in_a_thread_which_signals_do_not_reach(text: Path) -> None:
    found: list[Trained] = []
    thread = threading.Thread(target=lambda: found.append(tiny(text, log=lambda line: None)))
    thread.start()
    thread.join()
    assert len(found[0].metrics) == 6


def test_several_texts_and_a_share_as_a_number(text: Path) -> None:
    more = write_text(text.parent / "more.txt", 3)
    lines: list[str] = []
    tiny(text, data=[text, str(more)], val=0.2, log=lines.append)
    assert " training tokens (documents: 1" in lines[0]  # 23, of which a fifth is held out
    with pytest.raises(ValueError, match="holds a run already"):
        tiny(text)


def test_mistakes(text: Path) -> None:
    with pytest.raises(ValueError, match="--data is required"):
        train(out=text.parent / "new")
    with pytest.raises(ValueError, match=r"steps \(--steps\) must be a whole number of at least 1, got 0"):
        tiny(text, steps=0)
    with pytest.raises(OSError, match="does not exist"):
        train(data=text, out=text.parent / "new", init=text.parent / "none" / "at" / "all")
    for wrong, message in (
        ({"data": [5]}, r"data \(--data\) must be a path or a name, or several"),
        ({"data": 5}, r"data \(--data\) must be a path or a name, or several"),
        ({"teacher": [5]}, r"teacher \(--teacher\) must be a path or a name, or several"),
        ({"teacher": b"run"}, r"teacher \(--teacher\) must be a path or a name, or several, got \(b'run',\)"),
        ({"teacher": 5}, r"teacher \(--teacher\) must be a path or a name, or several"),
        ({"init": 5}, r"init \(--init\) must be a string"),
        ({"steps": "many"}, r"steps \(--steps\) must be a whole number"),
        ({"n_layer": 2.5}, r"n_layer \(--n-layer\) must be a whole number"),
    ):
        with pytest.raises(minigpt.InvalidRequest, match=message):
            tiny(text, "new", **wrong)
    assert not (text.parent / "new").exists()


@pytest.mark.parametrize(
    ("name", "right"),
    [("learning_rate", "lr"), ("epochs", "steps"), ("block_size", "context"), ("n_ctx", "context"), ("batch-size", "batch_size"),
     ("num_layers", "n_layer"), ("stpes", "steps"), ("lora_r", "lora")],
)  # fmt: skip
def test_a_setting_under_another_name_is_answered_with_the_right_one(
    text: Path, name: str, right: str
) -> None:
    with pytest.raises(minigpt.InvalidRequest, match=rf"train has no setting '{name}'.* {right}\b"):
        tiny(text, **{name: 3})


def test_a_setting_that_is_none(text: Path) -> None:
    with pytest.raises(
        minigpt.InvalidRequest, match=r"train has no setting 'colour'; help\(minigpt.training.settings"
    ):
        tiny(text, colour="green")


def test_weights_of_chosen_steps_are_kept_and_can_be_analysed_in_a_row(text: Path) -> None:
    model, *_ = tiny(text, keep_every=2)
    kept = series(text.parent / "run")
    assert list(kept) == [2, 4, 6]
    assert repr(kept) == "Series(3 models, steps 2 to 6)"
    tokens = torch.tensor([[1, 2, 3]])
    assert kept[6](tokens).equal(model(tokens))
    assert not kept[2](tokens).equal(kept[4](tokens))
    assert kept.run(lambda model: model.loss(tokens).item())[6] == model.loss(tokens).item()
    shorter, *_ = tiny(text, "four", steps=6, callback=stop_after(3))  # it ends with the next
    assert kept[4](tokens).equal(shorter(tokens))
    with pytest.raises(KeyError, match="step 3 was not kept; there are 2, 4, 6"):
        kept[3]
    with pytest.raises(ValueError, match=r"has kept no steps: train with --keep-every N"):
        series(text.parent / "four")


def test_a_series_that_is_interrupted_keeps_what_is_done(text: Path) -> None:
    tiny(text, keep_every=2)
    done: list[GPT2] = []

    def analysis(model: GPT2) -> int:
        if done:
            raise KeyboardInterrupt
        done.append(model)
        return model.config.n_layer

    assert series(text.parent / "run").run(analysis) == {2: 1}


def stop_after(step: int) -> Callback:
    def callback(metrics: Mapping[str, Any]) -> None:
        if metrics["step"] == step:
            raise KeyboardInterrupt

    return callback
