"""What decides a run: ranges, defaults, what may change on the way; and what is measured of the machine."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minigpt import GPT2, GPT2Config
from minigpt.options import KINDS, flag_of, options_of
from minigpt.training import hardware as machine
from minigpt.training import settings as settings_module
from minigpt.training.lora import attach
from minigpt.training.settings import Settings

CPU = torch.device("cpu")

RANGES = {
    "n_layer": 0, "n_head": 0, "n_embd": 0, "context": 0, "lora": 0, "lora_alpha": -1e-9, "steps": 0, "batch_size": 0,
    "accumulate": 0, "lr": -1e-9, "adamw_lr": -1e-9, "warmup": -1, "decay": -1, "weight_decay": -0.1, "seed": -1,
    "eval_every": 0, "eval_tokens": 0,
    "checkpoint_every": 0, "keep_every": 0, "teacher_weight": 0.0, "threads": 0, "dropout": -0.1, "beta2": -0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_its_range(name: str) -> None:
    value = RANGES[name]
    with pytest.raises(ValueError, match=rf"{name} \({flag_of(name)}\) must be a .*, got {value}"):
        Settings(**{name: value})
    if isinstance(value, float):
        with pytest.raises(ValueError, match=rf"{name} \({flag_of(name)}\) must be a .*, got nan"):
            Settings(**{name: math.nan})
        with pytest.raises(ValueError, match=rf"{name} \({flag_of(name)}\) must be a .*, got inf"):
            Settings(**{name: math.inf})


@pytest.mark.parametrize(
    ("name", "value"),
    [("dropout", 1.0), ("beta2", 1.0), ("threads", 1025), ("seed", 2**63), ("teacher_weight", 1.5)],
)
def test_a_number_above_its_range(name: str, value: float) -> None:
    with pytest.raises(
        ValueError, match=rf"{name} \({flag_of(name)}\) must be a .*(below|to|most) .*, got {value}"
    ):
        Settings(**{name: value})


def test_every_number_is_in_one_of_these_tests() -> None:
    numbers = {name for name, one in options_of(Settings).items() if one.kind in (KINDS[int], KINDS[float])}
    assert numbers == RANGES.keys()


@pytest.mark.parametrize("share", ["0", "1", "-0.5", "1.5", "nan", "inf"])
def test_a_share_out_of_its_range(share: float) -> None:
    with pytest.raises(ValueError, match=f"--val {share} must be a file, or a fraction above 0 and below 1"):
        Settings(val=share)


def test_flags_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="--config, --n-embd: the shape comes with --init"):
        Settings(init="gpt2", config="tiny", n_embd=8)
    with pytest.raises(ValueError, match="--lora adapts a pretrained model: add --init"):
        Settings(lora=8)


def test_defaults_that_follow_from_others() -> None:
    scratch, full, adapter = (
        Settings(**how).with_defaults(768) for how in ({}, {"init": "x"}, {"init": "x", "lora": 4})
    )
    assert (scratch.lr, full.lr, adapter.lr) == (6e-4, 1e-4, 5e-4)
    assert [Settings().with_defaults(width).lr for width in (192, 16)] == [2.4e-3, 5e-3]
    assert Settings(steps=500).with_defaults(768).warmup == 25
    given = Settings(lr=0.0, warmup=0).with_defaults(768)
    assert (given.lr, given.warmup) == (0.0, 0)
    assert given.with_defaults(192) == given


def test_muon_trains_new_models_and_adamw_all_others() -> None:
    new, tuned, sharded = (Settings(**how).with_defaults(768) for how in ({}, {"init": "x"}, {"shard": True}))
    assert [s.optimizer for s in (new, tuned, sharded)] == ["muon", "adamw", "adamw"]
    assert (new.adamw_lr, tuned.adamw_lr) == (3e-4, None)
    assert Settings(lr=0.1, optimizer="muon", init="x").with_defaults(768).adamw_lr == 0.05
    assert Settings(adamw_lr=0.2).with_defaults(768).adamw_lr == 0.2


def test_a_run_keeps_its_optimiser_when_it_is_sharded() -> None:
    assert Settings(shard=True).with_defaults(768).optimizer == "adamw"
    assert Settings(shard=True, optimizer="muon").with_defaults(768).optimizer == "muon"
    assert Settings().with_defaults(768).with_changes({"shard": True}).with_defaults(768).optimizer == "muon"


def test_only_wsd_has_a_decay() -> None:
    assert Settings(steps=500).with_defaults(768).decay is None
    assert Settings(steps=500, schedule="wsd").with_defaults(768).decay == 100
    assert Settings(steps=500, schedule="wsd", decay=7).with_defaults(768).decay == 7


def test_optimisers_and_schedules_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="--adamw-lr is the rate beside Muon: with --optimizer adamw, give"):
        Settings(init="x", adamw_lr=0.1).with_defaults(768)
    with pytest.raises(ValueError, match="--decay 7 belongs to --schedule wsd: add it, or leave --decay out"):
        Settings(decay=7)


def test_a_run_of_the_first_version_goes_on_with_adamw(tmp_path: Path) -> None:
    before = {
        name: value
        for name, value in asdict(Settings()).items()
        if name not in ("optimizer", "adamw_lr", "schedule", "decay")
    }
    (tmp_path / "run.json").write_text(
        json.dumps({"settings": before, "train": "x", "val": "y", "dtype": "float32"})
    )
    settings, _ = settings_module.load(tmp_path)
    assert (settings.optimizer, settings.schedule) == ("adamw", "cosine")


def test_a_shape_is_the_named_one_with_what_is_given() -> None:
    small = Settings(
        config="gpt2" if "gpt2" in settings_module.SHAPES else "small", n_layer=3, context=99, dropout=0.2
    )
    shape = small.shape(300, 299)
    assert (shape.n_layer, shape.n_positions, shape.vocab_size) == (3, 99, 300)
    assert (shape.bos_token_id, shape.eos_token_id) == (299, 299)
    assert (shape.resid_pdrop, shape.embd_pdrop, shape.attn_pdrop) == (0.2, 0.2, 0.2)
    with pytest.raises(ValueError, match="n_embd"):
        Settings(n_embd=10, n_head=3).shape(300, None)


def test_a_run_keeps_what_decides_its_result() -> None:
    run = Settings(data=("a.txt",), batch_size=4, lr=0.1, warmup=3, init="gpt2")
    again = run.with_changes({"steps": 9, "data": ("b.txt",), "batch_size": 4, "device": "cpu"})
    assert again == replace(run, steps=9, data=("b.txt",), device="cpu")
    fixed = {
        "batch_size": 8, "accumulate": 2, "lr": 0.2, "warmup": 4, "seed": 1, "dropout": 0.1, "context": 8, "lora": 2,
        "weight_decay": 0.0, "beta2": 0.9, "dtype": "float32", "init": "bundled", "tokenizer": "bytes", "text_field": "x",
        "separator": "--", "teacher_weight": 0.25,
        "eval_tokens": 5, "optimizer": "muon", "adamw_lr": 0.01, "schedule": "wsd", "lora_alpha": 16.0, "val": "0.5",
    }  # fmt: skip
    for name, value in fixed.items():
        message = (
            f"{flag_of(name)} {value}: this run began with {getattr(run, name)}, and keeps it to its end"
        )
        with pytest.raises(ValueError, match=message):
            run.with_changes({name: value})
    with pytest.raises(ValueError, match="--teacher a, b: this run began with None, and keeps it to its end"):
        run.with_changes({"teacher": ("a", "b")})
    fixed["teacher"] = ("a", "b")
    free = {"data", "token_cache", "steps", "eval_every", "checkpoint_every", "keep_every", "logger", "device", "threads",
            "compile", "gradient_checkpointing", "shard", "decay"}  # fmt: skip
    # not with --init
    assert {*asdict(run)} - fixed.keys() - free == {"config", "n_layer", "n_head", "n_embd"}


def test_a_held_out_file_may_have_moved_but_not_become_a_share() -> None:
    shared, file = Settings(val="0.05"), Settings(val="a.txt")
    assert file.with_changes({"val": "b.txt"}).val == "b.txt"
    assert shared.with_changes({"val": "0.05"}) == shared
    for run, val in ((shared, "a.txt"), (file, "0.05"), (shared, "0.1")):
        with pytest.raises(ValueError, match=f"--val {val}: this run began with {run.val}, and keeps it"):
            run.with_changes({"val": val})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lora_alpha": 8.0}, "--lora-alpha 8.0 scales an adapter: add --lora RANK"),
        (
            {"lora_alpha": 0.0, "lora": 2, "init": "gpt2"},
            r"lora_alpha \(--lora-alpha\) must be a number above 0, got 0.0",
        ),
    ],
)
def test_an_alpha_belongs_to_an_adapter_and_is_above_0(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**how)


def test_a_weight_belongs_to_a_teacher_and_each_teacher_counts_once() -> None:
    assert Settings(teacher=("a",)).with_defaults(768).teacher_weight == 0.5
    assert Settings(teacher=("a",), teacher_weight=1.0).with_defaults(768).teacher_weight == 1
    assert Settings().with_defaults(768).teacher_weight is None
    with pytest.raises(ValueError, match=r"--teacher-weight 0\.5 weighs a teacher: add --teacher MODEL"):
        Settings(teacher_weight=0.5)
    with pytest.raises(ValueError, match="--teacher a is given more than once: give it once"):
        Settings(teacher=("a", "b", "a"))


def test_settings_are_read_back(tmp_path: Path) -> None:
    run = Settings(
        data=("a.txt", "b"), lr=1e-4, warmup=7, dropout=0.1, teacher=("c", "d"), teacher_weight=0.25
    )
    facts = {"base": None, "train": "x", "val": "y", "dtype": "float32", "held_out_seed": 0}
    run.save(tmp_path, facts)
    assert settings_module.load(tmp_path) == (run, facts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": "many"}, r"steps \(--steps\) must be a whole number .*, got 'many'"),
        ({"steps": True}, r"steps \(--steps\) must be a whole number .*, got True"),
        ({"lr": [1]}, r"lr \(--lr\) must be a number of at least 0, got \[1\]"),
        (
            {"dtype": "float8"},
            r"dtype \(--dtype\) must be one of 'auto', 'float32', 'bfloat16', got 'float8'",
        ),
        (
            {"batch_size": 10**30},
            r"batch_size \(--batch-size\) must be a whole number of at least 1 and below 2,147,483,648, got 10000",
        ),
        ({"data": ["a", 3]}, "settings.data must be a text, got 3"),
        ({"teacher": ["a", 3]}, "settings.teacher must be a text, got 3"),
        ({"teacher": "a"}, "teacher must be a list, got 'a'"),
    ],
)
def test_a_setting_of_another_kind_is_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    Settings(data=("a.txt",)).save(tmp_path, {"train": "x", "val": "y", "dtype": "float32"})
    saved = json.loads((tmp_path / "run.json").read_text())
    saved["settings"] |= wrong
    (tmp_path / "run.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=rf"run\.json is damaged \(.*{message}"):
        settings_module.load(tmp_path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "lacks the field train, a text"),
        ({"train": 5, "val": "y", "dtype": "float32"}, "train must be a text, got 5"),
        (
            {"train": "x", "val": "y", "dtype": "float32", "teachers": []},
            r"teachers must be an object, got \[\]",
        ),
        ({"train": "x", "val": "y", "dtype": "x"}, "dtype must be one of float32, bfloat16, got 'x'"),
        (
            {"train": "x", "val": "y", "dtype": "float32", "held_out_seed": -1},
            "held_out_seed must be at least 0, got -1",
        ),
        (
            {"train": "x", "val": "y", "dtype": "float32", "held_out_seed": "1"},
            "held_out_seed must be a whole number",
        ),
    ],
)
def test_facts_of_another_kind_are_named(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    Settings(data=("a.txt",)).save(tmp_path, facts)
    with pytest.raises(ValueError, match=rf"run\.json is damaged \(.*{message}"):
        settings_module.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"settings": 3}', '{"settings": {"data": [], "new": 1}}',
                                     '{"settings": {"data": [], "steps": 0}}'])  # fmt: skip
def test_a_damaged_file_of_settings(tmp_path: Path, content: Any) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged \(.*\): begin another run in another --out"):
        settings_module.load(tmp_path)


# ------------------------------------------------------------------------------ the machine


def test_flops_are_those_of_palms_formula() -> None:
    c = GPT2Config(vocab_size=100, n_positions=20, n_embd=8, n_layer=3, n_head=2)
    n = sum(p.numel() for p in GPT2(c).parameters())
    # forward: two for each weight that a token is multiplied with, and two products of T by D in each layer
    forward = 2 * (n - 20 * 8) + 3 * (2 * 2 * 20 * 8)
    assert machine.forward_flops(c, n, 20) == forward
    assert machine.training_flops(c, n, 20) == 3 * forward


@pytest.mark.parametrize(("tied", "rank"), [(True, None), (False, None), (True, 2)])
def test_flops_are_those_that_torch_counts(tied: bool, rank: int | None) -> None:
    c = GPT2Config(
        vocab_size=90, n_positions=20, n_embd=16, n_layer=4, n_head=2, tie_word_embeddings=tied,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = GPT2(c)
    if rank is not None:
        attach(model, rank)
    matrices = [p for p in model.parameters() if p.dim() > 1]  # biases and norms are no products
    n, n_frozen = sum(p.numel() for p in matrices), sum(p.numel() for p in matrices if not p.requires_grad)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.backward(model(torch.randint(90, (1, 20))).sum())
    # What the first of the frozen layers reads does not learn, so that its gradient is not computed either.
    expected = pytest.approx(counter.get_total_flops(), rel=0.07 if rank else 1e-9)
    assert 20 * machine.training_flops(c, n, 20, n_frozen) == expected


def test_bfloat16_is_taken_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {torch.float32: 10.0, torch.bfloat16: 13.0}
    monkeypatch.setattr(machine, "matmul_rate", lambda device, dtype, seconds: rates[dtype])
    assert machine.choose_dtype(CPU, "auto") == ("bfloat16", 13.0)
    assert machine.choose_dtype(CPU, "float32") == ("float32", 10.0)
    rates[torch.bfloat16] = 11.0
    assert machine.choose_dtype(CPU, "auto") == ("float32", 10.0)
    assert machine.choose_dtype(CPU, "bfloat16") == ("bfloat16", 11.0)


def test_a_rate_is_measured() -> None:
    assert machine.matmul_rate(CPU, torch.float32, 0.01) > 0
    assert machine.matmul_rate(CPU, torch.float32, 0.0) > 0  # the time is over before the first product


FAULTS = """
import resource, sys
import torch
from minigpt.training.hardware import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
before, last = 0, [100, 100]
for _ in range(12):  # the first of them find their places
    torch.zeros(9 << 20).add_(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    last, before = [last[1], faults - before], faults
    if max(last) < 100:
        break
print(max(last))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_is_used_again():
    """36 MB again and again, more than glibc keeps: the pages are the process's own after a few rounds, or new in each."""

    def faults(how):
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") < 100 < faults("leave")
