"""From settings to a run: tokenizer, tokens, model; everything is checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import minigpt
from minigpt import hub
from minigpt.data.documents import documents
from minigpt.data.token_file import TokenFile, default_cache, tokenise, tokenizer_fingerprint
from minigpt.data.windows import Windows, hold_out
from minigpt.model import GPT2
from minigpt.pretrained import load
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.byte_level import byte_tokenizer, character_tokenizer
from minigpt.training import lora
from minigpt.training.checkpoints import Checkpoints
from minigpt.training.distributed import Processes
from minigpt.training.evaluate import Validation
from minigpt.training.hardware import choose_dtype, training_flops
from minigpt.training.learner import Learner
from minigpt.training.report import Report, Silence
from minigpt.training.run import Run
from minigpt.training.settings import Settings

BUNDLED = "bundled"
Tell = Callable[[str], None]


def prepare(
    settings: Settings,
    out: Path,
    facts: dict[str, Any],
    device: torch.device,
    processes: Processes,
    tell: Tell,
) -> Run:
    """Makes a run ready, at its beginning; `facts` are those of its run.json, or empty for a new one.

    Raises:
        OSError: a model is not there.
        ValueError: a text, a tokenizer or a model cannot be used, or they do not fit each other.
    """
    if settings.batch_size % processes.world:
        raise ValueError(
            f"--batch-size {settings.batch_size} does not split over {processes.world} processes"
        )
    torch.manual_seed(settings.seed)
    model, tokenizer = _model_and_tokenizer(settings, out, facts)
    settings = settings.settled(model.config.n_embd)
    train, training, held, validation = _texts(settings, tokenizer, processes)
    context = settings.context or model.config.n_positions
    windows = Windows(train, training, context, settings.seed)
    checked = Validation(held, validation, context, settings.eval_tokens, tokenizer)
    _same_text(facts, "train", train)
    _same_text(facts, "val", held)

    dtype, peak = processes.as_first(choose_dtype(device, facts.get("dtype", settings.dtype)))
    n_parameters = sum(p.numel() for p in model.parameters())
    flops = training_flops(model.config, n_parameters, context)
    tell(_summary(model, n_parameters, windows, checked, dtype, device, peak))
    if settings.val_share is None and (both := len(np.intersect1d(train.digests, held.digests))):
        tell(f"warning: {both} of {len(held.digests)} validation documents are in the training text, too")
    known = {
        "train": train.text_sha256, "val": held.text_sha256, "tokenizer": tokenizer_fingerprint(tokenizer),
        "n_parameters": n_parameters, "train_tokens": windows.n_tokens, "flops_per_token": flops, "dtype": dtype,
        "base": _base(settings), "processes": processes.world, "versions": {"minigpt": minigpt.__version__, "torch": torch.__version__},
    }  # fmt: skip
    processes.wait()  # nobody writes before all have found everything in order
    learner = Learner(model.to(device), windows, settings, dtype, processes)
    return Run(
        learner, checked, out, tokenizer, known, Checkpoints(out / "checkpoints", processes),
        Report(out, tell, settings.logger) if processes.first else Silence(),
        most_tokens_per_second=processes.world * peak / flops,
    )  # fmt: skip


def _model_and_tokenizer(settings: Settings, out: Path, facts: dict[str, Any]) -> tuple[GPT2, Tokenizer]:
    if settings.init is None:
        begun = (out / "vocab.json").is_file()  # else the run was killed before it was saved
        tokenizer = Tokenizer.load(out) if begun else _tokenizer(settings)
        end = tokenizer.end_token
        return GPT2(settings.shape(tokenizer.vocab_size, end)), tokenizer
    base, tokenizer = load(None if settings.init == BUNDLED else settings.init)
    if settings.tokenizer is not None and tokenizer_fingerprint(
        _tokenizer(settings)
    ) != tokenizer_fingerprint(tokenizer):
        raise ValueError(
            f"--tokenizer {settings.tokenizer} is another than that of {settings.init}: "
            "what a model has learned about its tokens would be lost; leave --tokenizer out"
        )
    if tokenizer.vocab_size > base.config.vocab_size:
        raise ValueError(
            f"the tokenizer of {settings.init} has {tokenizer.vocab_size:,} tokens, the model "
            f"{base.config.vocab_size:,}: they are of different models"
        )
    if settings.context is not None and settings.context > base.config.n_positions:
        raise ValueError(
            f"--context {settings.context}: {settings.init} reads at most {base.config.n_positions} tokens"
        )
    model = GPT2(settings.with_dropout(base.config))
    model.load_state_dict(base.state_dict())
    if settings.lora is not None:
        lora.attach(model, settings.lora, dropout=settings.dropout)
    return model, tokenizer


def _base(settings: Settings) -> str | None:
    """What --init names, so that it is found from any folder: adapters say what they belong to."""
    if settings.init == BUNDLED:
        return str(hub.bundled())
    if settings.init is not None and (folder := Path(settings.init).expanduser()).is_dir():
        return str(folder.resolve())
    return settings.init


def _tokenizer(settings: Settings) -> Tokenizer:
    match settings.tokenizer:
        case None | "bundled":
            return Tokenizer.from_pretrained()
        case "bytes":
            return byte_tokenizer()
        case "chars":
            return character_tokenizer(documents(_paths(settings.data), settings.text_field))
        case name:
            return Tokenizer.from_pretrained(name)


def _paths(names: tuple[str, ...]) -> list[Path]:
    return [Path(name).expanduser() for name in names]


def _texts(
    settings: Settings, tokenizer: Tokenizer, processes: Processes
) -> tuple[TokenFile, np.ndarray, TokenFile, np.ndarray]:
    """The training text and its documents, the validation text and its documents."""
    cache = Path(settings.token_cache).expanduser() if settings.token_cache else default_cache()
    share = settings.val_share

    def both() -> tuple[TokenFile, TokenFile]:
        train = tokenise(_paths(settings.data), tokenizer, cache, settings.text_field)
        if share is not None:
            return train, train
        return train, tokenise(_paths((settings.val,)), tokenizer, cache, settings.text_field)

    if processes.first:  # the others find what it has made
        train, held = both()
    processes.wait()
    if not processes.first:
        train, held = both()
    if share is None:
        return train, train.spans, held, held.spans
    training, validation = hold_out(train, share, settings.seed)
    return train, training, held, validation


def _same_text(facts: dict[str, Any], name: str, tokens: TokenFile) -> None:
    if facts and facts[name] != tokens.text_sha256:
        flag = {"train": "--data", "val": "--val"}[name]
        raise ValueError(f"the text of {flag} is not the one that this run began with: give that one")


def _summary(
    model: GPT2, n: int, windows: Windows, checked: Validation, dtype: str, device: torch.device, peak: float
) -> str:
    c = model.config
    return (
        f"{n:,} parameters ({c.n_layer} layers, {c.n_head} heads, width {c.n_embd}, window {c.n_positions}, "
        f"vocabulary {c.vocab_size:,}); {windows.n_tokens:,} tokens to learn (documents: {len(windows.spans):,}), "
        f"{checked.n_tokens:,} to validate; {dtype} on {device.type}, peak {peak / 1e12:.2f} TFLOP/s"
    )
