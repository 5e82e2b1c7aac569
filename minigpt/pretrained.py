"""A model and its tokenizer, from one name."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Never

import torch

from minigpt import hub
from minigpt.cli.machine import device as device_of
from minigpt.config import GPT2Config
from minigpt.errors import InvalidRequest
from minigpt.json_files import shown
from minigpt.model import GPT2
from minigpt.right_names import refuse_unknown
from minigpt.tokenizer import Tokenizer

KNOWN = ("device", "dtype", "quantize", "tokenizer", "revision", "offline")
# Arguments of other libraries' `from_pretrained`, where more is to be said than another name.
ADVICE = {
    **dict.fromkeys(("name", "model", "model_name", "model_path", "path", "pretrained_model_name_or_path"),
                    'the model comes first, without a name: load("gpt2")'),
    "torch_dtype": "it is dtype: write dtype=torch.float16",
    "device_map": 'it is device: write device="auto"',
    "load_in_4bit": 'the fewest bits are 8: write quantize="int8"',
    "local_files_only": "write offline=True",
    "trust_remote_code": "a model's own code is never run: leave it out",
    "low_cpu_mem_usage": "weights go straight into place: leave it out",
}  # fmt: skip
PADDING = 127  # tokens, at most, that a model has beyond its tokenizer's, to make a multiple of 128


def load(
    name_or_dir: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    offline: bool = False,
    **unknown: Never,
) -> tuple[GPT2, Tokenizer]:
    """The bundled model and its tokenizer, or those of a directory or a hub repository.

    Args:
        name_or_dir: "bundled", or nothing, for the bundled model; a directory that holds config.json; or a name on the
            Hugging Face hub, such as "gpt2" or "org/name".
        device: where the weights go; "auto" takes a GPU if there is one.
        dtype: their type, as torch.float16 or "float16"; float32 on a CPU and as stored elsewhere unless given.
        quantize: "int8" or "float16" keeps the weights in fewer bits: faster on a CPU, and nearly as exact.
        tokenizer: a directory or a name to take the tokenizer from; the model's own unless given.
        revision: a branch, tag or commit on the hub.
        offline: use cached files only.

    Raises:
        OSError: there is no such model, or it cannot be fetched.
        ValueError: it is no GPT-2, or its files do not fit each other; InvalidRequest: an argument cannot be used.
    """
    refuse_unknown("load", unknown, KNOWN, ADVICE)
    if not isinstance(tokenizer, str | os.PathLike | None):
        raise InvalidRequest(
            f"tokenizer is a directory or a name on the hub, got {shown(tokenizer)}: to use a tokenizer that you have,"
            " write model = minigpt.GPT2.from_pretrained(...)"
        )
    if device == "auto":
        device = device_of("cpu" if quantize else "auto")
    directory = hub.model_files(name_or_dir, revision=revision, offline=offline)
    if tokenizer is not None:
        reader = Tokenizer.from_pretrained(tokenizer, offline=offline)
    elif name_or_dir in (None, hub.BUNDLED) or Path(name_or_dir).expanduser() == directory:
        reader = Tokenizer.load(directory)
    else:  # the hub's folders are named after the commit: model and tokenizer must be of the same
        reader = Tokenizer.from_pretrained(name_or_dir, revision=directory.name, offline=offline)
    model = GPT2.from_pretrained(directory, device=device, dtype=dtype, quantize=quantize)
    if tokenizer is not None:
        _check_size(f"the tokenizer of {tokenizer}", reader.vocab_size, model.config.vocab_size)
    reader.end_token = _end_token(model.config, reader)
    return model, reader


def _check_size(what: str, n_tokens: int, vocab_size: int) -> None:
    """Refuses a tokenizer that is larger than the model's vocabulary, and warns of one that is much smaller."""
    sizes = f"{what} has {n_tokens:,} tokens, the model {vocab_size:,}"
    if n_tokens > vocab_size:
        raise InvalidRequest(f"{sizes}: they are of different models")
    if vocab_size - n_tokens > PADDING:
        warnings.warn(f"{sizes}: they may be of different models", stacklevel=3)


def _end_token(config: GPT2Config, tokenizer: Tokenizer) -> int | None:
    """The model's own end token if it is one of the tokenizer's special tokens, else the tokenizer's."""
    ends = config.end_tokens & set(tokenizer.special_tokens.values())
    return tokenizer.end_token if tokenizer.end_token in ends or not ends else min(ends)
