"""From a request to a run: documents -> token files -> windows -> learner; all is checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minigpt
from minigpt.data.split import hold_out
from minigpt.data.token_file import TokenFile, default_cache, tokenise
from minigpt.data.windows import Windows
from minigpt.json_files import counted
from minigpt.model import GPT2
from minigpt.tokenizer import Tokenizer
from minigpt.training.distillation import Distillation, load_teachers
from minigpt.training.distributed import Processes
from minigpt.training.hardware import autocast, choose_dtype, forward_flops, training_flops
from minigpt.training.initial_model import InitialModel, fingerprint, initial_model
from minigpt.training.learner import Learner, next_tokens
from minigpt.training.report import Callback, Log, SilentReport, TrainingReport
from minigpt.training.request import RunRequest
from minigpt.training.run import TrainingRun
from minigpt.training.run_folder import RunFolder
from minigpt.training.settings import Settings
from minigpt.training.validation import Validation

# Not a run's own seed: runs of several seeds are judged by the same documents, which none has learned; a student's
# validation is then unseen by its teachers.
HELD_OUT_SEED = 0
# Facts in run.json that must be the same when a run is resumed, and what to call them.
UNCHANGED = {"train": "the text of --data", "val": "the text of --val", "base_sha256": "the model of --init"}

MOST_TOKENS = 2**28  # in a batch: far more than any device takes in one pass
MOST_IN_STEP = 2**32  # a thousand times what GPT-3 read in a step (Brown et al. 2020, table 2.1)
MANY_EPOCHS = 50  # above these a run is probably longer than was meant


def prepare(
    request: RunRequest, device: torch.device, processes: Processes, log: Log, callback: Callback | None
) -> TrainingRun:
    """Makes a run ready, at its beginning.

    Raises:
        OSError: a model does not exist.
        ValueError: a text, a tokenizer or a model cannot be used, or they do not fit each other.
    """
    _check_processes(request.settings.batch_size, processes.world_size)
    torch.manual_seed(request.settings.seed)
    start = initial_model(request.settings, request.out)
    settings = request.settings.with_defaults(start.model.config.n_embd)
    context = settings.context or start.model.config.n_positions
    teachers = load_teachers(settings.teacher, start, context)
    held_out_seed = request.saved.get("held_out_seed", HELD_OUT_SEED)
    train, held_out = _token_files(settings, start.tokenizer, processes, held_out_seed)
    facts = _facts(start, teachers, train, held_out, context)
    facts |= {"held_out_seed": held_out_seed, "processes": processes.world_size}
    _refuse_changes(request.saved, facts)
    _check_batch(settings, context)
    windows = Windows(train, context, settings.seed)
    validation = Validation(held_out, context, settings.eval_tokens, start.tokenizer)

    dtype, peak = processes.broadcast(choose_dtype(device, request.saved.get("dtype", settings.dtype)))
    summary = _summary(start.model, settings, windows, validation)
    log(f"{summary}; {dtype} on {device.type}, peak {peak / 1e12:.2f} TFLOP/s")
    if teachers:
        log(f"weight {settings.teacher_weight:g} on the mean probabilities of {', '.join(teachers)}")
    _report_overlap(train, held_out, log)
    if not request.was_begun:
        _report_many_epochs(settings, windows, log)
    processes.wait()  # no rank writes before all have checked everything
    peak_tokens = processes.world_size * peak / facts["flops_per_token"]
    report = TrainingReport(request.out, log, settings.logger, peak_tokens, callback)
    targets = _targets(teachers, settings, device, dtype)
    return TrainingRun(
        Learner(start.model.to(device), windows, settings, dtype, processes, targets),
        validation,
        RunFolder(request.out, start.tokenizer, facts | {"dtype": dtype}, processes),
        report if processes.is_main else SilentReport(),
    )


def _check_processes(batch_size: int, world_size: int) -> None:
    if batch_size % world_size:
        raise ValueError(f"--batch-size {batch_size} does not split over {world_size} processes")


def _check_batch(settings: Settings, context: int) -> None:
    batch = settings.batch_size * context
    if batch > MOST_TOKENS:
        raise ValueError(
            f"--batch-size {settings.batch_size} windows of {context} tokens do not fit any memory: lower one of them, "
            "and use --accumulate"
        )
    if settings.accumulate * batch > MOST_IN_STEP:
        raise ValueError(
            f"--accumulate {settings.accumulate} batches of {batch:,} tokens make a step of "
            f"{settings.accumulate * batch:,}, and {MOST_IN_STEP:,} are the most: lower it"
        )


def _token_files(
    settings: Settings, tokenizer: Tokenizer, processes: Processes, held_out_seed: int
) -> tuple[TokenFile, TokenFile]:
    """The training documents and the held-out ones; one process of a host tokenises, the others find what it made."""
    cache = Path(os.path.expanduser(settings.token_cache)) if settings.token_cache else default_cache()
    fraction = settings.val_fraction

    def tokenised(paths: list[Path]) -> TokenFile:
        return processes.in_turns(
            lambda: tokenise(paths, tokenizer, cache, settings.text_field, settings.separator)
        )

    train = tokenised(settings.data_paths)
    if fraction is not None:
        return hold_out(train, fraction, held_out_seed)
    return train, tokenised([Path(os.path.expanduser(settings.val))])


def _targets(
    teachers: Mapping[str, GPT2], settings: Settings, device: torch.device, dtype: str
) -> Callable[[Tensor], Tensor]:
    """What is to be predicted of some rows: their next tokens, or with teachers, distributions."""
    if not teachers:
        return next_tokens
    assert settings.teacher_weight is not None
    models = [teacher.to(device) for teacher in teachers.values()]
    if settings.compile:
        for model in models:
            model.compile()
    return Distillation(models, settings.teacher_weight, partial(autocast, device, dtype))


def _facts(
    start: InitialModel, teachers: Mapping[str, GPT2], train: TokenFile, held_out: TokenFile, context: int
) -> dict[str, Any]:
    """What run.json says beside the settings: which texts, tokenizer, model and versions these are."""
    n_parameters = sum(p.numel() for p in start.model.parameters())
    n_frozen = sum(p.numel() for p in start.model.parameters() if not p.requires_grad)
    flops = training_flops(start.model.config, n_parameters, context, n_frozen)
    for teacher in teachers.values():
        flops += forward_flops(teacher.config, teacher.config.n_parameters, context)
    return {
        "train": train.text_sha256,
        "val": held_out.text_sha256,
        "tokenizer": start.tokenizer.fingerprint(),
        "n_parameters": n_parameters,
        "train_tokens": train.n_tokens,
        "flops_per_token": flops,
        "base": start.base,
        "base_sha256": start.base_sha256,
        "teachers": {name: fingerprint(teacher) for name, teacher in teachers.items()},
        "versions": {"minigpt": minigpt.__version__, "torch": torch.__version__},
    }


def _refuse_changes(saved: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    for name, what in UNCHANGED.items():
        if saved.get(name, facts[name]) != facts[name]:
            raise ValueError(f"{what} is not the one that this run began with: give that one")
    for name, sha256 in saved.get("teachers", {}).items():
        if facts["teachers"].get(name) != sha256:
            raise ValueError(
                f"--teacher {name} has other weights than this run began with: put those back, or begin another run "
                "in another --out"
            )


def _summary(model: GPT2, settings: Settings, windows: Windows, validation: Validation) -> str:
    c, n = model.config, sum(p.numel() for p in model.parameters())
    n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = f"{counted(c.n_layer, 'layers')}, {counted(c.n_head, 'heads')}"
    adapter = f"LoRA of rank {settings.lora} trains {n_trained:,} ({n_trained / n:.2%}) of "
    accumulated = f"{settings.accumulate} x " if settings.accumulate > 1 else ""
    step = f"{accumulated}{settings.batch_size} x {windows.length:,} tokens"
    return (
        f"{windows.n_tokens:,} training tokens (documents: {len(windows.tokens.spans):,}), {validation.n_tokens:,} "
        f"validation tokens; {counted(settings.steps, 'steps')} of {step}: the text is read "
        f"{_times(_epochs(settings, windows))}; {adapter if n_trained < n else ''}{n:,} parameters ({shape}, "
        f"n_embd {c.n_embd}, context length {c.n_positions}, vocabulary {c.vocab_size:,})"
    )


def _tokens_in_step(settings: Settings, windows: Windows) -> int:
    return settings.accumulate * settings.batch_size * windows.length


def _epochs(settings: Settings, windows: Windows) -> float:
    """How often the text is read."""
    return settings.steps * _tokens_in_step(settings, windows) / windows.n_tokens


def _times(n: float) -> str:
    """A number of times, which may be a fraction.

    >>> _times(0.123), _times(1.5), _times(11_377.7)
    ('0.12 times', '1.5 times', '11,378 times')
    """
    if n < 0.01:
        return "less than 0.01 times"
    return f"{n:.2g} times" if n < 10 else f"{n:,.0f} times"


def _report_many_epochs(settings: Settings, windows: Windows, log: Log) -> None:
    """Warns of a run that is too long for its text, and names a length that is not."""
    epochs = _epochs(settings, windows)
    enough = max(1, MANY_EPOCHS * windows.n_tokens // _tokens_in_step(settings, windows))
    if epochs > MANY_EPOCHS and settings.steps > enough:
        shorter = _epochs(replace(settings, steps=enough), windows)
        log(
            f"warning: the text is read {_times(epochs)}, and will be learned by heart: give more text, or "
            f"--steps {enough}, which reads it {_times(shorter)}"
        )


def _report_overlap(train: TokenFile, held_out: TokenFile, log: Log) -> None:
    if both := int(np.isin(held_out.digests, train.digests).sum()):
        log(f"warning: {both} of {len(held_out.digests)} validation documents are in the training text, too")
