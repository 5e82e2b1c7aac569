"""Training is PyTorch's own around transformers' GPT-2, and what `minigpt.train` writes, transformers and PEFT read."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from command import call
from reference import apart
from safetensors.torch import load_file
from torch import Tensor
from trainer import assert_same_run, checkpoints, contents, flags, metrics, train, well
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from minigpt import GPT2, Tokenizer, hub, merge_lora
from minigpt import GPT2Config as OurConfig
from minigpt.data.token_file import tokenise
from minigpt.data.windows import Windows
from minigpt.score import __main__ as score
from minigpt.tokenizer.byte_level import byte_tokenizer
from minigpt.tokenizer.files import END_OF_TEXT
from minigpt.training.distributed import Processes
from minigpt.training.learner import Learner
from minigpt.training.settings import Settings

# PEFT asks transformers whether gradients are checkpointed by a name that transformers calls old.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TALE = "Once upon a time a {} {} and a {} {} went into the {} {}, for they were {} and had no {}.\n"
ADJECTIVES = ["little", "old", "poor", "golden", "great", "wise", "wicked", "good"]
NOUNS = ["king", "fox", "queen", "forest", "house", "princess", "bear", "giant", "child", "river"]


def tale(seed: int, sentences: int = 4) -> str:
    """What the bundled model knows well, in an order that it does not know."""
    chance = random.Random(seed)
    words = [chance.choice(some) for _ in range(sentences) for some in 4 * [ADJECTIVES, NOUNS]]
    return "".join(TALE.format(*words[8 * i : 8 * i + 8]) for i in range(sentences))


def write_tales(file: Path, n: int, more: str = "") -> Path:
    file.write_text(f"\n{END_OF_TEXT}\n".join([tale(seed) + more for seed in range(n)]))
    return file


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tales(tmp_path_factory.mktemp("text") / "tales.txt", 12, "Das Mädchen aß für 3 €.")


@torch.no_grad()
def ours(directory: Path, tokens: Tensor) -> Tensor:
    return GPT2.from_pretrained(directory)(tokens)


@torch.no_grad()
def theirs(model: Any, tokens: Tensor) -> Tensor:
    return model.eval()(tokens).logits


def reference(directory: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)


def model_of(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


# ------------------------------------------------------------------------------ read by transformers


@pytest.mark.parametrize("tokenizer", ["bundled", "bytes", "chars"])
def test_a_trained_model_is_read_by_transformers(tokenizer: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shape = ("--tokenizer", tokenizer, "--n-layer", 2, "--n-embd", 32, "--context", 48)
    well(train(*flags(text, out, *shape, "--lr", 0.01, "--steps", 30, "--eval-every", 15)))
    for directory in (out, out / "best"):
        model, read = reference(directory), AutoTokenizer.from_pretrained(directory)
        own = Tokenizer.from_pretrained(directory)
        tokens = own.encode(text.read_text()[:200])[:40]
        assert read(own.decode(tokens))["input_ids"] == tokens
        batch = torch.tensor([tokens])
        assert apart(ours(directory, batch), theirs(model, batch)) <= 1e-4

        prompt = "Once upon"
        start = read(prompt, return_tensors="pt")
        longest = 48 - start["input_ids"].size(1)
        ids = model.generate(**start, do_sample=False, max_new_tokens=longest, pad_token_id=own.end_token)
        written = read.decode(ids[0, start["input_ids"].size(1) :], skip_special_tokens=True)
        said = call("--model", directory, "-p", prompt, "--max-new-tokens", longest, "--no-stream").text
        assert said == written
        assert len(written) >= 10  # it has learnt to write more than an end token


# ------------------------------------------------------------------------------ the same steps

STEPS, WARMUP, LR, DECAY, BETA2 = 6, 2, 1e-3, 0.1, 0.95
# By hand: half and all of it, then down the half cosine from step 2 to step 6.
RATES = [LR / 2, LR, LR, *(LR * (1 + math.cos(math.pi * quarters / 4)) / 2 for quarters in (1, 2, 3))]


def by_hand(model: GPT2LMHeadModel) -> torch.optim.AdamW:
    """AdamW over two groups told apart by name: what is multiplied or looked up decays, the rest does not."""
    named = dict(model.named_parameters())
    flat = [name for name in named if name.endswith("bias") or ".ln_" in name]
    return torch.optim.AdamW(
        [
            {"params": [p for name, p in named.items() if name not in flat], "weight_decay": DECAY},
            {"params": [named[name] for name in flat], "weight_decay": 0.0},
        ],
        betas=(0.9, BETA2),
        eps=1e-8,
        foreach=False,
    )


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_steps_are_those_of_a_plain_loop_around_transformers(
    text: Path, tmp_path: Path, checkpointed: bool
) -> None:
    settings = Settings(
        optimizer="adamw", batch_size=4, accumulate=2, steps=STEPS, warmup=WARMUP, lr=LR, weight_decay=DECAY, beta2=BETA2,
        gradient_checkpointing=checkpointed,
    )  # fmt: skip
    file = tokenise([text], byte_tokenizer(), tmp_path / "tokens")

    def windows() -> Windows:
        return Windows(file, length=24, seed=settings.seed)

    torch.manual_seed(0)
    shape = {"vocab_size": 257, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    model = GPT2(settings.with_dropout(OurConfig(**shape, bos_token_id=256, eos_token_id=256)))
    model.save_pretrained(tmp_path / "0")
    other = reference(tmp_path / "0").train()
    optimiser = by_hand(other)
    learner, read = Learner(model, windows(), settings, "float32", Processes()), windows()
    lengths = []
    for step in range(STEPS):
        loss, length = learner.step(step)
        expected = 0.0
        for part in range(2):
            rows = read.rows(range((2 * step + part) * 4, (2 * step + part) * 4 + 4))
            their_loss = other(rows, labels=rows).loss / 2
            their_loss.backward()
            expected += their_loss.item()
        their_length = torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = RATES[step]
        optimiser.step()
        optimiser.zero_grad()
        assert loss.item() == pytest.approx(expected, abs=1e-4)
        assert length.item() == pytest.approx(their_length.item(), rel=1e-4)
        lengths.append(their_length.item())
        if step in (0, STEPS - 1):
            model.save_pretrained(tmp_path / "mine")
            other.save_pretrained(tmp_path / "theirs")
            mine, theirs = model_of(tmp_path / "mine"), model_of(tmp_path / "theirs")
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert max(lengths) > 1 + 1e-3  # so that clipping was seen
    before = model_of(tmp_path / "0")
    assert all(apart(mine[name], before[name]) > 1e-4 for name in before)  # everything learns


def test_a_fresh_model_is_spread_as_gpt2_is() -> None:
    """Mean and standard deviation of each kind of parameter, over all layers, within 5 of their own errors."""
    torch.manual_seed(1)
    shape = Settings(config="small").shape(vocab_size=4096, end_token=0)
    mine = {name: p for name, p in GPT2(shape).state_dict().items() if name != "head.weight"}
    config = {
        name: getattr(shape, name) for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    }
    fresh = GPT2LMHeadModel(GPT2Config(**config)).state_dict()
    fresh.pop("lm_head.weight")
    assert len(mine) == len(fresh)
    kinds: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for (name, one), (their_name, other) in zip(mine.items(), fresh.items(), strict=True):
        assert one.shape == other.shape, (name, their_name)  # both list their parameters in the order of use
        kind = ".".join(word for word in their_name.split(".") if not word.isdigit())
        for parts, part in zip(kinds.setdefault(kind, ([], [])), (one, other), strict=True):
            parts.append(part.flatten())
    assert len(kinds) == 16
    for kind, (own, known) in kinds.items():
        x, y = torch.cat(own), torch.cat(known)
        if kind.endswith("bias") or ".ln_" in kind:
            assert torch.equal(x, y), kind
            continue
        expected = 0.02 / math.sqrt(2 * shape.n_layer) if "c_proj" in kind else 0.02
        error = expected / math.sqrt(len(x))
        assert y.std().item() == pytest.approx(expected, abs=5 * error), kind
        assert x.std().item() == pytest.approx(expected, abs=5 * error), kind
        assert abs(x.mean().item()) < 5 * error, kind


# ------------------------------------------------------------------------------ adapters


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(hub.bundled(), tmp_path_factory.mktemp("base") / "base"))


@pytest.fixture(scope="module")
def adapted(base: Path, text: Path) -> Path:
    """An adapter of the base, after two epochs."""
    before, out = contents(base), text.with_name("adapted")
    given = (
        "--data", text, "--val", 0.2, "--token-cache", text.parent / "tokens", "--out", out, "--init", base,
        "--lora", 4, "--dropout", 0.1, "--context", 64, "--batch-size", 4, "--steps", 24, "--eval-every", 8,
        "--checkpoint-every", 8, "--dtype", "float32", "--threads", 1,
    )  # fmt: skip
    well(train(*given))
    per_epoch = json.loads((out / "run.json").read_text())["train_tokens"] // 64
    assert 2 * per_epoch <= 24 * 4
    assert contents(base) == before
    return out


TOKENS = torch.arange(60).view(2, 30)


def test_the_adapter_of_a_run_is_opened_by_peft(base: Path, adapted: Path) -> None:
    for out in (adapted, adapted / "best"):
        model = peft.PeftModel.from_pretrained(reference(base), out / "adapter")
        logits = theirs(model, TOKENS)
        assert apart(logits, ours(base, TOKENS)) > 0.1
        assert apart(logits, ours(out, TOKENS)) <= 1e-4
        assert apart(logits, theirs(reference(out), TOKENS)) <= 1e-4
        assert model.peft_config["default"].base_model_name_or_path == str(base.resolve())
        assert model.peft_config["default"].r == 4


def test_the_adapter_of_a_run_merged_into_its_base_is_its_model(
    base: Path, adapted: Path, tmp_path: Path
) -> None:
    given = ("--model", base, "--adapter", adapted / "adapter", "--out", tmp_path / "merged")
    assert merge_lora.main([str(flag) for flag in given]) == 0
    merged, model = model_of(tmp_path / "merged"), model_of(adapted)
    assert merged.keys() == model.keys()
    assert all(torch.equal(merged[name], model[name]) for name in model)


def test_an_adapter_learns(adapted: Path) -> None:
    lines = metrics(adapted)
    losses = [line["loss"] for line in lines]
    assert sum(losses[-8:]) / 8 < losses[0] - 1
    validations = [line["val_loss"] for line in lines if "val_loss" in line]
    assert validations == sorted(validations, reverse=True)
    assert validations[-1] < losses[0] - 1


def test_a_resumed_adapter_is_that_of_the_uninterrupted_run(adapted: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(adapted, out)
    assert checkpoints(out) == ["step-00000016", "step-00000024"]
    shutil.rmtree(out / "checkpoints" / "step-00000024")
    (out / "model.safetensors").unlink()
    shutil.rmtree(out / "adapter")
    well(train("--resume", "--out", out))
    assert_same_run(out, adapted)
    for file in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "best/model.safetensors",
    ):
        assert (out / file).read_bytes() == (adapted / file).read_bytes()


# ------------------------------------------------------------------------------ fine-tuning

TUNING = (
    "--context", 64, "--batch-size", 4, "--lr", 1e-3, "--warmup", 2, "--dtype", "float32", "--threads", 1,
    "--eval-every", 1000, "--checkpoint-every", 1000,
)  # fmt: skip


def test_fine_tuning_begins_at_what_the_bundled_model_knows(text: Path, tmp_path: Path, capsys) -> None:
    """The first loss is transformers' with those weights; and without learning, validation finds `score`'s."""
    known = tmp_path / "known.txt"
    known.write_text(tale(1000, sentences=2))
    given = (
        "--data",
        text,
        "--val",
        known,
        "--token-cache",
        text.parent / "tokens",
        "--out",
        tmp_path / "out",
    )
    well(train(*given, *TUNING, "--init", "bundled", "--steps", 1, "--lr", 0))
    (line,) = metrics(tmp_path / "out")

    file = tokenise([text], Tokenizer.from_pretrained(), text.parent / "tokens")
    rows = Windows(file, length=64, seed=0).rows(range(4))
    with torch.no_grad():
        model = reference(hub.bundled()).eval()
        assert line["loss"] == pytest.approx(model(rows, labels=rows).loss.item(), abs=1e-4)

    capsys.readouterr()
    assert score.main([str(known), "--json", "--per-token", "--quiet"]) == 0
    # the last is the end token's, not in training
    *logprobs, _ = json.loads(capsys.readouterr().out)["logprobs"]
    assert len(logprobs) <= 64  # one window
    assert line["val_loss"] == pytest.approx(-sum(logprobs) / len(logprobs), abs=1e-4)


def test_fine_tuning_comes_farther_than_a_beginning_from_scratch(text: Path, tmp_path: Path) -> None:
    """Same text, order, shape and steps."""
    bundled = OurConfig.load(hub.bundled())
    shape = ("--n-layer", bundled.n_layer, "--n-head", bundled.n_head, "--n-embd", bundled.n_embd)
    given = ("--data", text, "--val", 0.2, "--token-cache", text.parent / "tokens", *TUNING, "--steps", 8)
    well(train(*given, "--init", "bundled", "--out", tmp_path / "tuned"))
    well(train(*given, *shape, "--out", tmp_path / "scratch"))
    tuned, scratch = metrics(tmp_path / "tuned"), metrics(tmp_path / "scratch")
    assert tuned[-1]["val_loss"] < tuned[0]["loss"] - 0.5  # it learns
    assert scratch[-1]["val_loss"] < scratch[0]["loss"] - 0.5
    assert tuned[-1]["val_loss"] < scratch[-1]["val_loss"] - 1
