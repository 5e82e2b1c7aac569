"""`python -m minigpt.train` as a user meets it: what it writes, what it says, and that it learns."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import call, run
from safetensors.torch import load_file
from trainer import TINY, contents, flags, learned, metrics, train, well, write_text

import minigpt
from minigpt import GPT2, Tokenizer
from minigpt import train as command
from minigpt.lazy import hub_tqdm
from minigpt.options import flag_of
from minigpt.score import __main__ as score
from minigpt.training.adapters import load_adapter
from minigpt.training.lora import merge
from minigpt.training.settings import Settings

FILES = {"config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer.json",
         "tokenizer_config.json"}  # fmt: skip
HELD_OUT = "A wörd that nobody knew: é. " * 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "tales.txt")


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run over characters with a validation text of its own, of one document; and what it said."""
    held = text.with_name("held.txt")
    held.write_text(HELD_OUT)
    both = text.with_name("both.txt")
    both.write_text(f"{text.read_text()} {HELD_OUT}")
    out = tmp_path_factory.mktemp("finished") / "deep" / "run"
    given = ("--tokenizer", "chars", "--val", held, "--context", 24, "--lr", 0.01, "--steps", 7)
    return out, well(train(*flags(both, out, *given)))


@pytest.fixture(scope="module")
def trained(finished: tuple[Path, list[str]]) -> Path:
    return finished[0]


def scored(*given: object) -> dict[str, Any]:
    return dict(json.loads(call("--json", *given, main=score.main).text))


# ------------------------------------------------------------------------------ what it writes


def test_all_files_are_there_and_no_others(trained: Path) -> None:
    best = {f"best/{name}" for name in FILES}
    run_files = {"run.json", "metrics.jsonl", "loss.png"}
    found = {name for name in contents(trained) if not name.startswith("checkpoints/")}
    assert found == FILES | best | run_files
    assert (trained / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_run_json_says_what_was_run(trained: Path, text: Path) -> None:
    facts = json.loads((trained / "run.json").read_text())
    settings = facts["settings"]
    assert settings.keys() == Settings.__dataclass_fields__.keys()
    assert settings["data"] == [str(text.with_name("both.txt"))]
    assert (settings["steps"], settings["lr"], settings["warmup"], settings["n_embd"]) == (7, 0.01, 0, 16)
    model = GPT2.from_pretrained(trained)
    assert facts["n_parameters"] == sum(p.numel() for p in model.parameters())
    n_characters = len(text.with_name("both.txt").read_text().strip("\n"))
    n_documents = text.read_text().count("<|endoftext|>") + 1
    n_borders = len("\n<|endoftext|>\n") * (n_documents - 1)
    assert facts["train_tokens"] == n_characters - n_borders + n_documents
    assert (facts["dtype"], facts["processes"], facts["base"]) == ("float32", 1, None)
    assert facts["versions"] == {"minigpt": minigpt.__version__, "torch": torch.__version__}
    assert len({facts[name] for name in ("train", "val", "tokenizer")}) == 3


def test_metrics_have_a_line_for_every_step(trained: Path) -> None:
    lines = metrics(trained)
    assert [line["step"] for line in lines] == [*range(1, 8)]
    for line in lines:
        assert {"step", "loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second"} <= line.keys()
        assert line["tokens"] == line["step"] * 4 * 24
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6, 7]
    assert lines[0]["loss"] == pytest.approx(
        math.log(GPT2.from_pretrained(trained).config.vocab_size), rel=0.05
    )


