"""The model that a run starts from, a new or a pretrained one, and its tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt import hub
from minigpt.data.documents import documents
from minigpt.model import GPT2
from minigpt.pretrained import load
from minigpt.tokenizer import Tokenizer
from minigpt.tokenizer.byte_level import byte_tokenizer, character_tokenizer
from minigpt.training import lora
from minigpt.training.settings import Settings


@dataclass(frozen=True)
class InitialModel:
    """A model to train, its tokenizer, and which pretrained model it is, if it is one.

    Args:
        model: as it is before the first step; of an adapted one, only the adapter is trainable.
        tokenizer: what it reads.
        base: a folder or a name on the hub; None for a new model.
        base_sha256: of the frozen weights beside an adapter, which no checkpoint holds; else None.
    """

    model: GPT2
    tokenizer: Tokenizer
    base: str | None = None
    base_sha256: str | None = None


def initial_model(settings: Settings, out: Path) -> InitialModel:
    """A new or a pretrained model, as the settings say; new weights are sampled by torch's global generator.

    Raises:
        OSError: a model or tokenizer does not exist.
        ValueError: one cannot be used, or they do not fit each other.
    """
    if settings.init is None:
        saved = (out / "vocab.json").is_file()  # else the run was killed before its tokenizer was saved
        tokenizer = Tokenizer.load(out) if saved else _tokenizer(settings)
        return InitialModel(GPT2(settings.shape(tokenizer.vocab_size, tokenizer.end_token)), tokenizer)
    base, tokenizer = load(settings.init)
    if base.quantization:
        raise ValueError(
            f"--init {settings.init} has {base.quantization} weights, which cannot be trained: use the original"
        )
    _check_pretrained(settings, base, tokenizer)
    model = GPT2(settings.with_dropout(base.config))
    model.load_state_dict(base.state_dict())
    sha256 = None
    if settings.lora is not None:
        sha256 = fingerprint(model)
        alpha = lora.ALPHA if settings.lora_alpha is None else settings.lora_alpha
        lora.attach(model, settings.lora, alpha, settings.dropout)
    where = str(hub.bundled()) if settings.init == hub.BUNDLED else settings.init
    return InitialModel(model, tokenizer, where, sha256)


def _check_pretrained(settings: Settings, base: GPT2, tokenizer: Tokenizer) -> None:
    given = None if settings.tokenizer is None else _tokenizer(settings)
    if given is not None and given.fingerprint() != tokenizer.fingerprint():
        raise ValueError(
            f"--tokenizer {settings.tokenizer} is another than that of {settings.init}: "
            "what the model has learned about its tokens would be lost; leave --tokenizer out"
        )
    if tokenizer.vocab_size > base.config.vocab_size:
        raise ValueError(
            f"the tokenizer of {settings.init} has {tokenizer.vocab_size:,} tokens, the model "
            f"{base.config.vocab_size:,}: they are of different models"
        )
    if settings.context is not None and settings.context > base.config.n_positions:
        raise ValueError(
            f"--context {settings.context}: the context length of {settings.init} is {base.config.n_positions}"
        )


def _tokenizer(settings: Settings) -> Tokenizer:
    match settings.tokenizer:
        case None | "bundled":
            return Tokenizer.from_pretrained()
        case "bytes":
            return byte_tokenizer()
        case "chars":
            return character_tokenizer(
                documents(settings.data_paths, settings.text_field, settings.separator)
            )
        case name:
            return Tokenizer.from_pretrained(name)


def fingerprint(model: GPT2) -> str:
    """A sha256 of all weights."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
