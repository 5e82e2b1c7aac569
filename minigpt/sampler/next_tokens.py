"""The table of next tokens: what a model expects after a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp
from typing import Never

from minigpt.errors import InvalidRequest
from minigpt.json_files import shown
from minigpt.right_names import refuse_unknown
from minigpt.sampler.api import generate
from minigpt.sampler.events import LanguageModel
from minigpt.sampler.requests import check_model
from minigpt.sampler.text import TextTokenizer, prompt_ids


@dataclass(frozen=True)
class NextToken:
    """One token that may come next: its id, its text, its probability, and the logarithm of that (nats)."""

    token: int
    text: str
    probability: float
    logprob: float


@dataclass(frozen=True)
class NextTokens:
    """The likeliest next tokens, best first; `print` shows them as a table, and so does a notebook."""

    rows: tuple[NextToken, ...]

    def __iter__(self) -> Iterator[NextToken]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> NextToken:
        return self.rows[place]

    def __str__(self) -> str:
        labelled = [(json.dumps(row.text, ensure_ascii=False), row) for row in self.rows]
        width = max(len("token"), *(len(text) for text, _ in labelled))
        lines = [f"{'token':{width}}  {'id':>6}  {'probability':>11}  {'logprob':>8}"]
        lines += [
            f"{text:{width}}  {row.token:6}  {row.probability:11.4f}  {row.logprob:8.3f}"
            for text, row in labelled
        ]
        return "\n".join(lines)

    __repr__ = __str__


# What the number of tokens is called elsewhere.
ADVICE = dict.fromkeys(("k", "top_k", "topk", "top_n", "num", "top_logprobs"), "it is n")


def top(
    model: LanguageModel, tokenizer: TextTokenizer, prompt: str, n: int = 5, **unknown: Never
) -> NextTokens:
    """The `n` tokens that the model holds likeliest after a text.

    Args:
        model, tokenizer: as `minigpt.load` returns them.
        prompt: the text so far; an empty one stands for the end-of-text token.
        n: how many tokens, at least 1.

    Raises:
        PromptTooLong: the prompt exceeds the model's context length.
        InvalidRequest: an argument cannot be used.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> table = top(model, tokenizer, "Once upon a", n=3)
    >>> len(table), table[0].probability >= table[1].probability
    (3, True)
    """
    refuse_unknown("top", unknown, ["n"], ADVICE)
    check_model("top", model)
    if not isinstance(prompt, str):
        raise InvalidRequest(f"top() takes a text, got {shown(prompt)}")
    if not isinstance(n, int) or n < 1:
        raise InvalidRequest(f"n must be a whole number of at least 1, got {n!r}")
    ((best,),) = generate(model, [prompt_ids(prompt, tokenizer)], max_new_tokens=1, top_logprobs=n)
    rows = [
        NextToken(token, tokenizer.decode([token]), exp(logprob), logprob)
        for token, logprob in best.top_logprobs[0]
    ]
    return NextTokens(tuple(rows))
