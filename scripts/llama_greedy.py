"""Greedy decoding by llama.cpp, for `bench.py`: its C functions, because its Python class reads one prompt at a time."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


class LlamaCpp:
    """A GGUF model that continues prompts of one length."""

    def __init__(self, path: Path, n_threads: int) -> None:
        logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if self._model is None:
            raise ValueError(f"llama.cpp does not load {path}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._n_words = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self._n_threads = n_threads
        self._context: Any = None
        self._made_for: Any = None

    def __call__(self, prompts: list[list[int]], n_new: int) -> list[list[int]]:
        """The likeliest continuations.

        Shapes: prompts (B, T)  ->  (B, n_new)
        """
        # Flash attention is faster where a long prompt is read, and slower where tokens are written.
        self._make_context(len(prompts), len(prompts[0]) + n_new, flash_attention=n_new == 1)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        steps = [self._read(prompts, 0)]
        for i in range(n_new - 1):
            steps.append(self._read([[token] for token in steps[-1]], len(prompts[0]) + i))
        return [list(row) for row in zip(*steps, strict=True)]

    def _make_context(self, rows: int, length: int, flash_attention: bool) -> None:
        """A context for so many sequences; kept for the next run, as a server keeps its own."""
        wanted = (rows, length, flash_attention)
        if self._made_for == wanted:
            return
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = rows * length
        params.n_seq_max = rows
        params.kv_unified = True  # the sequences in one cache, which is faster for a few short ones
        params.flash_attn_type = int(flash_attention)
        params.n_threads = params.n_threads_batch = self._n_threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if self._context is None:
            raise ValueError(f"llama.cpp makes no context for {rows} x {length} tokens")
        self._made_for = wanted

    def _read(self, rows: list[list[int]], position: int) -> list[int]:
        """Reads tokens from a position on; the likeliest one after each row.

        Shapes: rows (B, T)  ->  (B,)
        """
        batch = _batch(rows, position)
        failed = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode returned {failed}")
        logits = llama_cpp.llama_get_logits(self._context)
        found: list[int] = np.ctypeslib.as_array(logits, (len(rows), self._n_words)).argmax(1).tolist()
        return found


def _batch(rows: list[list[int]], position: int) -> Any:
    """Each row as a sequence of its own; logits after its last token only."""
    n_rows, n_columns = len(rows), len(rows[0])
    batch = llama_cpp.llama_batch_init(n_rows * n_columns, 0, 1)
    batch.n_tokens = n_rows * n_columns
    for i, (row, column) in enumerate(product(range(n_rows), range(n_columns))):
        batch.token[i] = rows[row][column]
        batch.pos[i] = position + column
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = row
        batch.logits[i] = column == n_columns - 1
    return batch