def test_figures_of_a_validation_fit_each_other(trained: Path) -> None:
    """The held-out text is 84 characters in one document, so 3 windows of 24 are judged."""
    judged = HELD_OUT.strip("\n")[: 24 * 3]
    for line in metrics(trained):
        if "val_loss" in line:
            assert line["val_perplexity"] == pytest.approx(math.exp(line["val_loss"]))
            bits = line["val_loss"] * len(judged) / math.log(2)
            assert line["val_bits_per_byte"] == pytest.approx(bits / len(judged.encode()))


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_run_and_the_score_command_agree(text: Path, tmp_path: Path, which: str) -> None:
    """On a text that fits a window; `score` also predicts the end token after it, training does not."""
    held = tmp_path / "held.txt"
    held.write_text("A wörd.")
    out = tmp_path / "run"
    well(train(*flags(text, out, "--val", held, "--lr", 0.05, "--eval-every", 2)))
    losses = [line["val_loss"] for line in metrics(out) if "val_loss" in line]
    logprobs = scored(held, "--model", out / "best" if which == "best" else out, "--per-token")["logprobs"]
    assert len(logprobs) == len(held.read_bytes()) + 1
    expected = min(losses) if which == "best" else losses[-1]
    assert -sum(logprobs[:-1]) / len(logprobs[:-1]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("folder", [".", "best"])
def test_every_command_loads_what_was_trained(trained: Path, folder: str) -> None:
    result = call("The cat", "--model", trained / folder, "--max-new-tokens", 5)
    assert len(result.text) >= 1
    assert scored("--text", "The cat saw 7 mice.", "--model", trained / folder)["loss"] > 0
    model, tokenizer = minigpt.load(trained / folder)
    assert not model.training
    assert tokenizer.decode(tokenizer.encode(HELD_OUT)) == HELD_OUT
    assert model.config.vocab_size == tokenizer.vocab_size
    assert model.config.eos_token_id == tokenizer.end_token
    assert model.config.n_positions == 24


def test_characters_that_were_not_in_the_text_are_unknown(trained: Path) -> None:
    result = call("Ω", "--model", trained)
    assert result.code == 2
    assert "no token for 'Ω'" in result.mistake


def test_tensorboard_has_the_metrics_too(text: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    well(train(*flags(text, out, "--logger", "tensorboard")))
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    for name in ("loss", "lr", "val_loss"):
        expected = {line["step"]: pytest.approx(line[name]) for line in metrics(out) if name in line}
        assert {event.step: event.value for event in events.Scalars(name)} == expected


def test_without_matplotlib_there_is_no_curve_but_a_line(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.training.report.find_spec", lambda name: None)
    lines = well(train(*flags(text, tmp_path / "run")))
    assert [line for line in lines if "matplotlib is missing: pip install 'minigpt[plot]'" in line]
    assert not (tmp_path / "run" / "loss.png").exists()


# ------------------------------------------------------------------------------ what it says


def test_it_says_what_it_does(finished: tuple[Path, list[str]]) -> None:
    out, lines = finished
    summary, *validations, last = lines
    assert re.match(r"[\d,]+ training tokens \(documents: 20\), ", summary)
    for part in (
        "1 layer, 2 heads, n_embd 16, context length 24",
        "documents: 20",
        "72 validation tokens",
        "float32 on cpu",
    ):
        assert part in summary
    assert [line.split(":")[0] for line in validations] == [f"step {n} of 7" for n in (3, 6, 7)]
    found = [line for line in metrics(out) if "val_loss" in line]
    for line, figures in zip(validations, found, strict=True):
        assert (
            f"validation loss {figures['val_loss']:.4f}, perplexity {figures['val_perplexity']:.2f}" in line
        )
        assert f"{figures['val_bits_per_byte']:.4f} bits per byte" in line
        assert re.search(r"[\d,]+ tokens/s, \d+% MFU, \d+ minutes left \| \S", line)
    lowest = min(figures["val_loss"] for figures in found)
    assert last == f"done at step 7, lowest validation loss {lowest:.4f}; {out} holds the model"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_is_for_terminals_alone(text: Path, tmp_path: Path, terminal: bool) -> None:
    result = train(*flags(text, tmp_path / "run"), terminal=terminal)
    assert result.code == 0
    assert ("\r" in result.err) == terminal
    assert bool(re.search(r"6/6.*loss \d\.\d+, [\d,]+ tokens/s, \d+% MFU", result.err)) == terminal


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing(text: Path, tmp_path: Path, terminal: bool) -> None:
    cold = ("--token-cache", tmp_path / "tokens")
    result = train(*flags(text, tmp_path / "run", "--quiet", "--resume", *cold), terminal=terminal)
    assert result == (0, "", "")
    assert len(metrics(tmp_path / "run")) == 6


def test_quiet_leaves_the_progress_bars_of_other_work_in_this_process_alone(
    text: Path, tmp_path: Path
) -> None:
    assert call(*flags(text, tmp_path / "run", "--quiet", "--steps", 1), main=command.main).code == 0
    assert not hub_tqdm.are_progress_bars_disabled()


def test_what_a_model_writes_cannot_command_a_terminal(text: Path, tmp_path: Path) -> None:
    """A new model writes any bytes; some of them would clear the screen."""
    result = train(*flags(text, tmp_path / "run", "--steps", 1))
    assert result.code == 0
    assert all(line.isprintable() for line in result.err.splitlines())


def test_documents_that_are_in_both_texts_are_told_of(text: Path, tmp_path: Path) -> None:
    held = tmp_path / "held.txt"
    held.write_text(
        "\n<|endoftext|>\n".join([*text.read_text().split("\n<|endoftext|>\n")[3:5], "A new one."])
    )
    lines = well(train(*flags(text, tmp_path / "run", "--val", held)))
    assert "warning: 2 of 3 validation documents are in the training text, too" in lines
    assert not [line for line in well(train(*flags(text, tmp_path / "other"))) if "warning" in line]
    twice = tmp_path / "twice.txt"
    twice.write_text("\n<|endoftext|>\n".join(2 * text.read_text().split("\n<|endoftext|>\n")))
    lines = well(train(*flags(twice, tmp_path / "third", "--val", "0.1")))
    assert [line for line in lines if line.endswith("validation documents are in the training text, too")]


def test_help_names_every_flag_and_does_not_wait_for_torch() -> None:
    result = run("--help", python=("-X", "importtime", "-m", "minigpt.train"))
    assert result.code == 0
    named = [flag_of(name) for name in Settings.__dataclass_fields__] + ["--out", "--resume", "--quiet"]
    assert not [flag for flag in named if not re.search(rf"(?<![\w-]){flag}(?![\w-])", result.out)]
    imported = {line.rpartition("|")[2].strip() for line in result.err.splitlines()}
    assert "minigpt.training.settings" in imported
    assert not {"torch", "numpy", "huggingface_hub", "matplotlib"} & imported


# ------------------------------------------------------------------------------ that it learns


def test_ten_sentences_are_learned_by_heart(tmp_path: Path) -> None:
    """In one document, for nothing tells which of ten comes next; a window has few tokens without much before them."""
    who = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
    did = ["sees", "hears", "finds", "loses", "paints", "breaks", "mends", "buys", "sells", "hides"]
    what = ["moon", "bell", "key", "shoe", "door", "cup", "chair", "boat", "house", "ring"]
    sentences = " ".join(f"{a} {b} the {c}." for a, b, c in zip(who, did, what, strict=True))
    (tmp_path / "ten.txt").write_text(sentences)
    shape = ("--n-embd", 64, "--n-head", 4, "--context", 128, "--tokenizer", "chars")
    how = ("--val", tmp_path / "ten.txt", "--steps", 400, "--lr", 0.01, "--batch-size", 6)
    out = tmp_path / "run"
    well(
        train(*flags(tmp_path / "ten.txt", out, *shape, *how, "--eval-every", 400, "--checkpoint-every", 400))
    )
    assert metrics(out)[-1]["loss"] < 0.05
    assert sentences.startswith(f"Anna sees{call('Anna sees', '--model', out, '--max-new-tokens', 100).text}")


def test_a_seed_decides_everything(text: Path, tmp_path: Path) -> None:
    given = ("--dropout", 0.1)
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        well(train(*flags(text, tmp_path / name, *given, "--seed", seed)))
        runs[name] = tmp_path / name
    weights = {name: (out / "model.safetensors").read_bytes() for name, out in runs.items()}
    assert weights["a"] == weights["b"] != weights["c"]
    assert learned(runs["a"])[0] == learned(runs["b"])[0] != learned(runs["c"])[0]


def test_how_often_it_is_looked_at_changes_nothing(text: Path, tmp_path: Path) -> None:
    """Neither validations, nor samples, nor checkpoints draw from what training draws from."""
    given = ("--dropout", 0.1)
    well(train(*flags(text, tmp_path / "often", *given, "--eval-every", 1, "--checkpoint-every", 1)))
    well(train(*flags(text, tmp_path / "seldom", *given, "--eval-every", 100, "--checkpoint-every", 100)))
    often, seldom = (load_file(tmp_path / name / "model.safetensors") for name in ("often", "seldom"))
    assert all(torch.equal(often[name], seldom[name]) for name in seldom)


def test_texts_of_all_kinds_are_one_text(text: Path, tmp_path: Path) -> None:
    documents = text.read_text().split("\n<|endoftext|>\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("\n<|endoftext|>\n".join(documents[:8]))
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"body": document}) + "\n" for document in documents[8:])
    )
    well(train(*flags(text, tmp_path / "one")))
    well(
        train(*flags(folder, tmp_path / "two", "--text-field", "body", "--token-cache", tmp_path / "tokens"))
    )
    assert learned(tmp_path / "one")[0] == learned(tmp_path / "two")[0]


