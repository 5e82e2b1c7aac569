"""Every check of a model, the most informative first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minigpt.model import GPT2
from minigpt.tokenizer import Tokenizer
from minigpt.verify.files import check_files
from minigpt.verify.logits import Reference, check_greedy, check_logits, check_transformers
from minigpt.verify.many import check_many
from minigpt.verify.page import check_page
from minigpt.verify.published import check_published
from minigpt.verify.quantized import check_rounded
from minigpt.verify.recording import check_recording
from minigpt.verify.report import Check, with_finite_numbers
from minigpt.verify.stored import StoredModel
from minigpt.verify.text import FIXED, check_tokenizer
from minigpt.verify.weights import check_loaded, check_stored


def all_checks(
    model: GPT2, tokenizer: Tokenizer, directory: Path, tokenizer_directory: Path
) -> Iterator[Check]:
    """Compares a model and a tokenizer that were loaded with the files in the directories from which they came.

    >>> import minigpt
    >>> from minigpt.hub import bundled
    >>> {check.verdict for check in all_checks(*minigpt.load(), bundled(), bundled())} <= {"ok", "not checked"}
    True
    """
    return map(with_finite_numbers, _all_checks(model, tokenizer, directory, tokenizer_directory))


def _all_checks(
    model: GPT2, tokenizer: Tokenizer, directory: Path, tokenizer_directory: Path
) -> Iterator[Check]:
    stored = StoredModel(directory)
    yield check_files(directory, stored.files)
    yield from check_stored(stored)
    yield from check_tokenizer(tokenizer, tokenizer_directory)
    tokens = fixed_tokens(model, tokenizer)
    yield from model_checks(model, stored, tokens)
    yield check_recording(model, tokens)
    reference = Reference.of(model, stored, tokens)
    yield from check_page(model, reference)
    yield check_transformers(model, reference)
    yield from check_published(model, tokenizer, stored.files)


def model_checks(model: GPT2, stored: StoredModel, tokens: list[int]) -> Iterator[Check]:
    """What the model holds and computes, against its files alone: no tokenizer and no other library."""
    yield check_loaded(model, stored)
    if model.quantization:
        yield check_rounded(model, stored)
    reference = Reference.of(model, stored, tokens)
    yield from check_logits(model, reference)
    yield from check_greedy(model, reference)
    yield check_many(model, reference)


def fixed_tokens(model: GPT2, tokenizer: Tokenizer) -> list[int]:
    """The fixed text's ids, as many as the model reads at once; for a vocabulary that lacks its letters, any ids."""
    try:
        tokens = tokenizer.encode(FIXED)
    except ValueError:
        tokens = []
    n_vocab = model.config.vocab_size
    tokens = [token for token in tokens if token < n_vocab] or [7 * i % n_vocab for i in range(48)]
    return tokens[: model.config.n_positions]
