"""How much of a run a page keeps, so that it stays small: fixed by sizes alone, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.config import GPT2Config

CHARACTERS = 4_750_000  # for the data of all runs of a page; 5 MB with what does not grow with them
LIKELIEST = 256  # tokens whose logits are kept where those of all would take too much room
MOST_WEIGHTS = 32  # of a row of attention
LENS_TOKENS = 5

# Characters of the page, in base64 after compression, as measured on random models, which compress worst.
OF_A_LOGIT = 5.2
OF_A_LIKELY_LOGIT = 8.0  # with its token
OF_A_TAIL = 350
OF_A_WEIGHT = 2.75  # with its key
OF_A_ROW = 3.1  # scale, mass and norm
OF_A_LENS = 41.0  # five tokens, their probabilities, and three numbers
OF_A_LABEL = 14


@dataclass(frozen=True)
class Kept:
    """What is kept of a run."""

    weights: int  # of each row of attention
    all_logits: bool  # of every generated token, or the likeliest alone


def kept(config: GPT2Config, n_tokens: int, n_generated: int, n_runs: int) -> Kept:
    """What a run of so many tokens may keep, next to other runs on the same page.

    >>> kept(GPT2Config(), 1024, 0, 1)
    Kept(weights=7, all_logits=True)
    >>> kept(GPT2Config(), 60, 50, 1)
    Kept(weights=32, all_logits=False)
    """
    room = CHARACTERS / n_runs
    rows = config.n_layer * config.n_head * n_tokens
    lens = (config.n_layer + 1) * n_tokens
    labels = min(config.vocab_size / n_runs, n_generated * LIKELIEST + lens * LENS_TOKENS)  # runs share them
    in_full = n_generated * config.vocab_size * OF_A_LOGIT
    all_logits = in_full <= room / 4  # the rest is for attention
    logits = in_full if all_logits else n_generated * (LIKELIEST * OF_A_LIKELY_LOGIT + OF_A_TAIL)
    left = room - logits - lens * OF_A_LENS - labels * OF_A_LABEL - rows * OF_A_ROW
    weights = int(left / (rows * OF_A_WEIGHT))
    return Kept(max(1, min(weights, MOST_WEIGHTS, n_tokens)), all_logits)