def test_defaults_train_the_tiny_model_with_the_bundled_tokenizer(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a king. " * 200)
    out = tmp_path / "run"
    given = ("--data", text, "--token-cache", tmp_path / "tokens", "--steps", 1, "--dtype", "float32")
    well(train(*given, "--out", out))
    model, tokenizer = minigpt.load(out)
    assert (model.config.n_layer, model.config.n_embd, model.config.n_positions) == (4, 128, 128)
    assert tokenizer.encode("Once upon") == Tokenizer.from_pretrained().encode("Once upon")


# ------------------------------------------------------------------------------ fine-tuning


def tune(text: Path, out: Path, base: Path, *given: object) -> list[str]:
    kept = [part for flag in ("--batch-size", "--steps", "--eval-every", "--dtype")
            for part in (flag, TINY[TINY.index(flag) + 1])]  # fmt: skip
    files = ("--data", text, "--token-cache", text.parent / "tokens", "--out", out, "--init", base)
    return well(train(*files, *kept, *given))


@pytest.fixture(scope="module")
def base(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "run"
    well(train(*flags(text, out, "--lr", 0.01, "--steps", 20)))
    return out


def test_fine_tuning_begins_where_the_model_is(text: Path, base: Path, tmp_path: Path) -> None:
    tune(text, tmp_path / "run", base, "--lr", 0)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert Tokenizer.load(tmp_path / "run").encode("é") == Tokenizer.load(base).encode("é")


@pytest.mark.parametrize("lora", [(), ("--lora", 2, "--dropout", 0.1)], ids=["all weights", "an adapter"])
def test_fine_tuning_learns(text: Path, base: Path, tmp_path: Path, lora: tuple[object, ...]) -> None:
    other = write_text(tmp_path / "other.txt", 60)
    other.write_text(other.read_text().replace("cat", "dog").replace("mice", "bones"))
    before = contents(base)
    tune(other, tmp_path / "run", base, "--steps", 60, "--lr", 0.01, "--eval-every", 20, *lora)
    losses = [line["val_loss"] for line in metrics(tmp_path / "run") if "val_loss" in line]
    assert losses[-1] < losses[0]
    assert contents(base) == before


def test_an_adapters_base_must_stay_what_it_was(text: Path, base: Path, tmp_path: Path) -> None:
    """The frozen weights are in no checkpoint."""
    out, moved = tmp_path / "run", tmp_path / "base"
    shutil.copytree(base, moved)
    tune(text, out, moved, "--lora", 2)
    model = GPT2.from_pretrained(moved)
    with torch.no_grad():
        model.final_norm.bias[0] += 1e-3
    model.save_pretrained(moved)
    before = contents(out)
    result = train("--resume", "--out", out, "--steps", 8)
    assert result.code == 2
    assert "the model of --init is not the one that this run began with: give that one" in result.mistake
    assert contents(out) == before


def test_an_adapter_says_what_it_trains_and_takes_an_alpha(text: Path, base: Path, tmp_path: Path) -> None:
    models = {}
    for alpha in (None, 32, 4):
        out = tmp_path / str(alpha)
        given = () if alpha is None else ("--lora-alpha", alpha)
        summary, *_ = tune(text, out, base, "--lora", 2, "--lr", 0.05, "--dtype", "float32", *given)
        n = 2 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))  # rank 2: in + out of each of four layers
        assert re.search(rf"LoRA of rank 2 trains {n:,} \(\d+\.\d\d%\) of [\d,]+ parameters", summary), (
            summary
        )
        models[alpha] = load_file(out / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
        config = json.loads((out / "adapter" / "adapter_config.json").read_text())
        assert config["lora_alpha"] == (alpha or 32)
    assert torch.equal(models[None], models[32])
    assert not torch.equal(models[4], models[32])


def test_an_adapter_is_beside_the_merged_model(text: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tune(text, out, base, "--lora", 2, "--lr", 0.05)
    adapted = GPT2.from_pretrained(base)
    load_adapter(adapted, out / "adapter")
    merged = merge(adapted).state_dict()
    found = GPT2.from_pretrained(out).state_dict()
    assert all(torch.equal(merged[name], found[name]) for name in merged)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert not torch.equal(
        found["blocks.0.attn.qkv.weight"], GPT2.from_pretrained(base).blocks[0].attn.qkv.weight
    )
    result = train("--resume", "--out", out, "--steps", 8)
    assert well(result)[-1].startswith("done at step 8")
